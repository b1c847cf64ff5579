"""The original ILSVRC2012 files: a tar of class tars, a tar of validation images, and the devkit with their labels."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from archsearch.data.sources.base import Entries, Loader, Source, stamp_files
from archsearch.data.sources.tars import Member, members
from archsearch.errors import UserError, first_line

TRAIN = "ILSVRC2012_img_train.tar"
_VAL = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_BYTES = 64 << 20  # far more than both files take; a limit against gigabytes in a damaged devkit
_DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    KeyError,
    ValueError,
    IndexError,
    TypeError,
    NotImplementedError,  # scipy's, for a version of the format that it does not read
)
_FILES = {"train": (TRAIN,), "val": (_VAL, _DEVKIT)}


class IlsvrcSource(Source):
    """Splits `train` and `val`; classes are wnids, sorted."""

    kind = "ilsvrc-tars"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name, self.path = root.name, str(root)
        self.splits = tuple(split for split, names in _FILES.items() if all((root / name).is_file() for name in names))
        self._train = list(members(root / TRAIN, nested=True))
        self._members = {"train": self._train}
        self.classes = tuple(sorted({member.folder for member in self._train}))

    def entries(self, split: str) -> Entries:
        """From the headers of the tars; validation labels from the devkit."""
        self.check_split(split)
        number = {name: label for label, name in enumerate(self.classes)}
        if split == "train":
            names = [member.folder for member in self._train]
        else:
            names = self._val_names()
            strangers = sorted(set(names) - set(number))
            if strangers:
                raise UserError(f"{self.path}: the devkit names class {strangers[0]!r}, which {TRAIN} lacks")
        labels = np.array([number[name] for name in names], dtype=np.int64)
        return Entries(labels=labels, keys=tuple(Path(member.name).name for member in self._members[split]))

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders that read one member each, at its place in the tar."""
        for index in indices:
            yield self._members[split][index].read

    def stamp(self, splits: Iterable[str]) -> str:
        """From the tars and the devkit."""
        return stamp_files(self._root, [self._root / name for split in splits for name in _FILES[split]])

    def check_split(self, split: str) -> None:
        """Raise UserError for another split, and for `val` without its files."""
        missing = [name for name in _FILES.get(split, ()) if not (self._root / name).is_file()]
        if missing:
            raise UserError(f"{self.path}: split {split!r} needs {' and '.join(missing)}, not found there")
        super().check_split(split)

    def _val_names(self) -> list[str]:
        """The class of each validation image, in the order of the tar."""
        meta, ground_truth = _read_devkit(self._root / _DEVKIT)
        images: list[Member] = list(members(self._root / _VAL))
        self._members["val"] = images
        # The n-th line is the class of the n-th image by name.
        order = sorted(range(len(images)), key=lambda index: Path(images[index].name).name)
        if len(order) != len(ground_truth):
            raise UserError(
                f"{self._root / _VAL}: {len(order)} images where the devkit has {len(ground_truth)} labels; they must agree"
            )
        names = [""] * len(order)
        for index, number in zip(order, ground_truth, strict=True):
            if number not in meta:
                raise UserError(f"{self._root / _DEVKIT}: label {number} is no class of {_META}")
            names[index] = meta[number]
        return names


def _read_devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """The wnid of each ILSVRC number, and the number of each validation image."""
    try:
        with gzip.open(path) as packed:  # read to its end, where the checksum is
            content = packed.read(_DEVKIT_BYTES + 1)
        if len(content) > _DEVKIT_BYTES:
            raise ValueError(f"more than {_DEVKIT_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            found = {name: _extract(tar, name) for name in (_META, _GROUND_TRUTH)}
        # (ILSVRC2012_ID, WNID, words, gloss, num_children, ...) of leaf classes and of the synsets above them.
        synsets: Any = loadmat(io.BytesIO(found[_META]), squeeze_me=True)["synsets"]
        meta = {int(row[0]): str(row[1]) for row in np.atleast_1d(synsets) if int(row[4]) == 0}
        return meta, [int(line) for line in found[_GROUND_TRUTH].split()]
    except _DAMAGE as error:
        raise UserError(
            f"{path}: not the ILSVRC2012 devkit ({first_line(error)}); it must hold {_META} and {_GROUND_TRUTH}"
        ) from error


def _extract(tar: tarfile.TarFile, name: str) -> bytes:
    for info in tar:
        if info.isreg() and info.name.endswith(name):
            file = tar.extractfile(info)
            assert file is not None
            return file.read()
    raise KeyError(name)
