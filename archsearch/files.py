"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from archsearch.errors import UserError


def replace_file(path: Path, write: Callable[[Path], object], *, kept: str = "") -> None:
    """Write beside `path`, then rename: a reader, a full disk or a kill never meets half a file.

    Raises UserError where that is impossible; `kept` says what is not lost by it.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        safe = f"{kept}: " if kept else ""
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); {safe}"
            "make room or make the folder writable, then give the same command again"
        ) from error
