"""Decoding of many encoded images to small uint8 squares, on all cores; broken ones become reasons."""

# Every source is decoded by Pillow. torchcodec decoded 150 photographs to the same bytes, 1.7 times as fast, but that
# saves a fifth of the whole, and the training data must not depend on which packages happen to be installed.

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from archsearch.cores import usable_cores

# EXIF tag "Orientation", and how each of its values turns the stored picture upright (EXIF 2.3, 4.6.4 A).
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

# Their 16-bit greys may have Pillow's mode of 32-bit ones.
_DEEP_FORMATS = ("PNG", "PPM")

Square = NDArray[np.uint8]
Loader = Callable[[], bytes | Image.Image]
Decode = Callable[[Iterable[Loader]], Iterator[Square | str]]


def read_square(opened: Image.Image, size: int) -> Square:
    """The centre square of an image, upright, resized with antialiasing to uint8 RGB (size, size, 3). Raises Pillow's errors."""
    # JPEGs are decoded at 1/2, 1/4 or 1/8 where that still leaves twice the pixels wanted; other formats ignore it.
    # Leaving no more than wanted is twice as fast, but moved pixels by 4-5 of 255 on average (at 2x: 2).
    opened.draft(None, (2 * size, 2 * size))
    opened.load()
    try:
        turn = _UPRIGHT.get(int(opened.getexif().get(_ORIENTATION_TAG, 1)))
    except Exception:  # damaged metadata does not mean damaged pixels: such a picture counts as upright
        turn = None
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in _DEEP_FORMATS):
        opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))  # convert() would clip 16-bit greys at 255
    if opened.mode in ("I", "F"):
        raise ValueError(f"greys of mode {opened.mode}, in which white has no number of its own")
    rgb = opened if opened.mode == "RGB" else opened.convert("RGB")
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
    except Exception as error:  # on broken bytes Pillow raises nearly every kind of error; the user gets its name
        return unreadable_reason(error)


def unreadable_reason(error: Exception) -> str:
    """Why an image cannot be read, the same every time."""
    # Pillow's own text has an address in memory.
    text = "no image of a known format" if isinstance(error, UnidentifiedImageError) else error
    return f"{type(error).__name__}: {text}"


@contextmanager
def decoding(size: int, workers: int | None = None) -> Iterator[Decode]:
    """Starts all of some loaders at once, on `workers` threads (one a core by default); gives their squares or reasons in order.

    Pillow releases the interpreter lock while it decodes and resizes, five sixths of the time. So threads keep about six cores
    busy; processes would keep more busy, but images would have to be sent between them.
    """
    pool = ThreadPoolExecutor(workers or usable_cores() or 1)
    try:
        with warnings.catch_warnings():
            # An oversized image is unreadable, not a warning; odd metadata in readable pictures does not matter.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield lambda loaders: pool.map(lambda load: load_square(load, size), loaders)
    finally:
        pool.shutdown(cancel_futures=True)  # images that have not been started are dropped
