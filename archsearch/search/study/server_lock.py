"""The lock of a study's one driver in a PostgreSQL database; it ends with its connection, however that ends."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from archsearch.errors import UserError

# How long a lock may be another one's before this one is refused: a driver that was killed may take a moment to be gone.
_PATIENCE_S, _POLL_S = 1.0, 0.05
_TABLES = 0x61726368  # key of the lock under which tables are created, of any study
# The server is to notice within a minute that the lock's machine has gone, and not to end an idle connection.
_SETTINGS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
}
_SET = text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :name")
_SELF = text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
# A lock's 64-bit key stands in two columns; of other users' sessions only the id is shown.
_HOLDER = text(
    "SELECT pid, application_name, host(client_addr) AS address, backend_start FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
    "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND classid::bigint = (CAST(:key AS bigint) >> 32) & 4294967295 AND objid::bigint = CAST(:key AS bigint) & 4294967295"
)


class LostConnectionError(ConnectionError):
    """The connection to the server broke, or none could be made."""


class ServerLock:
    """An advisory lock on a connection of its own; `where` is the database in messages. Connects at once."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine, self._where = engine, where
        self._connection: Connection | None = self._connect()
        self._name: str | None = None  # of the study
        self._session: tuple[Any, ...] | None = None  # process and start of the connection that had the lock last
        self._refusal: UserError | None = None

    @contextlib.contextmanager
    def creating_tables(self) -> Iterator[None]:
        """One driver after the other meanwhile: two that create the same tables at once would both fail. Closes the connection on an error."""
        assert self._connection is not None
        key = {"key": _TABLES}
        self._connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
        try:
            yield
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
        except BaseException:
            self.close()
            raise

    def take(self, name: str) -> None:
        """Lock the study of this name. Raises as `check` does."""
        assert self._connection is not None, "checked just now"
        self._name = name
        self._acquire(self._connection, name)

    def check(self) -> None:
        """See that the lock is held, and take it again after its connection broke.

        Raises LostConnectionError where that fails, and UserError where another driver has it by now, then and at every later call.
        """
        if self._refusal is not None:
            raise self._refusal
        try:
            if self._connection is None:
                self._connection = self._connect()
                if self._name is not None:
                    self._acquire(self._connection, self._name)
            else:
                self._connection.exec_driver_sql("SELECT 1")
        except (LostConnectionError, UserError):
            self.close()
            raise

    def close(self) -> None:
        """End the connection, and the lock with it."""
        if self._connection is not None:
            with contextlib.suppress(LostConnectionError):
                self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        connection.execute(_SET, [{"name": name, "value": value} for name, value in _SETTINGS.items()])
        return connection

    def _acquire(self, connection: Connection, name: str) -> None:
        """Lock a study, after a lost connection also against our own earlier one, which the server may take for alive."""
        key = {"key": _key(name)}
        until = time.monotonic() + _PATIENCE_S
        while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
            holder = connection.execute(_HOLDER, key).first()
            if holder is not None and (holder.pid, holder.backend_start) == self._session:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": holder.pid})
            elif holder is not None and time.monotonic() > until:
                self._refusal = UserError(self._refused(name, holder))
                raise self._refusal
            time.sleep(_POLL_S)
        self._session = tuple(connection.execute(_SELF).one())

    def _refused(self, name: str, holder: Any) -> str:
        since: datetime | None = holder.backend_start
        who = holder.application_name if since else f"session {holder.pid} of another user"
        about = [f" from {holder.address}" if holder.address else ""]
        about.append(f" since {since.astimezone().isoformat(' ', 'seconds')}" if since else "")
        also = "took over meanwhile" if self._session else "is at work in it"
        return (
            f"{self._where}: study {name!r}: another driver {also} ({who}{''.join(about)}); everything stored is kept: "
            "wait for it, or use another --output"
        )


def _key(name: str) -> int:
    """64 bits of the study's name."""
    return int.from_bytes(hashlib.sha256(f"archsearch:{name}".encode()).digest()[:8], signed=True)
