"""Optuna's storage, read and written in a way that stands tens of thousands of trials; the tables, and what is in them, are Optuna's own.

Optuna reads a study in one go, with an object for every parameter, every distribution and every attribute. Here it is read in blocks of plain
rows, equal distributions are one object, and the attributes that no sampler reads stay in the database: the engine's own, which `read_records` and
`read_study_attrs` give, and those that are only shown.
Optuna writes with a query and a statement for every parameter and attribute of a trial. Here a table's rows are written by one statement.
"""

import json
import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import inf, nan
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, bindparam

from archsearch.samplers import DESCRIBED
from archsearch.search.study.rows import OWN, split_attrs
from archsearch.search.study.shown import NOTES, SHOWN
from archsearch.search.study.upgrade import upgrade

# The key by which a trial is known again where the answer to its creation was lost.
TRY = f"{OWN}try"
_BLOCK = 500  # trials read by one set of queries; a database allows so many numbers in one


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trial with every attribute that a run or a person stored with it, the engine's own without the `OWN` before their keys."""

    number: int
    trial_id: int
    state: TrialState
    attrs: dict[str, Any]


class RunStorage(RDBStorage):
    """Gives samplers trials without the attributes that they do not read: the architecture, what was measured and how the trial ended."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._compatible: dict[tuple[int, str], str] = {}  # distributions that were compared, by study and name
        self._created: dict[int, int] = {}  # numbers of the trials that were created here, by id

    stop_waiting: Callable[[], bool] = staticmethod(lambda: False)  # asked while a lost connection is waited for

    def lock_study(self, name: str) -> None:
        """Keep other drivers from a study until `close`. A file needs nothing more than the lock of the run's folder."""

    def close(self) -> None:
        """Close every connection."""
        self.remove_session()
        self.engine.dispose()

    def read_records(self, study_id: int, trial_ids: Collection[int] | None = None) -> Iterator[Record]:
        """The trials of a study, or those of these ids, in order, with all their attributes; one block after the other is held in memory."""
        for block in _blocks(self._list_trials(study_id, trial_ids)):
            yield from self._read_block(block)

    def _list_trials(self, study_id: int, trial_ids: Collection[int] | None) -> Sequence[Any]:
        """Id, number and state of these trials."""
        table = models.TrialModel
        query = sqlalchemy.select(table.trial_id, table.number, table.state).where(table.study_id == study_id)
        if trial_ids is not None:
            query = query.where(table.trial_id.in_(trial_ids))
        with self.engine.connect() as connection:
            return connection.execute(query.order_by(table.trial_id)).all()

    def _read_block(self, rows: Sequence[Any]) -> list[Record]:
        ids, system_key = [row.trial_id for row in rows], models.TrialSystemAttributeModel.key
        with self.engine.connect() as connection:
            users = _read_json(connection, models.TrialUserAttributeModel, ids)
            own = _read_json(connection, models.TrialSystemAttributeModel, ids, system_key.startswith(OWN))
        found = {
            number: users.get(number, {}) | {key.removeprefix(OWN): value for key, value in own.get(number, {}).items()}
            for number in ids
        }
        return [
            Record(number=row.number, trial_id=row.trial_id, state=row.state, attrs=found[row.trial_id]) for row in rows
        ]

    def read_study_attrs(self, study_id: int) -> dict[str, Any]:
        """All system attributes of a study, the engine's own and the notes with them."""
        return self._read_study_attrs(study_id)

    def _read_study_attrs(self, study_id: int, *conditions: Any) -> dict[str, Any]:
        table = models.StudySystemAttributeModel
        query = sqlalchemy.select(table.key, table.value_json).where(table.study_id == study_id, *conditions)
        with self.engine.connect() as connection:
            return {row.key: json.loads(row.value_json) for row in connection.execute(query)}

    def upgrade_study(self, study_id: int) -> bool:
        """Bring a study that an earlier version began to the present form; whether it was one."""
        with self.engine.begin() as connection:
            return upgrade(connection, study_id)

    def add_shown(self, attrs: Mapping[int, Mapping[str, Any]]) -> None:
        """Store user attributes of trials by id, ended ones too, which Optuna itself refuses to change."""
        with self.engine.begin() as connection:
            for block in _blocks(list(attrs)):
                there = _read_json(connection, models.TrialUserAttributeModel, block)
                for number in block:
                    new = {key: json.dumps(value) for key, value in attrs[number].items()}
                    _USER.write(connection, number, new, dict.fromkeys(there.get(number, ()), ""))

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """The number of a trial; Optuna would read all that is stored of it."""
        if trial_id in self._created:
            return self._created[trial_id]
        with self.engine.connect() as connection:
            return int(connection.execute(_NUMBER, {"of_trial": trial_id}).scalar_one())

    def write_trial(
        self,
        trial_id: int,
        attrs: Mapping[str, Any],
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        """Store attributes of a trial that has not ended and, with the `state` in which it ends, its values, in one transaction.

        Raises as Optuna does: KeyError for a trial that is not there, UpdateFinishedTrialError for one that has ended.
        """
        tables = [
            (table, {key: json.dumps(value) for key, value in part.items()})
            for table, part in zip((_USER, _SYSTEM), split_attrs(attrs), strict=True)
        ]
        with self.engine.begin() as connection:
            before = connection.execute(_STATE, {"of_trial": trial_id}).scalar()
            if before is None:
                raise KeyError(models.NOT_FOUND_MSG)
            there = [table.read(connection, trial_id) for table, _ in tables]
            if before == state and all(
                texts.items() <= old.items() for (_, texts), old in zip(tables, there, strict=True)
            ):
                return  # written by an earlier try, whose answer was lost
            self.check_trial_is_updatable(trial_id, before)
            for (table, texts), old in zip(tables, there, strict=True):
                table.write(connection, trial_id, texts, old)
            if state is not None:
                ended_at = datetime.now(UTC).replace(tzinfo=None)
                connection.execute(_END, {"of_trial": trial_id, "state": state, "datetime_complete": ended_at})
            _insert(connection, _table(models.TrialValueModel), _value_rows(trial_id, values or ()))

    # What Optuna itself calls.

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Without the engine's own attributes and the notes: samplers read all others at every proposal."""
        key = models.StudySystemAttributeModel.key
        return self._read_study_attrs(study_id, ~key.startswith(OWN), ~key.startswith(NOTES))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is None:  # not one of the run's own
            return super()._create_new_trial(study_id)
        assert not template_trial.intermediate_values, "TPE raises on them in studies of several objectives"
        with self.engine.begin() as connection:
            # Locked, as Optuna does it, since a trial is numbered by those that are there.
            if connection.execute(_STUDY, {"of_study": study_id}).scalar() is None:
                raise KeyError(models.NOT_FOUND_MSG)
            trial = copy(template_trial)
            trial._trial_id, trial.number = self._insert_trial(connection, study_id, trial)
        self._created[trial._trial_id] = trial.number
        trial._user_attrs = {key: value for key, value in trial.user_attrs.items() if key not in SHOWN}
        read = {key for key in trial.system_attrs if key == DESCRIBED or not key.startswith(OWN)}
        trial._system_attrs = {key: value for key, value in trial.system_attrs.items() if key in read}
        return trial

    def _insert_trial(self, connection: Connection, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        """Store a whole trial; returns its id and number."""
        times = {"datetime_start": _utc(trial.datetime_start), "datetime_complete": _utc(trial.datetime_complete)}
        inserted = connection.execute(_TRIALS.insert(), {"study_id": study_id, "state": trial.state, **times})
        assert inserted.inserted_primary_key is not None, "the table's key is numbered by the database"
        trial_id = int(inserted.inserted_primary_key[0])
        number = int(connection.execute(_COUNT, {"of_study": study_id, "of_trial": trial_id}).scalar_one())
        connection.execute(_SET_NUMBER, {"of_trial": trial_id, "number": number})
        texts = {name: distribution_to_json(distribution) for name, distribution in trial.distributions.items()}
        self._check_compatible(connection, study_id, texts)
        params = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": texts[name],
            }
            for name, value in trial.params.items()
        ]
        _insert(connection, _table(models.TrialParamModel), params)
        for attributes, attrs in ((_USER, trial.user_attrs), (_SYSTEM, trial.system_attrs)):
            attributes.write(connection, trial_id, {key: json.dumps(attrs[key]) for key in attrs}, {})
        _insert(connection, _table(models.TrialValueModel), _value_rows(trial_id, trial.values or ()))
        return trial_id, number

    def _check_compatible(self, connection: Connection, study_id: int, texts: Mapping[str, str]) -> None:
        """Raise ValueError, as Optuna does for every parameter, where a name had a distribution that does not go with its present one."""
        table = models.TrialParamModel
        for name, text in texts.items():
            if self._compatible.get((study_id, name)) != text:
                stored = sqlalchemy.select(table.distribution_json).join(models.TrialModel)
                is_same = (models.TrialModel.study_id == study_id) & (table.param_name == name)
                first = connection.execute(stored.where(is_same).limit(1)).scalar()
                if first is not None:
                    check_distribution_compatibility(_distribution(first), _distribution(text))
                self._compatible[study_id, name] = text

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        table = models.TrialModel
        columns = (table.trial_id, table.number, table.state, table._datetime_start_utc, table._datetime_complete_utc)
        is_asked = table.trial_id > trial_id_greater_than
        if included_trial_ids:
            is_asked |= table.trial_id.in_(included_trial_ids)
        query = sqlalchemy.select(*columns).where(table.study_id == study_id, is_asked).order_by(table.trial_id)
        with self.engine.connect() as connection:
            rows = [row for row in connection.execute(query).all() if states is None or row.state in states]
            return [trial for block in _blocks(rows) for trial in _read_trials(connection, block)]


