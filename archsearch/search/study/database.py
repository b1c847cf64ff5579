"""Where a run's study lies: its database file, made in one step and safe against `kill -9`, or a server; the lock of its one writer."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from archsearch.errors import UserError
from archsearch.results import Direction
from archsearch.system import flocked

DATABASE_FILE, LOCK_FILE = "study.db", "run.lock"
_CONFIG = "archsearch:config"
# Without one of these trials would be missing in silence: Optuna creates, empty, what it does not find.
_TABLES = {f"trial_{name}" for name in ("params", "values", "user_attributes", "system_attributes")} | {
    "studies",
    "study_directions",
    "study_user_attributes",
    "trials",
}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the run's folder and hold it against a second driver; the system drops the lock when we die, however we die."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror}); choose a folder of your own"
        ) from error
    try:
        with flocked(descriptor, wait=False) as is_ours:
            if not is_ours:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                raise UserError(
                    f"{folder}: another archsearch (process {holder}) is at work in this run; wait for it, or use another --output"
                )
            with contextlib.suppress(OSError):  # the number is only for the sentence above
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn what a database raises into one sentence: damaged, or not to be read or written."""
    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, StorageInternalError, OSError) as error:
        words = _words(error)
        if any(sign in words for sign in ("malformed", "not a database", "no such table", "no such column")):
            raise damaged(where, words) from error
        raise UserError(
            f"{where}: cannot be read or written ({words}); everything measured before is kept: "
            "make room or make it writable, then give the same command again"
        ) from error


def damaged(where: str, words: str) -> UserError:
    """The error for a database that is there but not whole."""
    return UserError(
        f"{where}: damaged ({words}); put a copy of it back, or move it away and start the run again, or use another --output"
    )


def _words(error: BaseException) -> str:
    """The database's own words, without SQL and its parameters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return _first_line(cause.orig if isinstance(cause, DBAPIError) and cause.orig is not None else cause or error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(url: str) -> str:
    """A storage URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError as error:
        raise UserError("--storage: not a database URL; write one such as postgresql://user@host/name") from error


@contextlib.contextmanager
def opened(folder: Path, url: str | None) -> Iterator[RDBStorage]:
    """Connect to the run's database file, or to `url`; every connection is closed at the end."""
    path = folder / DATABASE_FILE
    where = shown(url) if url else str(path)
    try:
        with storage_errors(where):
            # Optuna fills in braces of a URL as a template; a user's are meant literally.
            literal = (url or "").replace("{", "{{").replace("}", "}}")
            storage = RDBStorage(literal) if url else _file_storage(path, _prepare(path))
    except (ImportError, RuntimeError) as error:
        # The database's driver is not installed, or another Optuna made the tables.
        raise UserError(f"{where}: cannot be used ({_first_line(error)})") from error
    try:
        yield storage
    finally:
        _close(storage)


def _file_storage(path: Path, synchronous: str) -> RDBStorage:
    """Optuna's storage on a file, opened by ourselves: a URL cannot carry every path, nor the pragma."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        return connection

    return RDBStorage(f"sqlite:///{DATABASE_FILE}", engine_kwargs={"creator": connect})


def _prepare(path: Path) -> str:
    """Check the whole file and turn on write-ahead logging; returns how often to wait for the disk.

    With the log NORMAL: no wait a commit. A kill loses nothing, a power cut the last trials at worst, and never the file.
    Network file systems have no such log: FULL.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if verdict != "ok" or not tables >= _TABLES:
            raise damaged(str(path), verdict if verdict != "ok" else f"it lacks the table {min(_TABLES - tables)}")
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
        # Fails here and now on a read-only file.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        is_wal = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        return "NORMAL" if is_wal else "FULL"
    finally:
        connection.close()


def create_database(folder: Path, name: str, directions: Sequence[Direction], config: Mapping[str, Any]) -> None:
    """Make study.db with its study beside the final name, then rename: once it is there, it is whole."""
    path, temporary = folder / DATABASE_FILE, folder / f".{DATABASE_FILE}.new"
    with storage_errors(str(path)):
        # A log left by a database of that name would be played into the new one.
        for leftover in (temporary, Path(f"{temporary}-journal"), Path(f"{path}-wal"), Path(f"{path}-shm")):
            leftover.unlink(missing_ok=True)
        # One wait for the disk at the end instead of one a table.
        storage = _file_storage(temporary, "OFF")
        try:
            _create_study(storage, name, directions, config)
        finally:
            _close(storage)
        _replace_durably(temporary, path)


def _replace_durably(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


def _create_study(storage: RDBStorage, name: str, directions: Sequence[Direction], config: Mapping[str, Any]) -> None:
    study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
    study.set_user_attr(_CONFIG, dict(config))


def load_study(storage: RDBStorage, name: str | None) -> optuna.Study:
    """The study of that name, or the only one (a folder may have been renamed)."""
    names = optuna.get_all_study_names(storage)
    if name is None and len(names) != 1:
        raise ValueError(f"it holds {len(names)} studies instead of one")
    return optuna.load_study(storage=storage, study_name=name or names[0])


def ensure_study(storage: RDBStorage, name: str, directions: Sequence[Direction], config: Mapping[str, Any]) -> None:
    """Create the study in a shared storage unless it is there. Raises UserError when one of that name is no run of ours."""
    if name not in optuna.get_all_study_names(storage):
        _create_study(storage, name, directions, config)
    study = load_study(storage, name)
    if _CONFIG not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise UserError(
                f"--storage: holds a study {name!r} that is not a run of archsearch; use another --output name"
            )
        # We died between the two steps of creating it.
        study.set_user_attr(_CONFIG, dict(config))


def stored_config(study: optuna.Study) -> dict[str, Any]:
    """The configuration the study was created with."""
    config = study.user_attrs[_CONFIG]
    assert isinstance(config, dict)
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # a dict in, a dict out


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
