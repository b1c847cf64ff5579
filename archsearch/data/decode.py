"""Decoding many encoded images to small uint8 squares, on all cores, tolerating a few broken ones."""

# One policy for every source, by Pillow. torchcodec decoded 150 photographs to the same bytes, 1.7 times as fast, but
# that saves a fifth of the whole, and what a candidate is trained on must not depend on what happens to be installed.

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# EXIF tag "Orientation": what turns the stored picture upright (EXIF 2.3, 4.6.4 A).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Square = NDArray[np.uint8]
Loader = Callable[[], bytes | Image.Image]


def read_square(opened: Image.Image, size: int) -> Square:
    """The centre square of an image, upright, antialiased to (size, size, 3) RGB; raises whatever Pillow raises."""
    # JPEGs are decoded at 1/2, 1/4 or 1/8 where that still leaves twice the pixels wanted; other formats ignore it.
    # Leaving no more than wanted is twice as fast, but moved pixels by 4-5 of 255 on average (at 2x: 2).
    opened.draft(None, (2 * size, 2 * size))
    opened.load()
    turn = _UPRIGHT.get(_orientation(opened))
    rgb = _to_rgb(opened)
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Resizing only the centre square equals resizing the shorter side and cropping, and reads fewer pixels.
    square = rgb.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square if turn is None else square.transpose(turn), dtype=np.uint8)


def load_square(load: Loader, size: int) -> Square | str:
    """The square of one image, or the reason why it cannot be read."""
    try:
        loaded = load()
        with Image.open(io.BytesIO(loaded)) if isinstance(loaded, bytes) else loaded as image:
            return read_square(image, size)
    # On broken bytes Pillow raises nearly every kind there is; each is named to the user.
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Decoder:
    """Threads that decode: Pillow lets go of the interpreter while it decodes and resizes, five sixths of the time.

    So threads keep six cores or so busy; processes would keep more, and pay for sending images to and fro.
    """

    def __init__(self, size: int, workers: int | None) -> None:
        self._size = size
        self._pool = ThreadPoolExecutor(workers or num_cores())

    def squares(self, loaders: Iterable[Loader]) -> Iterator[Square | str]:
        """For each loader, in order, the square or the reason why there is none; all are started at once."""
        return self._pool.map(lambda load: load_square(load, self._size), loaders)

    def close(self) -> None:
        """Drops what has not been started."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def decoding(size: int, workers: int | None = None) -> Iterator[Decoder]:
    """A decoder to `size` px squares on `workers` threads, one a core by default."""
    decoder = Decoder(size, workers)
    try:
        with warnings.catch_warnings():
            # An oversized image is unreadable, not a warning; odd metadata in readable pictures is nobody's business.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield decoder
    finally:
        decoder.close()


def num_cores() -> int:
    """That this process may use; not `machine.usable_cores`, since preparing images does without torch."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata says nothing about the pixels: such a picture counts as upright
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip 16-bit greys at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
