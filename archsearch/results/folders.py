"""The folders of runs: which there are, what in one is the run's own, removing and renaming them."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from archsearch.errors import UserError, shown
from archsearch.results.files import damage_is_an_error, write_parquet
from archsearch.results.manifest import (
    DATABASE_FILE,
    LOCK_FILE,
    LOG_FILE,
    MANIFEST_FILE,
    SPACE_FILE,
    read_manifest,
    replace_derived,
    run_state,
    study_name,
    write_manifest,
)
from archsearch.results.schema import FRONT_FILE, TRIALS_FILE
from archsearch.system import flocked

# What a report's page and trackers write into the folder.
PAGE_FILE, MLFLOW_FILE = "report.html", "mlflow.db"
TENSORBOARD_FOLDER, WANDB_FOLDER, MLFLOW_FOLDER = "tensorboard", "wandb", "mlflow-artifacts"
_BESIDE = (PAGE_FILE, MLFLOW_FILE)
_FOLDERS = (TENSORBOARD_FOLDER, WANDB_FOLDER, MLFLOW_FOLDER)
# By one of these a folder is taken for that of a run, though others may be lost.
_TRACES = (MANIFEST_FILE, TRIALS_FILE, DATABASE_FILE)
_OUTPUT = "--output"
# The lock's own file last: as long as it is there no driver begins in the folder.
_LAST = (MANIFEST_FILE, LOCK_FILE)
# A report that looks whether anyone is at work holds the lock for a moment.
_LOCK_PATIENCE_S = 0.2


def run_folders(root: Path) -> list[Path]:
    """The folders of runs under `root`, damaged ones too, the one that was written last first."""
    try:
        entries = list(os.scandir(root))
    except FileNotFoundError:
        return []
    folders = [root / entry.name for entry in entries if entry.is_dir()]
    return sorted(filter(is_run_folder, folders), key=lambda folder: (-_written_at(folder), folder.name))


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run, which may be damaged; also of a folder that may not be read."""
    try:
        return not set(os.listdir(folder)).isdisjoint(_TRACES)
    except PermissionError:
        return True
    except OSError:
        return False


