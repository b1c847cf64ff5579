"""The database of a run: passwords, what strangers put into a study, lost, emptied and other ones; on SQLite and on a real PostgreSQL."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState, create_trial
from support.postgres import ESCAPED, PASSWORD, postgres
from support.runs import InProcessWorker, RecordingListener, fixed_archs, make_config, make_rung_config, one_stage, run
from support.stub_evaluators import evaluate

from archsearch import results
from archsearch.cli import main
from archsearch.errors import UserError, without_passwords
from archsearch.report import build_report
from archsearch.search import RunConfig, open_run
from archsearch.system import command_line


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


# What strangers put into a study

SPACE = one_stage(
    """width = 64
depth = [1, 2, 3, 8]
block = ["mlp", "lka"]
mlp_ratio = [2, 4]
lka = { kernel = [15, 21] }
"""
)
# Three blocks at most.
SMALL: dict[str, Any] = {"space_text": SPACE, "budget_macs": 250_000_000, "tolerance": 0.9, "papers": ()}


@contextlib.contextmanager
def strangers(folder: Path, config: RunConfig, url: str | None = None) -> Iterator[optuna.Study]:
    """The study of a run as another program opens it."""
    storage = optuna.storages.RDBStorage(url or f"sqlite:///{folder}/study.db")
    try:
        yield optuna.load_study(study_name=config.name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _meddle(study: optuna.Study) -> int:
    """Everything that another program may put into a study; returns the number of the first that it enqueued."""
    study.ask()
    study.ask().suggest_int("theirs", 0, 3)
    study.tell(study.ask(), state=TrialState.PRUNED)
    first = len(study.trials)
    asked = {"stages.1.block": "lka", "stages.1.depth": 3, "stages.1.lka.kernel": 15, "stages.1.mlp_ratio": 2}
    study.enqueue_trial(asked)
    study.enqueue_trial({"stages.1.block": "mlp"}, user_attrs={"who": "me"})
    study.enqueue_trial({"stages.1.block": "mlp", "stages.1.depth": 4})
    study.enqueue_trial({"stages.1.depth": [1]})
    study.enqueue_trial({"stages.1.heads": 1})
    study.enqueue_trial({**asked, "stages.1.depth": 8})
    study.enqueue_trial(study.trials[0].params)
    study.add_trial(create_trial(values=[0.1, 2.0, 3.0]))
    study.set_user_attr("note", "ours")
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", ["a", "b", "c"])
    study._storage.set_study_system_attr(study._study_id, "dashboard:0:note", "fine")
    return first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "database"),
    [("tpe", "study.db"), ("nsga2", "study.db"), ("known-cost", "study.db"), ("random", "postgresql")],
)
def test_a_run_goes_on_with_what_strangers_put_into_its_study(
    sampler: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server") if database == "postgresql" else None
    folder, config = tmp_path / "run", make_config(tmp_path / "log", name="met", sampler=sampler, **SMALL)
    run(folder, config, 2, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
    with strangers(folder, config, url) as study:
        first = _meddle(study)
    listener = run(folder, config, 4, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
    assert listener.state == "complete"
    rows = {row["trial"]: row for row in results.read_rows(folder)}
    full, partial, *refused = range(first, first + 6)
    assert {rows[number]["state"] for number in (full, partial, first + 6)} == {"complete"}
    assert rows[full]["architecture"] == "lka 64x3"
    assert rows[partial]["architecture"].startswith("mlp 64x")
    assert rows[first + 6]["reused_from"] == 0
    with strangers(folder, config, url) as study:
        trials = study.trials
    assert trials[full].params == dict(trials[full].system_attrs["fixed_params"]) | trials[full].params
    assert trials[partial].user_attrs["who"] == "me"
    reasons = [trials[number].user_attrs["reason"] for number in refused]
    for reason, words in zip(
        reasons, ("4 is not among", "stages.1.depth", "no parameter", "outside the band"), strict=True
    ):
        assert words in reason
    assert not rows.keys() & set(refused)
    assert not [trial for trial in trials if not trial.state.is_finished()]
    with open_run(folder, config, url) as store:
        assert store.rows() == [{**row, "front": None} for row in rows.values()]
        assert store.notices == []


def test_trials_that_a_stranger_adds_or_ends_while_the_run_works(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", **SMALL)
    with open_run(tmp_path / "run", config) as store, strangers(tmp_path / "run", config) as study:
        study.ask()
        proposal = store.propose()
        assert proposal is not None
        assert store.start(proposal)["trial"] == 1
        study.tell(1, state=TrialState.FAIL)
        with pytest.raises(UserError, match="another program"):
            store.record_phase(1, "count", {"macs_fvcore": 1})
    with open_run(tmp_path / "run", config) as store:
        (row,) = store.rows()
        assert (row["trial"], row["state"], row["reason"]) == (1, "failed", "ended by another program")
        assert store.propose() is not None


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
    run(folder, make_config(tmp_path / "log"), 0, worker=InProcessWorker(evaluate))
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
    with open_run(tmp_path / "run", make_config(tmp_path / "log")) as store:
        proposal = store.propose()
        assert proposal is not None
        trial = store.start(proposal)["trial"]
        store.record_phase(trial, "throughput", {"throughput_img_s": 1.0})
        store.record_phase(trial, "proxy", {"proxy_score": 0.5})
        assert store.finish(trial, "")["state"] == "failed"
        (row,) = store.rows()
    assert row["reason"]


# Lost, emptied and other databases


def _files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("trials.parquet", "front.parquet")}


def _refusal(folder: Path, config: RunConfig, url: str | None) -> str:
    """The sentence with which going on is refused; it changes none of the run's files, and says how to restore it."""
    before = _files(folder)
    with pytest.raises(UserError, match="runs restore ") as caught:
        run(folder, config, 3, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
    assert _files(folder) == before
    return str(caught.value)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_another_or_an_emptied_database_is_no_second_beginning(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, config = tmp_path / "kept", make_config(tmp_path / "log", name="kept", **SMALL)
    url = request.getfixturevalue("server") if database == "postgresql" else f"sqlite:///{tmp_path}/one.db"
    run(folder, config, 2, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
    with strangers(folder, config, url) as study:
        optuna.delete_study(study_name=study.study_name, storage=study._storage)
    for emptied_or_other in (url, f"sqlite:///{tmp_path}/other.db"):
        assert "has no study 'kept'" in _refusal(folder, config, emptied_or_other)
    # The same command elsewhere began the run a second time, with the same first architectures.
    run(folder.with_name("again") / "kept", config, 2, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
    assert "2 of 2 trials are not in it" in _refusal(folder, config, url)
    run(folder.with_name("again") / "kept", config, 2, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))


@pytest.mark.slow
def test_a_renamed_folder_keeps_its_study_in_a_shared_database(server: str, tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", name="before", **SMALL)
    run(tmp_path / "before", config, 1, fixed={}, storage_url=server, worker=InProcessWorker(evaluate))
    after = (tmp_path / "before").rename(tmp_path / "after")
    for trials in (2, 3):
        run(
            after, replace(config, name="after"), trials, fixed={}, storage_url=server, worker=InProcessWorker(evaluate)
        )
        assert len(results.read_trials(after)) == trials


def test_an_older_copy_of_the_database_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", **SMALL)
    run(tmp_path / "run", config, 1, fixed={}, worker=InProcessWorker(evaluate))
    shutil.copy(tmp_path / "run" / "study.db", tmp_path / "copy.db")
    run(tmp_path / "run", config, 2, fixed={}, worker=InProcessWorker(evaluate))
    shutil.copy(tmp_path / "copy.db", tmp_path / "run" / "study.db")
    assert "1 of 2 trials are not in it, the first is trial 1" in _refusal(tmp_path / "run", config, None)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_database_that_goes_while_the_run_works_is_noticed_at_the_next_write(tmp_path: Path, replaced: bool) -> None:
    config, folder = make_config(tmp_path / "log", **SMALL), tmp_path / "run"

    class Losing(RecordingListener):
        def trial_finished(self, row: Any, tally: Any) -> None:
            super().trial_finished(row, tally)
            if row["trial"] == 1:
                (folder / "study.db").unlink()
                if replaced:
                    (folder / "study.db").write_bytes(b"")

    with pytest.raises(UserError, match=r"study\.db: deleted or replaced while the run works"):
        run(folder, config, 4, fixed={}, worker=InProcessWorker(evaluate), listener=Losing())
    assert results.read_trials(folder)["trial"].tolist() == [0, 1]
    done = CliRunner().invoke(main, ["runs", "restore", str(folder)])
    assert (done.exit_code, "2 trials restored" in done.output) == (0, True), done.output
    run(folder, config, 4, fixed={}, worker=InProcessWorker(evaluate))
    assert results.read_trials(folder)["state"].tolist() == ["complete"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "known-cost"])
def test_a_restored_run_is_the_run_that_was_lost(sampler: str, tmp_path: Path) -> None:
    """With trials that are complete, stopped, failed, reused, unfinished, timed again and trained with other seeds; and it goes on alike."""
    fixed = {**fixed_archs(), "twin": fixed_archs()["van_b2"]}
    config, folder = make_rung_config(tmp_path / "log", sampler=sampler, papers=tuple(fixed)), tmp_path / "run"
    run(folder, config, 12, fixed=fixed, recheck=True, num_seeds=3, worker=InProcessWorker(evaluate))
    with open_run(folder, config) as store:
        for reason in ("out of memory", None):
            proposal = store.propose()
            assert proposal is not None
            trial = store.start(proposal)["trial"]
            store.record_phase(trial, "count", {"macs_fvcore": 1, "seconds": 0.5, "seconds_count": 0.4})
            if reason:
                store.finish(trial, reason)
        before = store.rows()
    results.write_trials(results.ranked(before, config.objectives), folder)
    shutil.copytree(folder, tmp_path / "whole")
    assert {row["state"] for row in before} == {"complete", "stopped", "failed", "running"}
    assert CliRunner().invoke(main, ["runs", "restore", str(folder)]).exit_code == 2, "nothing to restore"
    (folder / "study.db").write_bytes((folder / "study.db").read_bytes()[:20_000])
    done = CliRunner().invoke(main, ["runs", "restore", str(folder)])
    assert done.exit_code == 0, done.output
    assert (folder / "study.db.lost1").stat().st_size == 20_000
    assert "could not be kept" not in done.output
    with open_run(folder, config) as store:
        for row, same in zip(store.rows(), before, strict=True):
            for name, value in same.items():  # sums may be rounded otherwise
                assert row[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    run(folder, config, 17, fixed=fixed, worker=InProcessWorker(evaluate))
    run(tmp_path / "whole", config, 17, fixed=fixed, worker=InProcessWorker(evaluate))
    restored, whole = (results.read_trials(path) for path in (folder, tmp_path / "whole"))
    assert restored["arch_id"].tolist() == whole["arch_id"].tolist()