def _table(model: Any) -> sqlalchemy.Table:
    table: sqlalchemy.Table = model.__table__
    return table


# Statements of every trial, made once: SQLAlchemy takes longer to make and to compile one than SQLite to carry it out.
_TRIALS = _table(models.TrialModel)
_IS_TRIAL = _TRIALS.c.trial_id == bindparam("of_trial")
_IS_STUDY = _table(models.StudyModel).c.study_id == bindparam("of_study")
_STUDY = sqlalchemy.select(_table(models.StudyModel).c.study_id).where(_IS_STUDY).with_for_update()
_COUNT = sqlalchemy.select(sqlalchemy.func.count(_TRIALS.c.trial_id)).where(
    _TRIALS.c.study_id == bindparam("of_study"), _TRIALS.c.trial_id < bindparam("of_trial")
)
_NUMBER = sqlalchemy.select(_TRIALS.c.number).where(_IS_TRIAL)
_SET_NUMBER = _TRIALS.update().where(_IS_TRIAL).values(number=bindparam("number"))
_STATE = sqlalchemy.select(_TRIALS.c.state).where(_IS_TRIAL).with_for_update()
_END = (
    _TRIALS.update().where(_IS_TRIAL).values(state=bindparam("state"), datetime_complete=bindparam("datetime_complete"))
)