def _written_at(folder: Path) -> int:
    for path in (folder / MANIFEST_FILE, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime_ns
    return 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, links not followed."""
    sizes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                sizes += os.lstat(os.path.join(place, name)).st_size
    return sizes


def other_entries(folder: Path) -> list[str]:
    """Names of what lies in a run's folder and is not the run's own, such as an exported network."""
    own = _own_entries(folder)
    return sorted(name for name in os.listdir(folder) if name not in own)


def _own_entries(folder: Path) -> set[str]:
    """Names of what the run itself wrote, its copies of files of blocks among them where the manifest can be read."""
    blocks: Mapping[str, Any] = {}
    with contextlib.suppress(UserError):
        found = read_manifest(folder).get("blocks")
        blocks = found if isinstance(found, dict) else {}
    names = {
        MANIFEST_FILE,
        LOCK_FILE,
        TRIALS_FILE,
        FRONT_FILE,
        DATABASE_FILE,
        SPACE_FILE,
        LOG_FILE,
        *_BESIDE,
        *map(os.path.basename, blocks),
    }
    names |= {f".{name}.new" for name in names}  # of a `replace_file` that was killed
    return {
        entry.name
        for entry in os.scandir(folder)
        if (
            entry.name in _FOLDERS
            if entry.is_dir(follow_symlinks=False)
            else entry.name in names or entry.name.startswith((f"{DATABASE_FILE}-", f"{DATABASE_FILE}.lost"))
        )
    }


def refuse_at_work(folder: Path) -> None:
    """Raise UserError where a driver is at work in the folder, and as `remove_run` does for what is no run."""
    if run_state(_checked(folder), {"state": "running"}) == "running" and sys.platform != "win32":
        raise _at_work_error(folder)


def _at_work_error(folder: Path) -> UserError:
    return UserError(f"{folder}: archsearch is at work in this run; wait for it, or end it with Ctrl-C")


def remove_run(folder: Path) -> list[str]:
    """Remove a run's files, and the folder where nothing else lies in it; returns the names of what does.

    Raises UserError where a driver is at work in it, where it is no run or only a link to one, and where it cannot be removed.
    """
    folder = _checked(folder)
    with _unused(folder), _changing(folder):
        others, own = other_entries(folder), _own_entries(folder)
        for name in sorted(own, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
            shutil.rmtree(folder / name) if name in _FOLDERS else (folder / name).unlink()
        if not others:
            folder.rmdir()
    return others


def rename_run(folder: Path, name: str) -> Path:
    """Give a run's folder another name beside its old one; its study keeps the old one, and the command in its manifest goes on with the new folder.

    Raises UserError as `remove_run` does, for a name that is none, and where there is something of this name.
    """
    folder = _checked(folder)
    _check_name(name)
    renamed = folder.with_name(name)
    if os.path.lexists(renamed):
        raise UserError(f"{renamed}: is there already; choose another name")
    with damage_is_an_error(folder):
        manifest = read_manifest(folder)
        document = {**manifest, "name": name, "study": study_name(manifest)}
        document["command"] = _with_output(manifest["command"], renamed)
        storage = str(manifest.get("storage"))
        if os.path.abspath(storage) == os.path.abspath(folder / DATABASE_FILE):
            document["storage"] = str(Path(storage).parent.with_name(name) / DATABASE_FILE)
    about = (folder / MANIFEST_FILE).stat()
    if not os.access(folder, os.W_OK):
        raise _unwritable_error(folder)
    with _unused(folder), _changing(folder):
        folder.rename(renamed)
        try:
            for file in (TRIALS_FILE, FRONT_FILE):
                _write_name(renamed / file, name)
            write_manifest(document, renamed)
        except UserError:  # the disk is full
            renamed.rename(folder)
            raise
        # The latest run stays the latest.
        os.utime(renamed / MANIFEST_FILE, ns=(about.st_atime_ns, about.st_mtime_ns))
    return renamed


def _with_output(command: Sequence[str], folder: Path) -> list[str]:
    """The command with this folder as its --output."""
    words: list[str] = []
    for place, word in enumerate(command):
        is_value = place > 0 and command[place - 1] == _OUTPUT
        if word != _OUTPUT and not is_value and not word.startswith(f"{_OUTPUT}="):
            words.append(word)
    return [*words, _OUTPUT, str(folder)]


def _write_name(path: Path, name: str) -> None:
    """Write the run's name into the column `run` of a parquet file; a file that is missing, damaged or without the column stays as it is."""
    try:
        with path.open("rb") as opened:
            table = pq.ParquetFile(opened).read()
        place = table.column_names.index("run")
        column = pc.if_else(pc.is_valid(table.column(place)), name, pa.scalar(None, pa.string()))
        table = table.set_column(place, table.field(place), column)
    except (pa.ArrowException, OSError, ValueError):
        return
    replace_derived(path, lambda temporary: write_parquet(table, temporary))


def _check_name(name: str) -> None:
    """Raise UserError for what is no name of a folder, or could not be written as RUN or RUN:TRIAL."""
    if not name.isprintable() or not name.strip() or name[0] in ".-" or any(sign in name for sign in '/\\:"'):
        raise UserError(
            f"{shown(name)}: not a name for a run; write a name without /, \\, : and quotes that begins with neither . nor -"
        )


def _checked(folder: Path) -> Path:
    """The folder by a path that ends with its name. Raises UserError for a link, and for what is no run."""
    if folder.is_symlink():
        raise UserError(
            f"{folder}: is a link to {os.readlink(folder)}; name the folder itself, or remove the link by hand"
        )
    if not is_run_folder(folder):
        raise UserError(f"{folder}: not the folder of a run; `archsearch runs` lists those under results")
    return Path(os.path.abspath(folder)) if folder.name in ("", "..") else folder


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """What the system refuses as a UserError."""
    try:
        yield
    except OSError as error:
        raise _unwritable_error(error.filename or folder, error.strerror or str(error)) from error


def _unwritable_error(path: Path | str, reason: str = "Permission denied") -> UserError:
    return UserError(f"{path}: cannot be changed ({reason}); make it writable")


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[None]:
    """Keep drivers out of the folder meanwhile. Raises UserError where one is at work in it."""
    if sys.platform == "win32":  # which has no such lock, and would neither remove nor rename what is open
        yield
        return
    with _changing(folder):
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        with flocked(descriptor, wait=False, patience_s=_LOCK_PATIENCE_S) as is_free:
            if not is_free:
                raise _at_work_error(folder)
            yield
    finally:
        os.close(descriptor)
