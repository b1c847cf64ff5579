"""Layers of one's own in a Python file outside the package: read, run once, and registered."""

import hashlib
import linecache
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from archsearch.blocks.base import Layer
from archsearch.blocks.registry import _REGISTRY, installed_packages, registering
from archsearch.errors import UserError, first_line
from archsearch.system import read_text, user_path


class BlockFile(NamedTuple):
    """A file of layers: its path, which error sentences show, and its text, which is what makes it the same file elsewhere."""

    path: str
    text: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


# The layers of the texts that have been run: a copy of a file, as in a run's folder, is the same file.
_LOADED: dict[str, tuple[type[Layer], ...]] = {}


def load_blocks(path: str | Path) -> tuple[type[Layer], ...]:
    """Register the layers of a Python file, whose code is run; a second call does nothing.

    Raises UserError where the file cannot be read or run, registers nothing, or registers a kind that there is already.
    """
    return register_file(read_block_file(user_path(path)))


def read_block_file(path: Path, where: str = "") -> BlockFile:
    """The file as text. Raises UserError, which begins with `where`, for what is no readable file that ends in .py."""
    if path.suffix != ".py":
        raise UserError(f"{where}{path}: no Python file; a file of blocks ends in .py")
    if not os.path.exists(path):
        raise UserError(f"{where}{path}: no such file of blocks")
    return BlockFile(str(path), read_text(path, "a file of blocks"))


def register_file(file: BlockFile) -> tuple[type[Layer], ...]:
    """Run the file's text, unless it has been run or imported in this process, and return the layers that it registers. Raises as `load_blocks`."""
    installed_packages()  # first, so that a kind that both bring is this file's mistake in every process
    layers = _LOADED.get(file.text) or _imported_from(file.path)
    if not layers:
        with registering() as added:
            _run(file)
        layers = tuple(added)
    if not layers:
        raise UserError(f"{file.path}: registers no layer; write @register above the class of a block")
    return _LOADED.setdefault(file.text, layers)


def files_of(layers: Iterable[type[Layer]]) -> tuple[BlockFile, ...]:
    """The files, as `register_file` has run them, of those of these layers that came from one."""
    wanted = {layer for layer in layers if layer.__module__.startswith(_MODULE)}
    found = [(text, wanted.intersection(added)) for text, added in _LOADED.items()]
    return tuple(
        BlockFile(sys.modules[next(iter(some)).__module__].__file__ or "", text) for text, some in found if some
    )


def _imported_from(path: str) -> tuple[type[Layer], ...]:
    """Layers of a module of an installed package, or of this one, whose file this is."""
    resolved = str(Path(path).resolve())
    files = {
        layer: getattr(sys.modules.get(layer.__module__), "__file__", None) for layer in _REGISTRY.values()
    }  # absolute, as the import system gives them
    return tuple(
        layer for layer, file in files.items() if file == resolved and not layer.__module__.startswith(_MODULE)
    )


_MODULE = "archsearch_blocks_"


def _run(file: BlockFile) -> None:
    """Run the text as a module of its own. Raises UserError with the line where the file is wrong."""
    module = ModuleType(_MODULE + file.sha256[:12])
    module.__file__ = file.path
    sys.modules[module.__name__] = module  # where dataclasses and type hints look names up
    # Tracebacks, torch.compile and others who read source find the text that was run, also where no such file lies.
    linecache.cache[file.path] = (len(file.text), None, file.text.splitlines(keepends=True), file.path)
    try:
        exec(compile(file.text, file.path, "exec", dont_inherit=True), vars(module))  # noqa: S102  # the user's own code: what the file is for
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, SyntaxError):
            what = error.msg  # without the place, which stands before it
        raise UserError(f"{file.path}{_line_of(error, file.path)}: {what}") from error


def _line_of(error: BaseException, path: str) -> str:
    """`, line 12`: the line of the file at which an error came; nothing where it is not known."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""
