"""Data sets through timm's readers: Hugging Face's by `hfds/` and `hfids/`, TensorFlow's by `tfds/`, torchvision's by `torch/`."""

import importlib.util
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import compute

from archsearch.data.sources.base import (
    Entries,
    Loader,
    Source,
    make_stamp,
    name_classes,
    number_labels,
    read_labels,
)
from archsearch.errors import UserError, first_line

PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "torch": "torchvision"}
_PIP_NAMES = {"tensorflow_datasets": "tensorflow-datasets"}
_VAL_NAMES = ("val", "validation", "test")


class TimmSource(Source):
    """`hfds/` is read at random, as encoded bytes; the others are streams of decoded images, read once more for the labels.

    Streamed images were decoded at full size, so their pixels differ a little from those of other forms.
    """

    def __init__(self, text: str, train_split: str) -> None:
        self.kind, _, rest = text.partition("/")
        self.kind = self.kind.lower()
        package = PACKAGES[self.kind]
        if importlib.util.find_spec(package) is None:
            name = _PIP_NAMES.get(package, package)
            raise UserError(
                f"{text}: {self.kind}/ needs the package {name}, which is not installed; pip install {name}"
            )
        if not rest:
            raise UserError(f"{text}: no data set is named; allowed is {self.kind}/NAME")
        self._text, self._rest = text, rest
        self.name, self.path = Path(rest).name, text
        self.splits = (train_split, *_VAL_NAMES)  # the ones that exist are known when one is opened
        self._opened: dict[str, Any] = {}
        self._lists: dict[str, tuple[list[int | str], tuple[str, ...]]] = {}
        opened = self._open(train_split)
        known = getattr(getattr(opened, "reader", opened), "class_to_idx", None) or {}
        names = tuple(str(name) for name, _ in sorted(known.items(), key=lambda item: item[1]))
        labels = self._listed(train_split)[0]
        self.classes = names or name_classes(labels, partial(self._where, train_split))
        self._are_names = not names and any(isinstance(label, str) for label in labels)

    def entries(self, split: str) -> Entries:
        """From the reader's columns, or from one pass through the stream."""
        labels, keys = self._listed(split)
        where = partial(self._where, split)
        return Entries(labels=number_labels(labels, self.classes, where, are_names=self._are_names), keys=keys)

    def _listed(self, split: str) -> tuple[list[int | str], tuple[str, ...]]:
        """The labels of a split as they are stored, and its keys."""
        if split not in self._lists:
            opened = self._open(split)
            if self.kind == "hfds":  # columns, read without the images
                table, image_key = opened.reader.dataset, opened.reader.image_key
                found = list(table.remove_columns(image_key)[opened.reader.label_key])
                names = compute.struct_field(table.data.column(image_key), "path").to_pylist()
                keys = [f"{row:09}" if name is None else Path(name).name for row, name in enumerate(names)]
            else:
                found = [label for _, label in self._stream(opened)]
                keys = [f"{index:09}" for index in range(len(found))]
            self._lists[split] = read_labels(found, partial(self._where, split)), tuple(keys)
        return self._lists[split]

    def _where(self, split: str, index: int) -> str:
        return f"{self.path}: image {index} of split {split!r}"

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders in storage order; of a stream, of images decoded already."""
        opened = self._open(split)
        if self.kind == "hfds":
            for index in indices:
                yield partial(_read_encoded, opened.reader, int(index))
            return
        wanted = set(indices.tolist())
        for index, (image, _) in enumerate(self._stream(opened)):
            if index in wanted:
                yield partial(_return_image, image)

    def stamp(self, splits: Iterable[str]) -> str:
        """From the labels and their number."""
        # Such sets are named and versioned instead of being files: only their contents show a change.
        parts = []
        for split in splits:
            labels = self.entries(split).labels
            parts.append((f"{split} {make_stamp([(str(labels.tolist()), 0, 0)])}", len(labels), 0))
        return make_stamp(parts)

    def _open(self, split: str) -> Any:
        if split not in self._opened:
            from timm.data import create_dataset  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

            name, root = _name_and_root(self.kind, self._text, self._rest)
            # The length of a stream is not used here, but hfids refuses to work without one.
            length = 1 if self.kind == "hfids" else None
            try:
                self._opened[split] = create_dataset(
                    name, root=root, split=split, input_img_mode="", num_samples=length
                )
            # Each library has its own errors for a name that it does not know; the user gets its message.
            except Exception as error:
                raise UserError(f"{self._text}: split {split!r} cannot be opened ({first_line(error)})") from error
        return self._opened[split]

    def _stream(self, opened: Any) -> Iterator[tuple[Image.Image, int]]:
        """Images and labels in storage order; torchvision's sets are indexed, timm's iterated over."""
        try:
            yield from (opened[index] for index in range(len(opened))) if self.kind == "torch" else opened
        # A stream cannot go on after an image that its library cannot decode.
        except Exception as error:
            raise UserError(
                f"{self.path}: the stream broke off ({first_line(error)}); hfds/ or local files leave such images out"
            ) from error

    def check_split(self, split: str) -> None:
        """Raise UserError for a split that cannot be opened."""
        self._open(split)


def _name_and_root(kind: str, text: str, rest: str) -> tuple[str, str | None]:
    """timm's name of the data set and its folder, which only torchvision's sets need: torch/NAME/FOLDER."""
    if kind != "torch":
        return f"{kind}/{rest}", None
    name, _, folder = rest.partition("/")
    if name.lower().startswith("cifar"):
        raise UserError(f"{text}: its files are pickles, which may run code when read; use hfds/uoft-cs/{name.lower()}")
    if not folder or not Path(folder).is_dir():
        raise UserError(f"{text}: no folder; allowed is torch/NAME/FOLDER with the set downloaded to FOLDER")
    return f"torch/{name}", folder


def _read_encoded(reader: Any, index: int) -> bytes:
    with reader[index][0] as file:
        content: bytes = file.read()
    return content


def _return_image(image: Image.Image) -> Image.Image:
    return image
