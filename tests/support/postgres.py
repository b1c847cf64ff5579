"""A PostgreSQL server of a test's own, with a user and a password; tests of it are left out where there is none to start."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USER, PASSWORD = "searcher", "s3cret %&word"
ESCAPED = "s3cret%20%25%26word"


def _programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, which Debian keeps off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of a server that lives meanwhile, with its password."""
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
        call("pg_ctl", "start", "-w", "-o", options, "-l", str(folder / "log"))
        try:
            yield f"postgresql+psycopg://{USER}:{ESCAPED}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
