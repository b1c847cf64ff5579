"""The images of a training: any source or prepared folder, augmented by timm, every picture by random numbers of its own.

timm's `create_loader` takes no order of one's own, so its parts are used: `create_transform`, with erasing in it, and torch's `DataLoader`.
"""

import contextlib
import hashlib
import io
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from archsearch.data import (
    EMBEDDED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataRequest,
    Source,
    is_prepared,
    is_stream,
    load_data,
    open_prepared,
    open_source,
    unreadable_reason,
)
from archsearch.errors import RunError, UserError, shown
from archsearch.system import user_path, without_interrupts
from archsearch.training.recipe import TrainingRecipe
from archsearch.units import format_names, sides

_VAL_SPLITS = ("val", "validation")
_MOST_TRIED = 10  # pictures in a row that cannot be read

# Epoch, number of the image, and how often it has come before in this epoch.
Place = tuple[int, int, int]
# Images (B, 3, H, W), labels (B,), and for those that cannot be read their names, each with the reason.
Batch = tuple[Tensor, Tensor, list[str]]


def seed_of(*numbers: int) -> int:
    """32 bits that follow from these numbers, for the random generators of Python, NumPy and PyTorch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Pictures(Protocol):
    """Pictures by number, and their labels int64 (N,)."""

    labels: NDArray[np.int64]

    def read(self, index: int) -> Image.Image:
        """The picture, RGB. Raises any error of decoding."""

    def name(self, index: int) -> str:
        """What a sentence calls it."""


class SourcePictures:
    """The pictures of a split of any source, in the order that all forms of the same images share."""

    def __init__(self, source: Source, split: str) -> None:
        entries = source.entries(split)
        self._source, self._split = source, split
        order = entries.sorted_indices()
        self._places = order[entries.labels[order] >= 0]
        self._keys, self._classes = entries.keys, source.classes
        self.labels = entries.labels[self._places]
        unlabelled = [f"{entries.unlabelled:,} images without a label"] if entries.unlabelled else []
        self.left_out = tuple(f"left out of split {split}: {words}" for words in (*entries.left_out, *unlabelled))

    def read(self, index: int) -> Image.Image:
        """The picture as it is stored, RGB."""
        (load,) = self._source.read(self._split, self._places[index : index + 1])
        loaded = load()
        with Image.open(io.BytesIO(loaded)) if isinstance(loaded, bytes) else loaded as image:
            return image.convert("RGB")

    def name(self, index: int) -> str:
        """Its split, class and key."""
        return f"{self._split}/{self._classes[self.labels[index]]}/{self._keys[self._places[index]]}"


class StoredPictures:
    """Squares uint8 (N, S, S, C) in memory, or those of a prepared folder's split, which each process maps for itself."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], folder: Path | None, split: str) -> None:
        self._images: NDArray[np.uint8] | None = images
        self.labels, self._folder, self._split = labels, folder, split

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: without the map, which would be copied."""
        return self.__dict__ | {"_images": None if self._folder else self._images}

    def read(self, index: int) -> Image.Image:
        """The square, RGB."""
        if self._images is None:
            assert self._folder is not None
            self._images = open_prepared(self._folder).images[self._split]
        return Image.fromarray(self._images[index].squeeze()).convert("RGB")

    def name(self, index: int) -> str:
        """Its number."""
        return f"{self._split} image {index}"


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """The images to train and to validate on. `fingerprint`: eight hexadecimal digits of names and labels, of a prepared folder also of the pixels.

    `notes` say what the source holds besides, and is left out.
    """

    name: str
    train: Pictures
    val: Pictures
    classes: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def describe(self) -> str:
        """One line."""
        numbers = f"{len(self.train.labels):,} training and {len(self.val.labels):,} validation images"
        return f"{self.name}: {numbers}, {len(self.classes):,} classes"


def open_images(text: str, size: int, train_split: str = "train", val_split: str | None = None) -> TrainingImages:
    """The images of a folder, of shards, of a prepared folder or of an embedded name; `size` in pixels is what is trained on.

    Raises UserError for what is not there, of no known form or a stream, for a source without a split for validation, and for prepared images that are smaller.
    """
    folder = user_path(text)
    if text in EMBEDDED or is_prepared(folder):
        if (train_split, val_split or "val") != ("train", "val"):
            raise UserError(
                f"--data {text}: has the splits train and val alone; leave --train-split and --val-split out"
            )
        return _open_stored(text, folder.absolute(), size)
    if is_stream(text):
        raise UserError(f"--data {text}: is read as a stream; prepare it first: archsearch prepare {text} OUT")
    source = open_source(text, train_split, val_split)
    listed = [name for name in _VAL_SPLITS if name in source.splits]
    chosen = val_split or next((name for name in listed if _has(source, name)), next(iter(listed), None))
    if chosen is None or chosen not in source.splits:
        raise UserError(
            f"--data {text}: no split {chosen or ' or '.join(_VAL_SPLITS)} to validate on; found {format_names(source.splits)}: "
            "name one by --val-split, or hold images out by archsearch prepare"
        )
    train, val = SourcePictures(source, train_split), SourcePictures(source, chosen)
    names = [f"{pictures.name(index)}\n" for pictures in (train, val) for index in range(len(pictures.labels))]
    digest = hashlib.sha256("".join(names).encode(errors="surrogateescape")).hexdigest()[:8]
    return TrainingImages(
        name=source.name,
        train=train,
        val=val,
        classes=source.classes,
        fingerprint=digest,
        notes=(*train.left_out, *val.left_out),
    )


def _has(source: Source, split: str) -> bool:
    """Whether a split is there; data sets by name tell only when it is opened."""
    try:
        source.check_split(split)
    except UserError:
        return False
    return True


def _open_stored(text: str, folder: Path, size: int) -> TrainingImages:
    """Prepared or embedded images."""
    if text not in EMBEDDED and (stored := open_prepared(folder).size) < size:
        raise UserError(
            f"--data {text}: prepared at {stored} px, and the network takes {size}; prepare the images again with --size {size}, "
            f"or train at --image-size {stored}"
        )
    data = load_data(DataRequest(text=text if text in EMBEDDED else str(folder), size=size if text in EMBEDDED else 0))
    where = Path(data.folder) if data.folder else None
    grey = len(data.mean) == 1
    return TrainingImages(
        name=data.name,
        train=StoredPictures(data.train_images, data.train_labels, where, "train"),
        val=StoredPictures(data.val_images, data.val_labels, where, "val"),
        classes=data.classes,
        fingerprint=data.fingerprint,
        mean=data.mean * 3 if grey else data.mean,
        std=data.std * 3 if grey else data.std,
    )


def train_transform(
    images: TrainingImages, recipe: TrainingRecipe, size: tuple[int, int]
) -> Callable[[Image.Image], Tensor]:
    """timm's augmentation by a recipe: a picture -> normalised float32 (3, H, W)."""
    from timm.data.transforms_factory import create_transform  # here: timm takes seconds to import

    try:
        made: Callable[[Image.Image], Tensor] = create_transform(
            size,
            is_training=True,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment or None,
            interpolation="bicubic",
            re_prob=recipe.erasing,
            re_mode="pixel",
            mean=images.mean,
            std=images.std,
        )
    except (AssertionError, ValueError, KeyError) as error:  # what timm raises for a policy that it does not know
        raise UserError(
            f"recipe {recipe.name}: auto_augment is {shown(recipe.auto_augment)}, which timm does not know; "
            "allowed are names such as rand-m9-mstd0.5-inc1, original and v0, and an empty one for none"
        ) from error
    _mend_posterize(made)
    return made


