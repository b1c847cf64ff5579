"""A study on PostgreSQL: one driver at a time, by a lock in the database, and patience with a connection that breaks or a server that restarts.

Each operation of the storage is one transaction. Where its connection breaks, it is tried anew as a whole. The answer to a commit may be what was
lost, so every operation leaves the same when it is done twice: attributes are set to the same value, and a trial or a study that was created,
and a trial that was ended, is known again.
"""

import functools
import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, ParamSpec, TypeVar

import sqlalchemy
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import NullPool

from archsearch.errors import UserError, one_line
from archsearch.search.study.server_lock import LostConnectionError, ServerLock
from archsearch.search.study.storage import TRY, RunStorage, literal_url
from archsearch.system import Say
from archsearch.units import format_seconds

Given = ParamSpec("Given")
Result = TypeVar("Result")

# Waits between two tries double from the first to the longest, and are shortened by chance, so that many drivers do not come at once.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_POLL_S = 0.1  # how long a Ctrl-C may go unnoticed in a wait
# Of libpq. A machine that has gone answers nothing; without these a connection to it would be waited for by the hour.
_CONNECTION = {
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
_LIBPQ_DRIVERS = ("psycopg", "psycopg2")
# SQLSTATE of a connection that broke, and of a server that is stopped, has crashed or is starting.
_LOST = ("08", "57P")


class _Try(threading.local):
    is_inside = False  # of an operation: what it calls is a part of it
    is_repeated = False  # an earlier try may have been stored, though its answer was lost


class PostgresStorage(RunStorage):
    """`RunStorage` on a server: a lost connection is waited for up to `patience_s`; `say` hears once that it is, and once when the run goes on.

    The first connection is not waited for: a wrong address or password is to be seen at once. After the wait operations raise UserError, and
    KeyboardInterrupt where `stop_waiting` ended it; so do all later ones, at once.
    """

    def __init__(self, url: str, *, where: str, patience_s: float, say: Say) -> None:
        self._where, self._patience_s, self._say = where, patience_s, say
        self._try = _Try()
        self._end: BaseException | None = None  # why this driver may no longer read or write
        settings = _settings(sqlalchemy.make_url(url))
        engine = sqlalchemy.create_engine(
            url, connect_args=settings, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True
        )
        # It would print the traceback of a connection that breaks while it is given back; the next operation says what matters.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        self._lock = ServerLock(engine, where)
        try:
            with self._lock.creating_tables():
                super().__init__(literal_url(url), engine_kwargs={"connect_args": settings, "hide_parameters": True})
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise
        for one in (engine, self.engine):
            event.listen(one, "handle_error", _raise_lost)

    def lock_study(self, name: str) -> None:
        """Take the lock that keeps other drivers from a study. Raises UserError with who has it, and since when."""
        self._perform(functools.partial(self._lock.take, name))

    def close(self) -> None:
        """Close every connection; the lock ends."""
        self._lock.close()
        super().close()

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna does it; a study that an earlier try created is that one."""
        if self._try.is_repeated and study_name in [study.study_name for study in self.get_all_studies()]:
            return self.get_study_id_from_name(str(study_name))
        return super().create_new_study(directions, study_name)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna does it; a trial that an earlier try gave this state has it."""
        if self._try.is_repeated and self.get_trial(trial_id).state == state:
            return True
        return super().set_trial_state_values(trial_id, state, values)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is not None:
            template_trial = copy(template_trial)
            template_trial._system_attrs = {**template_trial.system_attrs, TRY: uuid.uuid4().hex}
        return self._perform(functools.partial(super()._create_new_trial, study_id, template_trial))

    def _insert_trial(self, connection: Connection, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        if self._try.is_repeated:
            table, trials = models.TrialSystemAttributeModel, models.TrialModel
            is_it = (table.key == TRY) & (table.value_json == f'"{trial.system_attrs[TRY]}"')
            query = sqlalchemy.select(trials.trial_id, trials.number).join(table).where(is_it)
            found = connection.execute(query).one_or_none()
            if found is not None:
                return found.trial_id, found.number
        return super()._insert_trial(connection, study_id, trial)

    def _perform(self, operation: Callable[[], Result]) -> Result:
        """An operation's result, once there is a connection and this driver has its lock."""
        if self._try.is_inside:
            return operation()
        tries, since = 0, 0.0
        self._try.is_inside = True
        try:
            while True:
                if self._end is not None:
                    raise self._end
                try:
                    self._lock.check()
                    result = operation()
                    break
                except LostConnectionError as lost:
                    since = since or time.monotonic()
                    self._wait(tries, since, lost)
                    tries += 1
                    self._try.is_repeated = True
        finally:
            self._try.is_inside = self._try.is_repeated = False
        if tries > 1:
            self._say(f"{self._where}: there again after {format_seconds(time.monotonic() - since)}; the run goes on")
        return result

    def _wait(self, tries: int, since: float, lost: LostConnectionError) -> None:
        """Wait before the next try; the first one follows at once, since a connection often breaks while the server is there."""
        self.engine.dispose()
        if tries == 0:
            return
        left_s = since + self._patience_s - time.monotonic()
        try:
            if left_s <= 0:
                raise UserError(
                    f"{self._where}: not there for {format_seconds(self._patience_s)} ({lost}); everything stored before is kept: "
                    "give the same command again when it is there, or a longer --storage-patience"
                )
            if tries == 1 and not self.stop_waiting():
                self._say(f"{self._where}: lost ({lost}); waiting for it up to {format_seconds(self._patience_s)}")
            wait_s = min(_FIRST_WAIT_S * 2 ** min(tries, 10), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
            self._sleep(min(wait_s, left_s))
        except (UserError, KeyboardInterrupt) as end:
            self._end = end
            raise

    def _sleep(self, seconds: float) -> None:
        """Sleep; raise KeyboardInterrupt as soon as `stop_waiting` says so."""
        until = time.monotonic() + seconds
        while True:
            if self.stop_waiting():
                raise KeyboardInterrupt
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(_POLL_S, left_s))


# Everything that a run, a sampler or Optuna's own cache calls, and that reads or writes.
_OPERATIONS = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_set_trial_param",
    "get_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_number_from_id",
    "_get_best_trial_id",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "_get_trials",
    "_list_trials",
    "_read_block",
    "_read_study_attrs",
    "upgrade_study",
    "add_shown",
    "write_trial",
)


def _patient(operation: Callable[Given, Result]) -> Callable[Given, Result]:
    @functools.wraps(operation)
    def performed(*given: Given.args, **named: Given.kwargs) -> Result:
        storage: Any = given[0]
        result: Result = storage._perform(functools.partial(operation, *given, **named))
        return result

    return performed


for _name in _OPERATIONS:
    setattr(PostgresStorage, _name, _patient(getattr(PostgresStorage, _name)))


def _settings(url: sqlalchemy.URL) -> dict[str, Any]:
    """How a connection is made, where its URL and the environment do not say it; by its name others see who is at work."""
    if url.get_driver_name() not in _LIBPQ_DRIVERS:
        return {}
    # PostgreSQL cuts it to 63 bytes.
    settings = {"application_name": f"archsearch {platform.node()[:40]} {os.getpid()}", **_CONNECTION}
    if "PGCONNECT_TIMEOUT" in os.environ:
        del settings["connect_timeout"]
    return {name: value for name, value in settings.items() if name not in url.query}


def _raise_lost(context: ExceptionContext) -> None:
    """Raise LostConnectionError in place of a driver's error that says so, also of one that could not connect."""
    error = context.original_exception
    if context.sqlalchemy_exception is None:
        return  # a Ctrl-C
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    is_unconnected = context.connection is None and not context.is_pre_ping
    # The server's own errors have a code; without one it is the client's, of a connection that broke in the middle of an exchange.
    is_broken = type(error).__name__ == "OperationalError" and not code
    if context.is_disconnect or is_unconnected or is_broken or code.startswith(_LOST):
        context.is_disconnect = True
        raise LostConnectionError(one_line(" ".join(str(error).split()), 200))
