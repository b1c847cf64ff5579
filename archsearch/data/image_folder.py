"""The images of an ImageFolder, `<root>/<split>/<class>/**/<image>`, found without opening them."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from archsearch.errors import UserError
from archsearch.system import open_regular
from archsearch.units import format_names

_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information"})
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image of a split; `path` is relative to the root, size and time show whether it changed since decoding."""

    path: str
    label: int
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split in a fixed order; labels index `classes`. `others` counts the files beside them by their ending."""

    name: str
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    others: Mapping[str, int]


def quote_names(names: Sequence[str]) -> str:
    """`'cat', 'dog' and 3 more`: the first five names, quoted for an error."""
    return format_names([repr(name) for name in names])


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises OSError for a pipe or a device too, which might never end."""
    with open_regular(path) as file:
        return file.read()


def check_root(root: Path, splits: tuple[str, ...]) -> None:
    """Raise UserError where a folder lacks one of these splits: the training one, and that for validation if asked for."""
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
            found = quote_names(present) if present else "no folders at all"
            raise UserError(f"{root}: split {split!r} is missing; found {found}, needed: {needed}")


def folders_in(parent: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(parent) if _is_folder(entry) and _is_visible(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def list_classes(root: Path, split: str) -> tuple[str, ...]:
    """Names of a split's class folders that hold images, sorted. Raises UserError where there is none."""
    for name in filter(_is_visible, os.listdir(root / split)):
        _refuse_dead_link(root / split / name)
    names = tuple(name for name in folders_in(root / split) if _holds_images(root / split / name))
    if not names:
        raise UserError(
            f"{root / split}: no class folders with images; allowed is <class>/<image> with one of"
            f" {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return names


def read_split(root: Path, split: str, classes: tuple[str, ...]) -> Split:
    """The images below these class folders of a split, class by class, sorted by path; a missing folder holds none."""
    files = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        folder = root / split / name
        for path in sorted(_visible_files(folder)) if folder.is_dir() else ():
            if not _is_image(path.name):
                others[path.suffix.lower() or path.name] += 1
                continue
            try:
                stat = path.stat()
                num_bytes, modified_ns = stat.st_size, stat.st_mtime_ns
            except PermissionError:
                raise
            except OSError:  # a link that leads nowhere: decoding will count it as unreadable
                num_bytes, modified_ns = 0, 0
            relative = path.relative_to(root).as_posix()
            files.append(ImageFile(path=relative, label=label, num_bytes=num_bytes, modified_ns=modified_ns))
    return Split(name=split, classes=classes, files=tuple(files), others=others)


def count_images_directly(folder: Path) -> int:
    """Number of images in the folder itself."""
    return sum(map(_is_image, os.listdir(folder)))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(path.name) for path in _visible_files(folder))


def _refuse_dead_link(path: Path) -> None:
    """Raise UserError for a link that leads nowhere and is no image: it may stand for a folder of images, on a disk that is not mounted."""
    if path.is_symlink() and not path.exists() and not _is_image(path.name):
        raise UserError(f"{path}: a link to {os.readlink(path)!r}, which is not there; every folder of images must be")


def _raise(error: OSError) -> None:
    raise error


def _visible_files(folder: Path) -> Iterator[Path]:
    """Files anywhere below `folder` but hidden ones; linked folders are followed, each real folder once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_is_visible, folders))
        for path in (Path(parent, name) for name in names if _is_visible(name)):
            _refuse_dead_link(path)
            yield path


def _is_visible(name: str) -> bool:
    # macOS leaves "._photo.jpg" beside photo.jpg on foreign disks; it is not an image. Nor are the previews in a NAS's folders.
    return not name.startswith(".") and name not in _SYSTEM_FOLDERS


def _is_image(name: str) -> bool:
    return _is_visible(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
