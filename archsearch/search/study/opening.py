"""Opens the study of a run: the right one, whole and locked, or one sentence that says what is wrong with it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna

from archsearch.errors import UserError
from archsearch.results import DATABASE_FILE, MANIFEST_FILE, SPACE_FILE, read_manifest, read_trials, study_name
from archsearch.samplers import PredictThroughput
from archsearch.search.config import RunConfig
from archsearch.search.study.address import database_file, refuse_network_file, shown_url
from archsearch.search.study.database import (
    FileWatch,
    create_database,
    damaged_error,
    ensure_study,
    has_study,
    load_study,
    open_storage,
    run_lock,
    storage_errors,
    stored_config,
    study_attrs,
)
from archsearch.search.study.donors import Donor
from archsearch.search.study.storage import RunStorage
from archsearch.search.study.store import RunStore
from archsearch.system import Say, command_line, ignore, replace_file


@contextlib.contextmanager
def open_run(
    folder: Path,
    config: RunConfig,
    storage_url: str | None = None,
    *,
    predict: PredictThroughput | None = None,
    donors: Sequence[Donor] = (),
    patience_s: float = 0.0,
    say: Say = ignore,
) -> Iterator[RunStore]:
    """Create the run in `folder` or open the one that is there, locked against other drivers; `predict` gives the sampler images/s.

    `donors` are earlier runs to take figures from; they are stored, and need not be given again.

    A PostgreSQL server that goes away meanwhile is waited for up to `patience_s`, and `say` hears of it.

    Raises UserError when the folder holds another run or a damaged one, cannot be written, or is locked by another driver.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = shown_url(storage_url) if storage_url else str(folder / DATABASE_FILE)
    refuse_network_file(folder, storage_url)
    with run_lock(folder):
        _check_place(folder, storage_url)
        document = config.to_dict()
        if storage_url is None and not (folder / DATABASE_FILE).exists():
            create_database(folder, config.name, config.directions, document)
        with open_storage(folder, storage_url, patience_s=patience_s, say=say) as backend:
            with storage_errors(where):
                name = _shared_name(folder, config) if storage_url else None
                if name is not None:
                    backend.lock_study(name)
                    if (folder / MANIFEST_FILE).exists() and not has_study(backend, name):
                        raise _lost_error(folder, where, f"it has no study {name!r}")
                    ensure_study(backend, name, config.directions, document)
                store = _load_run(folder, config, backend, where, name, predict, donors)
            _refuse_lost_trials(folder, store)
            store.watch = FileWatch(database_file(folder, storage_url))
            _write_sources(folder, store.config)
            yield store


def _write_sources(folder: Path, config: RunConfig) -> None:
    """Write the run's copies of its space and of the files of blocks that this names."""
    for name, text in {SPACE_FILE: config.space_text, **config.blocks}.items():
        replace_file(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))


def _load_run(
    folder: Path,
    config: RunConfig,
    backend: RunStorage,
    where: str,
    name: str | None,
    predict: PredictThroughput | None,
    donors: Sequence[Donor],
) -> RunStore:
    """The store on an open storage. Raises UserError if that has another run, or an incomplete one."""
    try:
        study = load_study(backend, name)
        stored = RunConfig.from_dict(stored_config(study_attrs(backend, study)))
        _refuse_another(folder, stored, config)
        if (stored.space_text, stored.space_name) != (config.space_text, config.space_name):
            # As it was first written: samplers depend on the order of its choices.
            config = replace(config, space_text=stored.space_text, space_name=stored.space_name)
        return RunStore(folder, config, study, backend, where, predict, donors)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        raise damaged_error(where, f"{type(error).__name__}: {error}") from error


def _shared_name(folder: Path, config: RunConfig) -> str:
    """The name of the run's study in a shared database: the one it began with, where the folder was renamed."""
    try:
        return study_name(read_manifest(folder))
    except (UserError, KeyError):
        return config.name


def _refuse_another(folder: Path, stored: RunConfig, config: RunConfig) -> None:
    """Raise UserError where the folder's run is not the one that is asked for, with the options that ask for it."""
    differences = stored.differences(config)
    if differences:
        options = stored.options(config)
        same = f"go on with it by {options}" if options else "ask for the same"
        raise UserError(f"{folder}: holds another run: {'; '.join(differences)}; use another --output, or {same}")


def _check_place(folder: Path, storage_url: str | None) -> None:
    """Raise UserError where the run's trials are in another database, or are missing: no second study is started beside them."""
    database, is_run = folder / DATABASE_FILE, (folder / MANIFEST_FILE).exists()
    if storage_url is not None and database.exists():
        raise UserError(
            f"--storage: {folder} keeps its trials in {database}; leave --storage out, or use another --output"
        )
    if storage_url is None and is_run and not database.exists():
        raise _lost_error(folder, str(database), "gone")


def _refuse_lost_trials(folder: Path, store: RunStore) -> None:
    """Raise UserError where trials.parquet has trials that the study lacks: it is another one, an emptied one, or an older copy."""
    try:
        frame = read_trials(folder)[["trial", "arch_id", "started_at"]]
    except UserError:
        return  # none yet, or damaged: it will be written from the study
    stored = {row["trial"]: (row["arch_id"], row["started_at"]) for row in store.rows()}
    lost = [number for number, *rest in frame.itertuples(index=False) if stored.get(number) != tuple(rest)]
    if lost:
        raise _lost_error(
            folder, store.where, f"{len(lost)} of {len(frame)} trials are not in it, the first is trial {lost[0]}"
        )


def _lost_error(folder: Path, where: str, what: str) -> UserError:
    """The error for a run whose trials are not in its database: a second study would overwrite its files."""
    return UserError(
        f"{where}: {what}, though {folder} holds a run; put it back, give the --storage it was started with, use another --output, "
        f"or have study.db made from trials.parquet: {command_line(['runs', 'restore', str(folder)])}"
    )
