"""The database of a run's study (a SQLite file, safe against `kill -9`, or a server), and the lock of its one writer."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._rdb.models import NOT_FOUND_MSG
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from archsearch.errors import UserError, first_line
from archsearch.results import DATABASE_FILE, LOCK_FILE, TRIALS_FILE, Direction
from archsearch.search.study.address import driver_url, shown_url
from archsearch.search.study.server import PostgresStorage
from archsearch.search.study.storage import RunStorage, literal_url
from archsearch.search.study.upgrade import CONFIG
from archsearch.system import Say, command_line, flocked, ignore, replace_file

_NO_RIGHT = "42501"  # PostgreSQL's code of insufficient_privilege
# A report that looks whether anyone is at work holds the lock for a moment.
_LOCK_PATIENCE_S = 0.2
# Checked for, since Optuna creates a missing table, empty, and trials would be lost in silence.
_TABLES = {"studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials"}
_TABLES |= {f"trial_{name}" for name in ("params", "values", "user_attributes", "system_attributes")}


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Make the run's folder and lock it against a second driver; the lock ends with this process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror}); choose a folder of your own"
        ) from error
    try:
        with flocked(descriptor, wait=False, patience_s=_LOCK_PATIENCE_S) as is_locked:
            if not is_locked:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                raise UserError(
                    f"{folder}: another archsearch (process {holder}) is at work in this run; wait for it, or use another --output"
                )
            with contextlib.suppress(OSError):  # the process id is only for the message above
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn what a database raises into a UserError: damaged, or cannot be read or written."""
    try:
        yield
    except (UpdateFinishedTrialError, KeyError) as error:
        if isinstance(error, KeyError) and NOT_FOUND_MSG not in error.args:
            raise
        raise UserError(
            f"{where}: another program changed the run's study meanwhile ({first_line(error)}); keep others from writing to it, "
            "then give the same command again"
        ) from error
    except (sqlite3.Error, SQLAlchemyError, StorageInternalError, OSError) as error:
        # The message of the database itself, without SQL and its parameters.
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        inner = cause.orig if isinstance(cause, DBAPIError) and cause.orig is not None else cause or error
        text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(inner)
        if any(sign in text for sign in ("malformed", "not a database", "no such table", "no such column")):
            raise damaged_error(where, text) from error
        raise UserError(
            f"{where}: cannot be read or written ({text}); everything measured before is kept: "
            f"{_advice(inner)}, then give the same command again"
        ) from error


def _advice(error: BaseException) -> str:
    """What helps against a database's error."""
    if getattr(error, "sqlstate", None) == _NO_RIGHT:
        return (
            "have the database's owner grant you the right to create tables in its schema, and to read and write them"
        )
    return "make room or make it writable"


def damaged_error(where: str, text: str) -> UserError:
    """The error for a database that exists but is incomplete or unreadable."""
    return UserError(
        f"{where}: damaged ({text}); put a copy of it back, or move it away and start the run again, or use another --output"
    )


@contextlib.contextmanager
def open_storage(folder: Path, url: str | None, *, patience_s: float = 0.0, say: Say = ignore) -> Iterator[RunStorage]:
    """Connect to the run's database file, or to `url`; every connection is closed at the end. For the last two see `PostgresStorage`."""
    path = folder / DATABASE_FILE
    where = shown_url(url) if url else str(path)
    try:
        with storage_errors(where):
            storage = _url_storage(url, where, patience_s, say) if url else _file_storage(path, _check_file(path))
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        # The database's driver is not installed or takes no such setting, or another version of Optuna made the tables.
        raise UserError(f"{where}: cannot be used ({first_line(error)})") from error
    try:
        yield storage
    finally:
        storage.close()


def _url_storage(url: str, where: str, patience_s: float, say: Say) -> RunStorage:
    """Optuna's storage at an address."""
    reached = driver_url(url)
    if reached.startswith("postgresql"):
        return PostgresStorage(reached, where=where, patience_s=patience_s, say=say)
    return RunStorage(literal_url(reached))