class _Attributes:
    """A table of trials' attributes, with its statements."""

    def __init__(self, model: Any) -> None:
        self.table = table = _table(model)
        is_trial = table.c.trial_id == bindparam("of_trial")
        self._read = sqlalchemy.select(table.c.key, table.c.value_json).where(is_trial)
        is_one = is_trial & (table.c.key == bindparam("of_key"))
        self._change = table.update().where(is_one).values(value_json=bindparam("value_json"))

    def read(self, connection: Connection, trial_id: int) -> dict[str, str]:
        """The attributes that are stored of a trial: key -> JSON text."""
        return {row.key: row.value_json for row in connection.execute(self._read, {"of_trial": trial_id})}

    def write(self, connection: Connection, trial_id: int, texts: Mapping[str, str], there: Mapping[str, str]) -> None:
        """Store attributes of a trial; one that is there already keeps its place among the others."""
        for key in texts.keys() & there.keys():
            connection.execute(self._change, {"of_trial": trial_id, "of_key": key, "value_json": texts[key]})
        new = {key: text for key, text in texts.items() if key not in there}
        _insert(connection, self.table, _attribute_rows(trial_id, new))


_USER, _SYSTEM = _Attributes(models.TrialUserAttributeModel), _Attributes(models.TrialSystemAttributeModel)


def literal_url(url: str) -> str:
    """The URL as Optuna takes it: braces would be a template's."""
    return url.replace("{", "{{").replace("}", "}}")