def _mend_posterize(transform: Any) -> None:
    """Let timm's augmentations keep 0 bits, as one of 40 of RandAugment's draws of it does: Pillow 13 refuses what gave a black picture before."""
    from timm.data import auto_augment

    for step in transform.transforms:
        for operation in chain(getattr(step, "ops", ()), *getattr(step, "policy", ())):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """The picture with so many bits of each channel; black for none."""
    from timm.data import auto_augment

    if bits == 0:
        return Image.new(picture.mode, picture.size)
    made: Image.Image = auto_augment.posterize(picture, bits)  # type: ignore[no-untyped-call]  # timm leaves it untyped
    return made


def val_transform(images: TrainingImages, crop_share: float, size: tuple[int, int]) -> Callable[[Image.Image], Tensor]:
    """timm's centre crop: a picture -> normalised float32 (3, H, W)."""
    from timm.data.transforms_factory import create_transform  # here: timm takes seconds to import

    made: Callable[[Image.Image], Tensor] = create_transform(
        sides(size), interpolation="bicubic", crop_pct=crop_share, mean=images.mean, std=images.std
    )
    return made


@contextlib.contextmanager
def own_numbers(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and PyTorch's host by a seed meanwhile; those of before go on afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)  # timm draws from the global generator
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # as above
        torch.set_rng_state(before[2])


class PlacedPictures(Dataset[tuple[Tensor | None, int, str]]):
    """Transformed pictures by place: what comes out follows from seed, epoch, image and repeat alone, whichever process makes it.

    For a picture that cannot be read, the reason comes too: with the next one instead (`replace`), else with None, as where many in a row cannot be read.
    """

    def __init__(
        self, pictures: Pictures, transform: Callable[[Image.Image], Tensor], seed: int, *, replace: bool
    ) -> None:
        self._pictures, self._transform, self._seed, self._replace = pictures, transform, seed, replace

    def __getitem__(self, place: Place) -> tuple[Tensor | None, int, str]:
        epoch, index, repeat = place
        unread = ""
        for _ in range(_MOST_TRIED if self._replace else 1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # odd metadata in readable pictures does not matter
                    picture = self._pictures.read(index)
            except Exception as error:
                # On broken bytes Pillow raises nearly every kind of error; the user gets its name.
                unread = unread or f"{self._pictures.name(index)} ({unreadable_reason(error)})"
                index = (index + 1) % len(self._pictures.labels)
                continue
            with own_numbers(seed_of(self._seed, epoch, index, repeat)):
                return self._transform(picture), int(self._pictures.labels[index]), unread
        return None, 0, unread


class EpochOrder(Sampler[list[Place]]):
    """The batches of one process, from step `start` of `epoch` on: a shuffle by seed and epoch, cut into steps of `batch_size` images.

    A process has a run from the front of a step's images and the one that mirrors it at the back: so `Mixup`, which mixes the first with the last, mixes the
    same pairs however many processes there are.
    """

    def __init__(
        self, num_images: int, batch_size: int, *, seed: int, repeats: int, rank: int = 0, world: int = 1
    ) -> None:
        self.num_images, self.batch_size, self.seed, self.repeats = num_images, batch_size, seed, repeats
        self.rank, self.world = rank, world
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Steps of an epoch; images left over are not used in it."""
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[Place]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        shuffled = torch.randperm(self.num_images, generator=generator).tolist()
        places = [(self.epoch, index, repeat) for index in shuffled for repeat in range(self.repeats)]
        for step in range(self.start, len(self)):
            yield own_part(places[step * self.batch_size : (step + 1) * self.batch_size], self.rank, self.world)


def own_part(batch: Sequence[Place], rank: int, world: int) -> list[Place]:
    """The images of one process: half of them from the front, half from the back, odd ones from the middle."""
    if world == 1:
        return list(batch)
    each = len(batch) // world
    half = each // 2
    front, back = list(batch[rank * half : (rank + 1) * half]), list(batch[len(batch) - (rank + 1) * half :][:half])
    middle = batch[world * half : len(batch) - world * half]
    return [*front, *middle[rank : rank + each - 2 * half], *back]


class InOrder(Sampler[list[Place]]):
    """All images once, in order, in batches; of several processes each has every n-th."""

    def __init__(self, num_images: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self._places = [(0, index, 0) for index in range(rank, num_images, world)]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._places) // self._batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        for start in range(0, len(self._places), self._batch_size):
            yield self._places[start : start + self._batch_size]


def collate(items: list[tuple[Tensor | None, int, str]]) -> Batch:
    """A batch of the pictures that are there; of those that cannot be read, the ones without another in their place come first."""
    items = sorted(items, key=lambda item: item[0] is not None)
    there = [(image, label) for image, label, _ in items if image is not None]
    images = torch.stack([image for image, _ in there]) if there else torch.empty(0, 3, 1, 1)
    return (
        images,
        torch.tensor([label for _, label in there], dtype=torch.int64),
        [unread for *_, unread in items if unread],
    )


def make_loader(
    pictures: PlacedPictures, order: Sampler[list[Place]], *, workers: int, pinned: bool
) -> DataLoader[Any]:
    """torch's loader of these pictures in this order; its workers stay from epoch to epoch."""
    return DataLoader(
        pictures,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Spawned: a fork of a process that uses CUDA or has threads may hang.
        multiprocessing_context="spawn" if workers else None,
        pin_memory=pinned,
    )


def batches_of(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches. Raises RunError where a worker died."""
    with without_interrupts():
        batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise RunError(
                "a process that decodes images died, probably for lack of (shared) memory; take fewer by --workers"
            ) from error
        raise