def _file_storage(path: Path, synchronous: str) -> RunStorage:
    """Optuna's storage on a file. We connect ourselves, since a URL can hold neither every path nor the pragma."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        return connection

    return RunStorage(f"sqlite:///{DATABASE_FILE}", engine_kwargs={"creator": connect})


def _check_file(path: Path) -> str:
    """Check the whole file and turn on write-ahead logging; returns the mode for SQLite's `synchronous`.

    With the log it is NORMAL, which does not wait for the disk at a commit: a kill loses nothing, a power cut at worst the last
    trials, and never the file. Where the log is not available, as on network file systems, it is FULL.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if verdict != "ok" or not tables >= _TABLES:
            raise damaged_error(
                str(path), verdict if verdict != "ok" else f"it lacks the table {min(_TABLES - tables)}"
            )
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
        # Fails at once on a read-only file.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        is_wal = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        return "NORMAL" if is_wal else "FULL"
    finally:
        connection.close()


def create_database(
    folder: Path,
    name: str,
    directions: Sequence[Direction],
    config: Mapping[str, Any],
    fill: Callable[[optuna.Study], object] = lambda study: None,
) -> None:
    """Create study.db with its study, filled by `fill`, under a temporary name, then rename it: a file of the final name is always complete."""
    path = folder / DATABASE_FILE

    def write(temporary: Path) -> None:
        # SQLite would replay the log of an earlier database of the same name into the new one.
        for leftover in (temporary, Path(f"{temporary}-journal"), Path(f"{path}-wal"), Path(f"{path}-shm")):
            leftover.unlink(missing_ok=True)
        # Wait for the disk once at the end, instead of once a table.
        storage = _file_storage(temporary, "OFF")
        try:
            fill(_create_study(storage, name, directions, config))
        finally:
            storage.close()
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())

    with storage_errors(str(path)):
        replace_file(path, write)


def _create_study(
    storage: RunStorage, name: str, directions: Sequence[Direction], config: Mapping[str, Any]
) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
    set_study_attr(study, CONFIG, dict(config))
    return study


def set_study_attr(study: optuna.Study, key: str, value: Any) -> None:
    """Store an attribute of the engine's own, or a note, as a system attribute: Optuna's tools do not list those."""
    study._storage.set_study_system_attr(study._study_id, key, value)


def load_study(storage: RunStorage, name: str | None) -> optuna.Study:
    """The study of that name or, without one, the only one: the folder may have been renamed. Raises ValueError if there are several."""
    names = optuna.get_all_study_names(storage)
    if name is None and len(names) != 1:
        raise ValueError(f"it holds {len(names)} studies instead of one")
    return optuna.load_study(storage=storage, study_name=name or names[0])


def has_study(storage: RunStorage, name: str) -> bool:
    """Whether a storage has a study of this name."""
    return name in optuna.get_all_study_names(storage)


def ensure_study(storage: RunStorage, name: str, directions: Sequence[Direction], config: Mapping[str, Any]) -> None:
    """Create the study in a shared storage unless it exists. Raises UserError when a study of that name is not a run of archsearch."""
    if not has_study(storage, name):
        _create_study(storage, name, directions, config)
    study = load_study(storage, name)
    if CONFIG not in study_attrs(storage, study):
        if study.get_trials(deepcopy=False):
            raise UserError(
                f"--storage: holds a study {name!r} that is not a run of archsearch; use another --output name"
            )
        # A driver died between the two steps of creating it.
        set_study_attr(study, CONFIG, dict(config))


def study_attrs(storage: RunStorage, study: optuna.Study) -> dict[str, Any]:
    """The attributes of a study, the engine's own too, which were user attributes in earlier versions."""
    return {**study.user_attrs, **storage.read_study_attrs(study._study_id)}


def stored_config(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a study was created with, by its attributes."""
    config = attrs[CONFIG]
    assert isinstance(config, dict)
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # a dict in, a dict out


class FileWatch:
    """Notices that a file was deleted or replaced: SQLite would go on writing to the deleted one, and what it writes would be lost."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._id = path, path and _file_id(path)

    def check(self, folder: Path) -> None:
        """Raise UserError where the file is not the one there was."""
        if self._path is not None and _file_id(self._path) != self._id:
            raise UserError(
                f"{self._path}: deleted or replaced while the run works; what it measured is in {folder / TRIALS_FILE}: put the file back, "
                f"or have it made again: {command_line(['runs', 'restore', str(folder)])}"
            )


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
