"""Finding the images of an ImageFolder: `<root>/<split>/<class>/**/<image>`."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archsearch.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_NAMES_IN_ERRORS = 5


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image of a split; `path` is relative to the root, size and time tell whether it changed since decoding."""

    path: str
    label: int
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split in a fixed order; labels index `classes`."""

    name: str
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]

    def sample(self, most: int, seed: int) -> "Split":
        """At most `most` images, drawn by `seed` without looking at classes (so these keep their shares), in order."""
        if len(self.files) <= most:
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.files))[:most])
        return Split(name=self.name, classes=self.classes, files=tuple(self.files[i] for i in chosen))


def list_image_folder(root: Path, train_split: str, val_split: str) -> tuple[Split, Split]:
    """Training and validation split of the ImageFolder at `root`; UserError where it is not one."""
    _check_root(root, (train_split, val_split))
    try:
        return _list_splits(root, train_split, val_split)
    except PermissionError as error:
        raise UserError(f"{root}: {error.filename} may not be read; every folder and image must be readable") from error


def some(names: list[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    more = len(names) - _NAMES_IN_ERRORS
    return ", ".join(repr(name) for name in names[:_NAMES_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def _list_splits(root: Path, train_split: str, val_split: str) -> tuple[Split, Split]:
    train_classes = _classes(root, train_split)
    if len(train_classes) < 2:
        raise UserError(
            f"{root / train_split}: only one class folder with images, {train_classes[0]!r}; at least two are needed"
        )
    strangers = [name for name in _classes(root, val_split) if name not in train_classes]
    if strangers:
        raise UserError(
            f"{root / val_split}: {some(strangers)} not among the {len(train_classes)} classes of {root / train_split};"
            " every validation class must be a training class"
        )
    return read_split(root, train_split, train_classes), read_split(root, val_split, train_classes)


def _check_root(root: Path, splits: tuple[str, str]) -> None:
    if not root.exists():
        raise UserError(
            f"{root}: no such folder; give the folder that holds the splits {splits[0]!r} and {splits[1]!r}"
        )
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; give the folder that holds the splits {splits[0]!r} and {splits[1]!r}")
    if splits[0] == splits[1]:
        raise UserError(f"{root}: training and validation split are both {splits[0]!r}; they must differ")
    present = folders_in(root)
    for split in splits:
        if not (root / split).is_dir():
            found = some(present) if present else "no folders at all"
            raise UserError(
                f"{root}: split {split!r} is missing; found {found}, needed are {splits[0]!r} and {splits[1]!r}"
            )


def folders_in(parent: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))


def _classes(root: Path, split: str) -> tuple[str, ...]:
    names = tuple(name for name in folders_in(root / split) if _image_paths(root / split / name, first_only=True))
    if not names:
        raise UserError(
            f"{root / split}: no class folders with images; allowed is <class>/<image> with one of"
            f" {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return names


def read_split(root: Path, split: str, classes: tuple[str, ...]) -> Split:
    """The images of these class folders of a split."""
    files = []
    for label, name in enumerate(classes):
        for path in _image_paths(root / split / name):
            num_bytes, modified_ns = _stat(path)
            relative = path.relative_to(root).as_posix()
            files.append(ImageFile(path=relative, label=label, num_bytes=num_bytes, modified_ns=modified_ns))
    return Split(name=split, classes=classes, files=tuple(files))


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:  # a link that leads nowhere: decoding will count it as unreadable
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _raise(error: OSError) -> None:
    raise error


def _image_paths(folder: Path, first_only: bool = False) -> list[Path]:
    """Image files anywhere below `folder`, sorted; linked folders are followed, each real folder once."""
    paths: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        paths.extend(Path(parent, name) for name in names if _is_image(name))
        if first_only and paths:
            break
    return sorted(paths)


def _is_image(name: str) -> bool:
    # macOS leaves "._photo.jpg" beside photo.jpg on foreign disks; it is not an image.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
