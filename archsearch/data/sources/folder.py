"""An ImageFolder, `<root>/<split>/<class>/**/<image>`, or a folder of class folders, which is one split."""

# Not timm's ReaderImageFolder: it names a class after the innermost folder and sorts digits by their value, and no other
# form of the same images can give that order.

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import (
    Split,
    check_root,
    count_images_directly,
    folders_in,
    list_classes,
    quote_names,
    read_image,
    read_split,
)
from archsearch.data.sources.base import Entries, Loader, Source, make_stamp
from archsearch.errors import UserError


class FolderSource(Source):
    """Class folders of images; labels follow the sorted names of the training split's folders."""

    kind = "folder"

    def __init__(self, root: Path, train_split: str, val_split: str | None = None) -> None:
        self._root, self._train = root, train_split
        self.name, self.path = root.name, str(root)
        # In a folder of class folders the training split is the folder itself.
        self._is_flat = train_split == "train" and val_split is None and is_flat(root, train_split)
        if not self._is_flat:
            check_root(root, (train_split,) if val_split is None else (train_split, val_split))
        self.splits = (train_split,) if self._is_flat else tuple(folders_in(root))
        self._listed: dict[str, Split] = {}
        where = "" if self._is_flat else train_split
        with self._explain_failures():
            self.classes = list_classes(root, where)
        if len(self.classes) < 2:
            raise UserError(
                f"{root / where}: only one class folder with images, {self.classes[0]!r}; at least two are needed"
            )

    def entries(self, split: str) -> Entries:
        """All files below the split's class folders."""
        found, folder = self._files(split), self._root / ("" if self._is_flat else split)
        files = found.files
        labels = np.array([file.label for file in files], dtype=np.int64)
        loose = count_images_directly(folder)
        left_out = [f"{loose:,} images in no class folder"] if loose else []
        if empty := [name for name in folders_in(folder) if name not in self.classes]:
            left_out.append(f"{len(empty):,} class folders without images ({quote_names(empty)})")
        if found.others:
            number = sum(found.others.values())
            left_out.append(f"{number:,} files of endings that are no image's ({quote_names(sorted(found.others))})")
        skipped = 1 if self._is_flat else 2  # the split and the class in front
        return Entries(
            labels=labels, keys=tuple(file.path.split("/", skipped)[-1] for file in files), left_out=tuple(left_out)
        )

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders that open and read one file each."""
        files = self._files(split).files
        for index in indices:
            yield partial(read_image, self._root / files[index].path)

    def stamp(self, splits: Iterable[str]) -> str:
        """From every file's path, size and time of change."""
        files = [file for split in splits for file in self._files(split).files]
        return make_stamp((file.path, file.num_bytes, file.modified_ns) for file in files)

    def _files(self, split: str) -> Split:
        if split not in self._listed:
            self.check_split(split)
            where = "" if self._is_flat else split
            with self._explain_failures():
                strangers = [name for name in list_classes(self._root, where) if name not in self.classes]
                if strangers:
                    raise UserError(
                        f"{self._root / where}: {quote_names(strangers)} not among the {len(self.classes)} classes of"
                        f" {self._root / self._train}; every validation class must be a training class"
                    )
                self._listed[split] = read_split(self._root, where, self.classes)
        return self._listed[split]

    @contextmanager
    def _explain_failures(self) -> Iterator[None]:
        """A UserError in place of the error for a file or folder that cannot be read."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._root}: {error.filename} cannot be read ({error.strerror}); every folder and image must be readable"
            ) from error


def is_flat(root: Path, train_split: str) -> bool:
    """Whether a folder holds class folders of images and no folder of the training split."""
    if not root.is_dir() or (root / train_split).is_dir():
        return False
    return any(count_images_directly(root / name) for name in folders_in(root))