def _insert(connection: Connection, table: sqlalchemy.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert these rows, if there are any."""
    if rows:
        connection.execute(table.insert(), rows)


def _attribute_rows(trial_id: int, texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of a table of attributes."""
    return [{"trial_id": trial_id, "key": key, "value_json": text} for key, text in texts.items()]


def _value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    """The rows of the table of values."""
    stored = map(models.TrialValueModel.value_to_stored_repr, values)
    return [
        {"trial_id": trial_id, "objective": place, "value": value, "value_type": kind}
        for place, (value, kind) in enumerate(stored)
    ]


def _blocks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _read_trials(connection: Connection, rows: Sequence[Any]) -> Iterator[FrozenTrial]:
    """The trials of these rows of the table of trials."""
    ids = [row.trial_id for row in rows]
    user_key, system_key = models.TrialUserAttributeModel.key, models.TrialSystemAttributeModel.key
    users = _read_json(connection, models.TrialUserAttributeModel, ids, user_key.not_in(SHOWN))
    is_read = ~system_key.startswith(OWN) | (system_key == DESCRIBED)
    systems = _read_json(connection, models.TrialSystemAttributeModel, ids, is_read)
    params, distributions = _read_params(connection, ids)
    values = _read_numbers(connection, models.TrialValueModel, ("objective", "value", "value_type"), ids)
    steps = _read_numbers(
        connection, models.TrialIntermediateValueModel, ("step", "intermediate_value", "intermediate_value_type"), ids
    )
    for row in rows:
        number = row.trial_id
        yield FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=[value for _, value in sorted(values[number].items())] if number in values else None,
            datetime_start=_local_time(row.datetime_start),
            datetime_complete=_local_time(row.datetime_complete),
            params=params.get(number, {}),
            distributions=distributions.get(number, {}),
            user_attrs=users.get(number, {}),
            system_attrs=systems.get(number, {}),
            intermediate_values=steps.get(number, {}),
            trial_id=number,
        )


def _read_json(
    connection: Connection, table: Any, ids: Sequence[int], *conditions: Any
) -> Mapping[int, dict[str, Any]]:
    """The attributes of trials by id, as far as they have any."""
    query = sqlalchemy.select(table.trial_id, table.key, table.value_json).where(table.trial_id.in_(ids), *conditions)
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in connection.execute(query.order_by(*table.__table__.primary_key)):
        found.setdefault(trial_id, {})[sys.intern(key)] = json.loads(text)
    return found


def _read_params(
    connection: Connection, ids: Sequence[int]
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]:
    """Parameters and distributions of trials by id, in the order in which they were stored."""
    table = models.TrialParamModel
    query = sqlalchemy.select(table.trial_id, table.param_name, table.param_value, table.distribution_json)
    params: dict[int, dict[str, Any]] = {}
    distributions: dict[int, dict[str, BaseDistribution]] = {}
    for trial_id, name, value, text in connection.execute(
        query.where(table.trial_id.in_(ids)).order_by(table.param_id)
    ):
        distribution = _distribution(text)
        params.setdefault(trial_id, {})[sys.intern(name)] = distribution.to_external_repr(value)
        distributions.setdefault(trial_id, {})[sys.intern(name)] = distribution
    return params, distributions


@lru_cache(maxsize=10_000)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _read_numbers(
    connection: Connection, table: Any, names: Iterable[str], ids: Sequence[int]
) -> dict[int, dict[int, float]]:
    """Numbers of trials by id, each with its place; Optuna stores what is not finite as a type of its own."""
    place, value, kind = (getattr(table, name) for name in names)
    found: dict[int, dict[int, float]] = {}
    for trial_id, index, number, special in connection.execute(
        sqlalchemy.select(table.trial_id, place, value, kind).where(table.trial_id.in_(ids))
    ):
        found.setdefault(trial_id, {})[index] = number if number is not None else _SPECIAL.get(special.name, nan)
    return found


_SPECIAL = {"INF_POS": inf, "INF_NEG": -inf}


def _utc(local: datetime | None) -> datetime | None:
    """As Optuna stores it, without a zone."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def _local_time(utc: datetime | None) -> datetime | None:
    """As Optuna gives it: local, without a zone."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
