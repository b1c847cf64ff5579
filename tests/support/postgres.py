"""A PostgreSQL server of a test's own, with a user and a password; tests of it are left out where there is none to start."""

import contextlib
import os
import random
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.runs import RecordingListener, wait_until
from support.stub_evaluators import noted

from archsearch.search import Driver, ProcessWorker, RunConfig, Workers, open_run

USER, PASSWORD = "searcher", "s3cret %&word"
ESCAPED = "s3cret%20%25%26word"


def _programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, which Debian keeps off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@dataclass(frozen=True)
class Server:
    """A server's address, with its password, and what stops and starts it."""

    url: str
    port: int
    stop: Callable[[], None]
    start: Callable[[], None]


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of a server that lives meanwhile."""
    with postgres_server() as server:
        yield server.url


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """A server that lives meanwhile."""
    pytest.importorskip("psycopg", reason="needs psycopg, the driver of PostgreSQL")
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    # The server refuses to run as root, and another user may not enter the folders of a test.
    owner = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="archsearch-postgres-", dir="/tmp"))
    (folder / "password").write_text(PASSWORD)
    if owner is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, owner)

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, user=owner)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        call("initdb", "-A", "scram-sha-256", "-U", USER, f"--pwfile={folder / 'password'}", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

        def start() -> None:
            call("pg_ctl", "start", "-w", "-o", options, "-l", str(folder / "log"))

        def stop() -> None:
            call("pg_ctl", "stop", "-w", "-m", "fast")

        start()
        try:
            yield Server(f"postgresql+psycopg://{USER}:{ESCAPED}@127.0.0.1:{port}/postgres", port, stop, start)
        finally:
            call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Cutter:
    """A proxy before a server: each `every`-th commit is done by the server, and the connection is cut before its answer comes; none before `is_on`."""

    def __init__(self, port: int, every: int) -> None:
        self._server, self._every, self._commits = port, every, 0
        self.is_on, self.cuts = False, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nothing more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server)) as server, contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
                    if one is client and b"COMMIT" in data and self._is_due():
                        server.recv(65536)  # done, and nobody hears of it
                        return

    def _is_due(self) -> bool:
        self._commits += self.is_on
        is_due = self.is_on and self._commits % self._every == 0
        self.cuts += is_due
        return is_due


class Restarts:
    """Restarts a server `number` times during a run, each time after another twelve lines of the log; for `drive`."""

    def __init__(self, server: Server, log: Path, number: int, rng: random.Random) -> None:
        self._server, self._log, self._number, self._rng = server, log, number, rng
        self.were_in_time: list[bool] = []  # before the run had ended

    def __call__(self, finished: threading.Event) -> None:
        """Restart the server until that is done or the run has ended."""
        for number in range(1, self._number + 1):
            wait_until(lambda lines=12 * number: finished.is_set() or len(noted(self._log)) > lines, 60)  # type: ignore[misc]  # bound now
            time.sleep(self._rng.uniform(0, 0.1))
            self._server.stop()
            self.were_in_time.append(not finished.is_set())
            time.sleep(self._rng.uniform(0.5, 1.0))
            self._server.start()


def drive(
    folder: Path,
    config: RunConfig,
    url: str,
    trials: int,
    said: list[str],
    meddle: Callable[[threading.Event], None],
    workers: Workers | None = None,
    listener: RecordingListener | None = None,
) -> str:
    """A whole run, evaluated by a real worker, while a thread meddles until the run has ended; that begins when the study is open."""
    finished = threading.Event()
    with open_run(folder, config, url, patience_s=60, say=said.append) as store:
        thread = threading.Thread(target=meddle, args=(finished,))
        thread.start()
        try:
            workers = workers or ProcessWorker(folder / "worker.log", "support.stub_evaluators:evaluate")
            return Driver(config, store, workers, listener or RecordingListener(), command=["test"]).run(trials)
        finally:
            finished.set()
            thread.join()
