"""The database of a run: other ones, emptied and lost ones, passwords, and what strangers put into a study; on SQLite and on a real PostgreSQL."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postgres import ESCAPED, PASSWORD, postgres
from support.runs import make_config, run

from archsearch import results
from archsearch.errors import UserError
from archsearch.report import build_report
from archsearch.search import RunStore
from archsearch.system import command_line, without_passwords


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


# Passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cr%40et@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("--storage=postgresql+psycopg://me:p@ss/w:o@h/db?x=1", "--storage=postgresql+psycopg://me:***@h/db?x=1"),
        ("mysql://h/db?user=x&password=secret&ssl=no", "mysql://h/db?user=x&password=***&ssl=no"),
        ("see 'postgresql://:pw@h/d', which failed", "see 'postgresql://:***@h/d', which failed"),
        ("https://arxiv.org/abs/2203.03952, sqlite:////a/b.db", "https://arxiv.org/abs/2203.03952, sqlite:////a/b.db"),
    ],
)
def test_no_password_of_an_address_is_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_manifest_has_no_password_also_where_an_earlier_version_wrote_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://me:s3cret@host/db"
    monkeypatch.chdir(tmp_path)
    folder = Path("a:")  # which pyarrow would take for an address
    run(folder, make_config(tmp_path / "log"), 0)
    manifest = results.read_manifest(folder)
    leaky = {**manifest, "command": ["archsearch", "run", "--storage", url, f"--storage={url}"], "storage": url}
    (folder / "manifest.json").write_text(json.dumps(leaky))
    assert "s3cret" not in json.dumps(results.read_manifest(folder))
    assert "s3cret" not in json.dumps(build_report(folder), default=str)
    results.write_manifest(leaky, folder)
    assert "s3cret" not in (folder / "manifest.json").read_text()
    assert command_line(["run", "--storage", url]) == "archsearch run --storage 'postgresql://me:***@host/db'"


@pytest.mark.slow
def test_a_run_on_postgresql_leaves_no_password(server: str, tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", name="secretive")
    run(tmp_path / "run", config, 1, storage_url=server)
    run(tmp_path / "run", config, 2, storage_url=server)
    assert len(results.read_trials(tmp_path / "run")) == 4
    for file in (tmp_path / "run").iterdir():
        assert not any(word.encode() in file.read_bytes() for word in (PASSWORD, ESCAPED)), file.name
    wrong = server.replace(ESCAPED, "an%20other")
    with pytest.raises(UserError, match="password authentication failed") as caught:
        run(tmp_path / "run", config, 2, storage_url=wrong)
    assert not any(word in str(caught.value) for word in ("an%20other", "an other"))


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite+pysqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--storage: a database in memory"):
        run(tmp_path / "run", make_config(tmp_path / "log"), 0, storage_url=url)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_failure_without_a_word_is_a_failure(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "run", make_config(tmp_path / "log")) as store:
        proposal = store.propose()
        assert proposal is not None
        trial = store.start(proposal)["trial"]
        store.record_phase(trial, "throughput", {"throughput_img_s": 1.0})
        store.record_phase(trial, "proxy", {"proxy_score": 0.5})
        assert store.finish(trial, "")["state"] == "failed"
        (row,) = store.rows()
    assert row["reason"]
