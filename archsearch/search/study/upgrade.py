"""Brings a study of an earlier version to the present form: there the engine's own attributes were user attributes."""

from typing import Any

import sqlalchemy
from optuna.storages._rdb import models
from sqlalchemy import Connection

from archsearch.search.study.rows import OWN, OWN_KEYS, PHASE

CONFIG = f"{OWN}config"  # key of the study's attribute with the configuration of the run


def upgrade(connection: Connection, study_id: int) -> bool:
    """Move the engine's own attributes of a study and of its trials among the system attributes; False where none is to be moved."""
    trials: Any = models.TrialModel.__table__
    users: Any = models.StudyUserAttributeModel.__table__
    is_old = (users.c.study_id == study_id) & (users.c.key == CONFIG)
    if connection.execute(sqlalchemy.select(users.c.key).where(is_old)).first() is None:
        return False
    own = (users.c.study_id == study_id) & users.c.key.startswith(OWN)
    _move(connection, users, models.StudySystemAttributeModel.__table__, own)
    attributes: Any = models.TrialUserAttributeModel.__table__
    is_of_study = attributes.c.trial_id.in_(sqlalchemy.select(trials.c.trial_id).where(trials.c.study_id == study_id))
    key = attributes.c.key
    own = is_of_study & (key.in_(OWN_KEYS) | key.startswith(PHASE))
    _move(connection, attributes, models.TrialSystemAttributeModel.__table__, own, before=OWN)
    connection.execute(attributes.delete().where(is_of_study & key.startswith(OWN)))  # of a trial's creation alone
    return True


def _move(connection: Connection, source: Any, target: Any, rows: Any, *, before: str = "") -> None:
    """Move these rows from one table of attributes to another, with `before` in front of their keys."""
    of, key, value = (source.c[name] for name in (_of(source), "key", "value_json"))
    moved = sqlalchemy.select(of, sqlalchemy.literal(before) + key if before else key, value).where(rows)
    connection.execute(target.insert().from_select([_of(target), "key", "value_json"], moved))
    connection.execute(source.delete().where(rows))


def _of(table: Any) -> str:
    return "study_id" if "study_id" in table.c else "trial_id"
