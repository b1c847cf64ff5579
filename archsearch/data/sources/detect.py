"""Detection of the form of a data set."""

import os
from pathlib import Path

from archsearch.data.image_folder import folders_in, quote_names
from archsearch.data.prepared import MANIFEST
from archsearch.data.sources.base import Source
from archsearch.data.sources.folder import FolderSource, is_flat
from archsearch.data.sources.ilsvrc import TRAIN, IlsvrcSource
from archsearch.data.sources.parquet import ParquetSource, parquet_shards
from archsearch.data.sources.timm_readers import PACKAGES, TimmSource
from archsearch.data.sources.webdataset import WebdatasetSource, webdataset_shards
from archsearch.errors import UserError
from archsearch.system import user_path

FORMS = (
    "an ImageFolder <split>/<class>/<image>, a folder of class folders, the ILSVRC2012 tars,"
    " parquet shards, webdataset shards, hfds/NAME, tfds/NAME"
)


def open_source(text: str, train_split: str = "train", val_split: str | None = None) -> Source:
    """The source at a path, or of a name such as hfds/NAME. Raises UserError with what was found where it has no known form."""
    prefix = text.partition("/")[0].lower()
    if _is_name(text):
        return TimmSource(text, train_split)
    # Local shards are all that wds/ can mean here; they are read as shards given by their folder are.
    path = text[4:] if prefix == "wds" and not os.path.exists(text) else text
    root = user_path(path).absolute()
    if not os.path.exists(root):
        raise UserError(f"{root}: no such folder; allowed are {FORMS}")
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; allowed are {FORMS}")
    try:
        return _open_folder(root, train_split, val_split)
    except OSError as error:
        raise UserError(
            f"{root}: {error.filename} cannot be read ({error.strerror}); every folder and file must be readable"
        ) from error


def is_stream(text: str) -> bool:
    """Whether a data set by name is read from its beginning each time, so that no picture can be had alone; nothing is opened."""
    return _is_name(text) and text.partition("/")[0].lower() != "hfds"


def _is_name(text: str) -> bool:
    """Whether this is a name such as hfds/NAME, and no folder."""
    return text.partition("/")[0].lower() in PACKAGES and not os.path.exists(text)


def _open_folder(root: Path, train_split: str, val_split: str | None) -> Source:
    if train_split == val_split:
        raise UserError(f"{root}: training and validation split are both {train_split!r}; they must differ")
    if (root / TRAIN).is_file():
        return IlsvrcSource(root)
    if parquet_shards(root):
        return ParquetSource(root, train_split)
    if webdataset_shards(root):
        return WebdatasetSource(root, train_split)
    if (root / train_split).is_dir() or is_flat(root, train_split) or folders_in(root):
        return FolderSource(root, train_split, val_split)
    if any(root.glob("*_images.*")):
        raise UserError(
            f"{root}: prepared images without their {MANIFEST}: the preparation was not finished, or the folder was copied in"
            " part; give the command again that prepared it, or copy it again"
        )
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    raise UserError(f"{root}: none of the known forms; found {quote_names(names) or 'nothing'}, allowed are {FORMS}")
