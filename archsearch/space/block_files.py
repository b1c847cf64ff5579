"""The files of blocks that a space names: beside the space file, or as a run keeps copies of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from archsearch.blocks import BlockFile, read_block_file, register_file
from archsearch.errors import UserError
from archsearch.space.grammar import Document, block_paths
from archsearch.system import user_path


def block_files(document: Document, source: str) -> tuple[BlockFile, ...]:
    """The files under the key `blocks` of a space file at `source`, whose folder they are relative to.

    Raises UserError where one cannot be read, and where two have the same name: a run keeps them side by side.
    """
    files = [
        read_block_file(Path(source).parent / user_path(path), f"{source}: blocks: ")
        for path in block_paths(document, source)
    ]
    names = [file.name for file in files]
    for index, file in enumerate(files):
        if file.name in names[:index]:
            first = files[names.index(file.name)]
            raise UserError(f"{source}: blocks: {first.path} and {file.path} have the same name; rename one of the two")
    return tuple(files)


def register_files(files: Iterable[BlockFile]) -> None:
    """Run files of blocks that have not been run in this process. Raises UserError where one is wrong."""
    for file in files:
        register_file(file)


def stored_block_files(folder: Path, manifest: Mapping[str, Any]) -> tuple[BlockFile, ...]:
    """A run's copies of its space's files of blocks. Raises UserError for one that is not what the run began with."""
    files = []
    for name, sha256 in manifest.get("blocks", {}).items():
        file = read_block_file(folder / Path(name).name)
        files.append(file)
        if file.sha256 != sha256:
            raise UserError(
                f"{file.path}: is not the file of blocks that the run began with; give the run's `archsearch run` command again "
                "to have it written from the run's storage"
            )
    return tuple(files)
