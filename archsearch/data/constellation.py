"""A generated 16-class task: four bags of parts, each in four arrangements on a 3x3 lattice.

Classes of one bag show the same parts in different places, so telling bags apart takes local features, and telling
arrangements apart takes spatial ones. For tests and diagnosis only: it favours local mixers, so no search is judged by it.
"""

import numpy as np
from numpy.typing import NDArray

from archsearch.data.dataset import ProxyData

NUM_BAGS = 4
NUM_ARRANGEMENTS = 4  # class = bag * NUM_ARRANGEMENTS + arrangement
_CHUNK = 2048  # images rendered at once
_CELLS = [(row, column) for row in range(3) for column in range(3)]
_DROP_SHARE = 0.08
_BACKGROUND = 0.12  # standard deviation, of 0..1
# Six of eight parts in every bag, so that no single part names the bag.
_BAGS = ((0, 1, 2, 3, 4, 5), (2, 3, 4, 5, 6, 7), (0, 1, 4, 5, 6, 7), (0, 1, 2, 3, 6, 7))
# The same six cells for all; arrangement k moves the parts k places on in this list.
_PLACES = (0, 5, 7, 2, 3, 8)
_PARTS = (
    (".......", "...#...", "...#...", ".#####.", "...#...", "...#...", "......."),  # plus
    (".......", ".#...#.", "..#.#..", "...#...", "..#.#..", ".#...#.", "......."),  # cross
    (".......", ".#####.", ".#...#.", ".#...#.", ".#...#.", ".#####.", "......."),  # frame
    (".......", "..###..", ".#####.", ".#####.", ".#####.", "..###..", "......."),  # disc
    (".......", ".......", "#######", ".......", "#######", ".......", "......."),  # lines across
    ("..#.#..", "..#.#..", "..#.#..", "..#.#..", "..#.#..", "..#.#..", "..#.#.."),  # lines down
    (".......", ".#.....", ".##....", ".###...", ".####..", ".#####.", "......."),  # wedge
    (".......", ".#####.", ".#.....", ".#.....", ".#.....", ".#.....", "......."),  # corner
)


def make_constellation(num_train: int, num_val: int, size: int = 32, seed: int = 0) -> ProxyData:
    """`num_train` + `num_val` images of 16 classes in turn, at `size` px (a multiple of 32); equal seeds give equal images."""
    assert size % 32 == 0
    assert min(num_train, num_val) > 0
    rng = np.random.default_rng(seed)
    labels = [np.arange(count) % (NUM_BAGS * NUM_ARRANGEMENTS) for count in (num_train, num_val)]
    images = []
    for each in labels:
        chunks = [_render(each[start : start + _CHUNK], size, rng) for start in range(0, len(each), _CHUNK)]
        images.append(np.repeat(np.concatenate(chunks)[..., None], 3, axis=3))
    return ProxyData(
        name="constellation",
        train_images=images[0],
        train_labels=labels[0],
        val_images=images[1],
        val_labels=labels[1],
        classes=tuple(f"bag{bag}-arrangement{turn}" for bag in range(NUM_BAGS) for turn in range(NUM_ARRANGEMENTS)),
    )


def _render(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(N,) -> grey values (N, size, size)."""
    scale = size // 32
    parts = np.array([[[mark == "#" for mark in row] for row in part] for part in _PARTS], dtype=np.float32)
    parts = parts.repeat(scale, axis=1).repeat(scale, axis=2)
    extent = parts.shape[1]
    cells = np.array([_CELLS[place] for place in _PLACES])  # (6, 2)
    bags, turns = np.divmod(labels, NUM_ARRANGEMENTS)
    count = len(labels)
    canvas = np.zeros((count, size, size), dtype=np.float32)
    images = np.arange(count)[:, None, None]
    shift = rng.integers(-1, 2, (count, 2))
    for slot in range(len(_PLACES)):
        which = np.array(_BAGS)[bags, slot]  # (N,)
        jitter = rng.integers(-1, 2, (count, 2))
        # Cells are 9 px apart and parts 7 px wide: 2 px of margin and 2 px of play each way.
        corner = scale * (3 + 9 * cells[(slot + turns) % len(_PLACES)] + shift + jitter)  # (N, 2)
        rows = corner[:, 0, None, None] + np.arange(extent)[:, None]  # (N, E, 1)
        columns = corner[:, 1, None, None] + np.arange(extent)  # (N, 1, E)
        kept = rng.random(count) >= _DROP_SHARE
        canvas[images, rows, columns] += parts[which] * kept[:, None, None]
    contrast = rng.uniform(0.25, 0.5, (count, 1, 1)) * rng.choice((-1.0, 1.0), (count, 1, 1))
    grey = 0.5 + contrast * canvas + _BACKGROUND * _pink_noise(count, size, rng)
    pixels: NDArray[np.uint8] = (grey.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _pink_noise(count: int, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, size, size) noise whose amplitude falls as 1/f, as in natural pictures; zero mean, unit standard deviation."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((count, size, size))) / frequency
    noise = np.fft.irfft2(spectrum, s=(size, size))
    scaled: NDArray[np.float64] = noise / noise.std(axis=(1, 2), keepdims=True)
    return scaled
