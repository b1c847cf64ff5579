"""Finding the images of an ImageFolder: `<root>/<split>/<class>/**/<image>`."""

import os
from dataclasses import dataclass
from pathlib import Path

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


def some(names: list[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    more = len(names) - _NAMES_IN_ERRORS
    return ", ".join(repr(name) for name in names[:_NAMES_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def check_root(root: Path, splits: tuple[str, ...]) -> None:
    """Raises UserError where a folder does not hold these splits: the training one, and one for validation if asked for."""
    needed = " and ".join(repr(split) for split in splits)
    if not root.exists():
        raise UserError(f"{root}: no such folder; give the folder that holds {needed}")
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; give the folder that holds {needed}")
    if len(set(splits)) < len(splits):
        raise UserError(f"{root}: training and validation split are both {splits[0]!r}; they must differ")
    present = folders_in(root)
    for split in splits:
        if not (root / split).is_dir():
            found = some(present) if present else "no folders at all"
            raise UserError(f"{root}: split {split!r} is missing; found {found}, needed: {needed}")


def folders_in(parent: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))


def list_classes(root: Path, split: str) -> tuple[str, ...]:
    """Names of the class folders with images of a split, sorted; UserError where there is none."""
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


def has_images_directly(folder: Path) -> bool:
    """Whether an image lies in the folder itself."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


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
