"""A run on a PostgreSQL that is restarted, whose connections break and whose answers are lost; two drivers on one study; how it is reached."""

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from support.postgres import ESCAPED, PASSWORD, USER, Cutter, Restarts, Server, drive, postgres_server
from support.runs import ROOT, InProcessWorker, RecordingListener, fixed_archs, make_config
from support.stub_evaluators import evaluate, noted, written

from archsearch import results
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.search import Driver, open_run
from archsearch.search.study.address import refuse_network_file
from archsearch.search.study.database import ensure_study, open_storage

PHASES = ("count", "throughput", "proxy")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@contextlib.contextmanager
def asking(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def stored_counts(url: str, name: str) -> tuple[int, int]:
    """Trials of a study, and different architectures among them."""
    query = (
        "SELECT count(*), count(DISTINCT value_json::json->>'arch_id') FROM studies JOIN trials USING (study_id) "
        f"JOIN trial_system_attributes USING (trial_id) WHERE study_name = '{name}' AND key = 'archsearch:candidate'"
    )
    with asking(url) as connection:
        trials, archs = connection.exec_driver_sql(query).one()
    return trials, archs


def assert_whole(folder: Path, log: Path, url: str, trials: int) -> None:
    """Every trial is there once and complete, in the files and in the database; each of its phases was measured once, by the log."""
    frame = results.read_trials(folder)
    assert frame["trial"].tolist() == list(range(trials))
    assert set(frame["state"]) == {"complete"}
    assert stored_counts(url, folder.name) == (trials, trials)
    ends = Counter((words[1], words[2]) for words in noted(log) if words[0] == "end")
    assert ends == Counter({(written(arch), phase): 1 for arch in frame["arch"] for phase in PHASES})


# Lost connections


@pytest.mark.slow
def test_five_restarts_of_the_server_in_a_run_lose_and_double_nothing(server: Server, tmp_path: Path) -> None:
    log = tmp_path / "log"
    said: list[str] = []
    restarts = Restarts(server, log, 5, random.Random(0))
    config = make_config(log, name="restarted", settings={"phase_s": 0.02})
    assert drive(tmp_path / "restarted", config, server.url, 30, said, restarts) == "complete"
    assert restarts.were_in_time == [True] * 5
    assert_whole(tmp_path / "restarted", log, server.url, 32)
    kinds = ["waiting for it" in line for line in said]
    assert kinds == [True, False] * 5, said
    assert all("there again" in line for line in said[1::2])
    assert not any(word in "".join(said) for word in (PASSWORD, ESCAPED))


@pytest.mark.slow
def test_connections_ended_at_random_moments_lose_and_double_nothing(
    server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trials, rng, ended = 200 if request.config.getoption("--whole") else 30, random.Random(1), []

    def end(finished: threading.Event) -> None:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'archsearch %%'"
        with asking(server.url) as connection:
            while not finished.wait(rng.uniform(0, 0.15)):
                for pid in connection.exec_driver_sql(query).scalars().all():
                    if rng.random() < 0.5:
                        ended.append(connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})").scalar() is True)

    config = make_config(tmp_path / "log", name="ended")
    assert drive(tmp_path / "ended", config, server.url, trials, [], end) == "complete"
    assert sum(ended) > 10
    assert_whole(tmp_path / "ended", tmp_path / "log", server.url, trials + 2)


@pytest.mark.slow
def test_commits_whose_answers_are_lost_are_done_once(server: Server, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cut"
    cutter = Cutter(server.port, 3)  # of about five a trial: each kind of write is met
    try:
        url = server.url.replace(f":{server.port}/", f":{cutter.port}/") + "?sslmode=disable&gssencmode=disable"
        config = make_config(log, name=folder.name)
        with open_storage(folder, url, patience_s=60) as storage:
            cutter.is_on = True
            ensure_study(storage, config.name, config.directions, config.to_dict())
            cutter.is_on = False
        with open_run(folder, config, url, patience_s=60) as store:
            cutter.is_on = True
            driver = Driver(store.config, store, InProcessWorker(evaluate), RecordingListener(), command=["test"])
            assert driver.run(30) == "complete"
    finally:
        cutter.close()
    assert cutter.cuts >= 30
    assert_whole(folder, log, server.url, 32)


def test_a_server_that_stays_away_ends_the_run_in_one_sentence_and_the_next_goes_on(
    server: Server, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "log", name="away")
    said: list[str] = []
    try:
        with open_run(tmp_path / "away", config, server.url, patience_s=0.5, say=said.append) as store:
            row = store.start_fixed("van_b2", fixed_archs()["van_b2"])
            store.record_phase(row["trial"], "count", {"macs_fvcore": 1})
            server.stop()
            with pytest.raises(UserError, match=r"not there for .*--storage-patience"):
                store.record_phase(row["trial"], "throughput", {"throughput_img_s": 1.0})
            store.stop_waiting_when(lambda: True)
            with pytest.raises(UserError, match="not there for"):  # at once: it has been waited for
                store.leave()
    finally:
        server.start()
    assert len(said) == 1
    with open_run(tmp_path / "away", config, server.url) as store:
        assert store.phases(row["trial"]).keys() == {"count"}


def test_ctrl_c_ends_the_wait_for_a_server(server: Server, tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", name="impatient")
    try:
        with open_run(tmp_path / "impatient", config, server.url, patience_s=3600) as store:
            asked: list[bool] = []

            def is_stopped() -> bool:
                asked.append(True)
                return len(asked) > 5

            store.stop_waiting_when(is_stopped)
            server.stop()
            with pytest.raises(KeyboardInterrupt):
                store.start_fixed("van_b2", fixed_archs()["van_b2"])
    finally:
        server.start()
    assert len(asked) > 5


# Two drivers


PROGRAM = """
import sys
from pathlib import Path
from support.runs import make_config
from archsearch.search import open_run
folder, url = sys.argv[1:]
with open_run(Path(folder), make_config(Path("log"), name=Path(folder).name), url):
    print("open", flush=True)
    sys.stdin.read()
"""


def other_driver(folder: Path, url: str) -> "subprocess.Popen[str]":
    """Another process that has the study of this name open until its input ends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "open\n"
    return driver


@pytest.mark.slow
def test_a_second_driver_is_refused_with_who_has_the_study_until_that_is_killed(server: Server, tmp_path: Path) -> None:
    config = make_config(Path("log"), name="shared")
    other = other_driver(tmp_path / "shared", server.url)
    try:
        with (
            pytest.raises(
                UserError, match=rf"study 'shared': another driver .*\(archsearch \S+ {other.pid} from 127\.0\.0\.1"
            ) as caught,
            open_run(tmp_path / "copy" / "shared", config, server.url),
        ):
            pass
        assert str(datetime.now().year) in str(caught.value)
        with open_run(tmp_path / "another", replace(config, name="another"), server.url) as store:
            assert store.rows() == []
    finally:
        other.kill()
        other.communicate()
    with open_run(tmp_path / "copy" / "shared", config, server.url) as store:
        assert store.rows() == []


@pytest.mark.slow
def test_a_driver_whose_study_was_taken_over_while_the_server_was_away_stops(server: Server, tmp_path: Path) -> None:
    config, van = make_config(Path("log"), name="taken"), fixed_archs()["van_b2"]
    with open_run(tmp_path / "first" / "taken", config, server.url, patience_s=60) as store:
        row = store.start_fixed("van_b2", van)
        server.stop()
        server.start()
        store.record_phase(row["trial"], "count", {"macs_fvcore": 1})  # takes the lock again
        server.stop()
        server.start()
        other = other_driver(tmp_path / "second" / "taken", server.url)
        try:
            for _ in range(2):
                with pytest.raises(
                    UserError, match=rf"another driver took over meanwhile \(archsearch \S+ {other.pid} "
                ):
                    store.record_phase(row["trial"], "throughput", {"throughput_img_s": 1.0})
        finally:
            other.communicate("")
        with pytest.raises(UserError, match="took over"):  # for good: it has not read what the other one wrote
            store.leave()
    with open_run(tmp_path / "second" / "taken", config, server.url) as store:
        assert store.phases(row["trial"]).keys() == {"count"}


# How the server is reached, and how it is not


def search(url: str | None, folder: Path) -> Result:
    """The command line's run of no trials."""
    options = ["--budget", "4.5GFLOPs", "--trials", "0", "--papers", "none", "--output", str(folder)]
    return CliRunner().invoke(main, ["run", "hybrid", *options, *(["--storage", url] if url else [])])


def as_admin(server: Server, *statements: str) -> None:
    with asking(server.url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.slow
def test_who_cannot_be_let_in_is_told_why_and_finds_nothing_in_the_way(server: Server, tmp_path: Path) -> None:
    as_admin(
        server,
        "CREATE ROLE guest LOGIN PASSWORD 'word'",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "CREATE DATABASE fresh",
    )
    base, folder = f"127.0.0.1:{server.port}", tmp_path / "run"
    refusals = {
        f"postgresql://guest:word@{base}/fresh": "permission denied for schema public",
        server.url.replace(ESCAPED, "another"): "password authentication failed",
        f"postgres://{USER}:{ESCAPED}@{base}/nowhere": 'database "nowhere" does not exist',
        f"postgresql://{USER}:{ESCAPED}@127.0.0.1:1/fresh": "Connection refused",
        f"postgresql://{USER}:{ESCAPED}@no.such.host.invalid/fresh": "no.such.host.invalid",
        "postgresql://?service=unknown": "unknown",
    }
    for url, reason in refusals.items():
        done = search(url, folder)
        assert done.exit_code == 2, done.output
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: "), done.output
        assert reason in last
        assert not any(word in done.output for word in (PASSWORD, ESCAPED, ":word", "another@"))
    done = search(f"postgresql://{USER}:{ESCAPED}@{base}/fresh", folder)
    assert done.exit_code == 0, done.output
    assert results.read_manifest(folder)["state"] == "complete"
    assert not any(word.encode() in file.read_bytes() for word in (PASSWORD, ESCAPED) for file in folder.iterdir())


@pytest.mark.slow
def test_passwords_come_from_the_environment_a_password_file_or_a_service(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{USER}@127.0.0.1:{server.port}/postgres"
    assert "no password supplied" in search(f"postgresql://{address}", tmp_path / "none").output
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert search(f"postgresql://{address}", tmp_path / "environment").exit_code == 0
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / ".pgpass").write_text(f"127.0.0.1:{server.port}:postgres:{USER}:{PASSWORD}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / ".pgpass"))
    assert search(f"postgresql://{address}", tmp_path / "file").exit_code == 0
    monkeypatch.delenv("PGPASSFILE")
    lines = [
        "[mine]",
        "host=127.0.0.1",
        f"port={server.port}",
        "dbname=postgres",
        f"user={USER}",
        f"password={PASSWORD}",
    ]
    (tmp_path / "services").write_text("\n".join(lines))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    assert search("postgresql://?service=mine", tmp_path / "service").exit_code == 0
    with asking(server.url) as connection:
        names = set(connection.exec_driver_sql("SELECT study_name FROM studies").scalars())
    assert names >= {"environment", "file", "service"}


def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    done = search("postgresql://me:s3cret@host/name", tmp_path / "run")
    assert done.exit_code == 2
    assert "pip install 'archsearch[postgresql]'" in done.stderr
    assert "s3cret" not in done.output
    assert not (tmp_path / "run").exists()


# File systems

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
91 27 0:52 / /home rw,relatime shared:40 - autofs systemd-1 rw,fd=58
92 91 0:53 / /home rw,relatime shared:41 - nfs4 filer:/home rw,vers=4.2,hard,proto=tcp
93 92 8:1 / /home/me/fast rw - xfs /dev/sdb1 rw
94 27 0:60 / /mnt/two\\040words rw - cifs //filer/share rw,vers=3.1.1
95 27 0:61 / /lustre rw - lustre 10.0.0.1@tcp:/scratch rw,flock,lazystatfs
96 27 0:62 / /lustre2 rw - lustre 10.0.0.1@tcp:/scratch rw,localflock
97 27 0:63 / /ssh rw,nosuid - fuse.sshfs me@host: rw,user_id=0
"""


@pytest.mark.parametrize("place", ["/home/me/runs/a", "/mnt/two words/a", "/lustre2/a", "/ssh/a"])
def test_sqlite_on_a_network_file_system_is_refused(place: str) -> None:
    for folder, url in ((place, None), ("/tmp", f"sqlite:///{place}/runs.db")):
        with pytest.raises(
            UserError, match=r"on a network file system .*--storage postgresql://.*--output on a local disk"
        ):
            refuse_network_file(Path(folder), url, MOUNTS)
    refuse_network_file(Path(place), "postgresql://host/name", MOUNTS)


@pytest.mark.parametrize("place", ["/home/me/fast/a", "/mnt2/a", "/lustre/a", "/homes/a", "/mnt/two/a"])
def test_sqlite_on_a_local_disk_or_one_with_whole_locks_is_not(place: str) -> None:
    refuse_network_file(Path(place), None, MOUNTS)
    refuse_network_file(Path("/home/me"), f"sqlite:///{place}/runs.db", MOUNTS)
    with pytest.raises(UserError, match="nfs4"):
        refuse_network_file(Path("/home/me"), None, MOUNTS)
