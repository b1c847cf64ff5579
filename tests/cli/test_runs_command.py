"""`archsearch runs rm` and `rename`: what goes, what stays, what is refused; and that a renamed run goes on."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result
from support.postgres import postgres
from support.report_runs import SIX, write_run
from support.runs import InProcessWorker, make_config, run
from support.stub_evaluators import evaluate

from archsearch import results
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.results import read_manifest, read_trials, rename_run, write_manifest
from archsearch.search.same_run import default_name, find_run
from archsearch.system import flocked

Runs = Callable[..., Result]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`archsearch runs ...` in a folder of its own, without a terminal."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["runs", *arguments])


def refused(result: Result, words: str) -> None:
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert words in result.stderr


# Removing


def test_removed_is_what_the_run_wrote_and_nothing_else(tmp_path: Path, runs: Runs) -> None:
    whole = write_run(tmp_path, SIX, name="whole")
    kept = write_run(tmp_path, SIX, name="kept", extra={"blocks": {"own.py": "0" * 64}})
    other = write_run(tmp_path, SIX, name="other")
    for name in (
        "study.db",
        "study.db-wal",
        "study.db.lost1",
        "worker.log",
        "run.lock",
        ".trials.parquet.new",
        "report.html",
        "own.py",
    ):
        (kept / name).touch()
    for name in ("tensorboard", "wandb/offline-run"):
        (kept / name).mkdir(parents=True)
        (kept / name / "events").touch()
    (kept / "notes.txt").write_text("mine")
    (kept / "winner").mkdir()
    (kept / "winner" / "manifest.json").write_text("{}")
    result = runs("rm", "whole", str(kept), "--yes")
    assert result.exit_code == 0, result.output
    assert not whole.exists()
    assert sorted(path.name for path in kept.rglob("*")) == ["manifest.json", "notes.txt", "winner"]
    assert "notes.txt, winner" in result.stdout
    assert len(list(other.iterdir())) == 3
    assert [each["run"] for each in listing(runs)] == ["other"]


def listing(runs: Runs) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(runs("--json").stdout)["runs"]
    return found


def test_a_run_of_the_engine_leaves_nothing_behind(tmp_path: Path, runs: Runs) -> None:
    folder = tmp_path / "results" / "test"
    run(folder, make_config(tmp_path / "log"), 1, fixed={})
    assert {"study.db", "worker.log", "space.toml", "run.lock"} <= {path.name for path in folder.iterdir()}
    assert runs("rm", "test", "--yes").exit_code == 0
    assert not folder.exists()


def test_links_are_never_followed(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("mine")
    (folder / "study.db").symlink_to(outside / "data")
    (folder / "images").symlink_to(outside)
    (tmp_path / "results" / "link").symlink_to(folder)
    refused(runs("rm", "link", "--yes"), "is a link to")
    refused(runs("rename", "link", "other"), "is a link to")
    assert runs("rm", "one", "--yes").exit_code == 0
    assert (outside / "data").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["images"]


def test_the_lock_is_no_way_out_of_the_folder(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    (folder / "run.lock").symlink_to(tmp_path / "made")
    refused(runs("rm", "one", "--yes"), "cannot be changed")
    assert not (tmp_path / "made").exists()


def test_what_is_no_run_is_refused_and_nothing_is_removed(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").touch()
    for name, words in (
        ("mine", "not the folder of a run"),
        ("ones", "did you mean 'one'?"),
        ("", "not the folder"),
        ("results", "not the"),
    ):
        refused(runs("rm", "one", name, "--yes"), words)
    refused(runs("rm", "one", str(folder), "--yes"), "a second time")
    assert len(list(folder.iterdir())) == 3
    assert (tmp_path / "mine" / "data").exists()
    assert runs("--json", "rm", "one", "--yes").exit_code == 2
    assert folder.exists()


def test_a_run_at_work_is_neither_removed_nor_renamed(tmp_path: Path, runs: Runs) -> None:
    other = write_run(tmp_path, SIX, name="other")
    # The manifest of one that has just gone on does not say so yet.
    for state in ("running", "complete"):
        folder = write_run(tmp_path, SIX, name=state, state=state)
        with (folder / "run.lock").open("w") as lock, flocked(lock.fileno()):
            refused(runs("rename", state, "new"), "at work")
            refused(runs("rm", "other", state, "--yes"), "at work")
            assert (folder / "manifest.json").exists()
    assert (other / "manifest.json").exists()


def test_damaged_runs_can_be_removed(tmp_path: Path, runs: Runs) -> None:
    for name in ("manifest.json", "trials.parquet"):
        folder = write_run(tmp_path, SIX, name="one")
        (folder / name).write_text("{")
        assert runs("rm", "one", "--yes").exit_code == 0
        assert not folder.exists()
    folder = write_run(tmp_path, SIX, name="one")
    (folder / "manifest.json").unlink()
    assert runs("rm", "one", "--yes").exit_code == 0
    assert not folder.exists()


def test_without_a_terminal_it_asks_for_yes(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    result = runs("rm", "one")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert folder.exists()


def test_on_a_terminal_it_shows_what_would_go_and_asks(tmp_path: Path) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    (folder / "notes.txt").touch()
    for answer, code in (("\n", 1), ("y\n", 0)):
        terminal, end = pty.openpty()
        program = [sys.executable, "-m", "archsearch", "runs", "rm", "one"]
        with subprocess.Popen(
            program, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            os.write(terminal, answer.encode())
            out, err = process.communicate(timeout=60)
        os.close(terminal)
        os.close(end)
        assert (process.returncode, (folder / "manifest.json").exists()) == (code, code != 0), err
        for words in ("6 of 8 trials complete", "KiB", "notes.txt", "Remove this run?"):
            assert words in err
        assert out.startswith("removed") == (code == 0)


@pytest.mark.slow
def test_a_study_in_another_database_stays_and_the_sentence_says_how_to_remove_it(tmp_path: Path, runs: Runs) -> None:
    with postgres() as url:
        folder, config = tmp_path / "results" / "test", make_config(tmp_path / "log")
        run(folder, config, 1, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
        result = runs("rm", "test", "--yes")
        assert result.exit_code == 0
        assert not folder.exists()
        (command,) = (part for part in result.stdout.split("`") if part.startswith("optuna "))
        assert "***" in command, "no password is shown"
        # The run's own command makes the folder again, and then the printed one removes the study.
        run(folder, config, 2, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
        assert len(read_trials(folder)) == 2
        shutil.rmtree(folder)
        words = command.replace("'", "").split()
        words[words.index("--storage") + 1] = url
        program = [sys.executable, "-c", "from optuna.cli import main; main()", *words[1:]]
        subprocess.run(program, check=True, capture_output=True)
        run(folder, config, 1, fixed={}, storage_url=url, worker=InProcessWorker(evaluate))
        assert len(read_trials(folder)) == 1, "a new study"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_changed_is_one_sentence(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    folder.chmod(0o500)
    refused(runs("rm", "one", "--yes"), "cannot be changed")
    folder.chmod(0o700)
    (tmp_path / "results").chmod(0o500)
    refused(runs("rename", "one", "two"), "cannot be changed")
    (tmp_path / "results").chmod(0o700)
    assert len(read_trials(folder)) == 7


# Renaming


def test_a_renamed_run_goes_on_under_its_new_name_and_keeps_its_study(tmp_path: Path, runs: Runs) -> None:
    root = tmp_path / "results"
    config = make_config(tmp_path / "log", papers=())
    old = root / default_name(config, config.space)
    run(old, replace(config, name=old.name), 2, fixed={}, worker=InProcessWorker(evaluate))
    write_manifest({**read_manifest(old), "command": ["archsearch", "run", "--budget", "4.5G"]}, old)
    os.utime(old / "manifest.json", (1000, 1000))
    result = runs("rename", old.name, "mine")
    assert result.exit_code == 0, result.output
    command = "archsearch run --budget 4.5G --output results/mine"
    assert command in result.stdout
    mine = root / "mine"
    manifest = read_manifest(mine)
    assert (manifest["name"], manifest["study"], manifest["storage"]) == ("mine", old.name, str(mine / "study.db"))
    assert (mine / "manifest.json").stat().st_mtime == 1000, "the latest run stays the latest"
    assert not old.exists()
    named = duckdb.connect().execute(f"select distinct run from '{mine}/*.parquet'").fetchall()
    assert named == [("mine",)]
    before = read_trials(mine)
    assert "Run mine, complete" in CliRunner().invoke(main, ["report", "mine"]).stdout
    # The request itself finds the run, and says what the printed command does.
    with pytest.raises(UserError, match=r"go on with it by --output .*mine"):
        find_run(root, config, config.space, lambda line: None)
    run(mine, replace(config, name="mine"), 4, fixed={}, worker=InProcessWorker(evaluate))
    after = read_trials(mine)
    assert after.iloc[:2].drop(columns="front").equals(before.drop(columns="front"))
    assert len(after) == 4
    assert read_manifest(mine)["study"] == old.name
    # Back again: nothing of it is left.
    assert runs("rename", "mine", old.name).exit_code == 0
    assert find_run(root, config, config.space, lambda line: None) == old
    assert set(read_trials(old)["run"]) == {old.name}


@pytest.mark.parametrize("form", [["--output", "results/one"], ["--output=results/one"], []])
def test_an_output_in_the_command_is_the_new_folder(form: list[str], tmp_path: Path, runs: Runs) -> None:
    write_run(tmp_path, SIX, name="one", extra={"command": ["archsearch", "run", *form, "--budget", "4.5G"]})
    assert runs("rename", "one", "two words").exit_code == 0
    command = read_manifest(tmp_path / "results" / "two words")["command"]
    assert command == ["archsearch", "run", "--budget", "4.5G", "--output", "results/two words"]


def test_names_that_are_none_or_taken_are_refused(tmp_path: Path, runs: Runs) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    write_run(tmp_path, SIX, name="two")
    (tmp_path / "results" / "empty").mkdir()
    (tmp_path / "results" / "nowhere").symlink_to("nothing")
    for name in ("", " ", ".", "..", ".x", "../x", "a/b", "a\\b", "a:1", "\x1b[31m", "a\nb", 'a"b'):
        refused(runs("rename", "one", name), "not a name")
    assert runs("rename", "one", "-x").exit_code == 2
    for name in ("one", "two", "empty", "nowhere"):
        refused(runs("rename", "one", name), "is there already")
    refused(runs("rename", "one", "a" * 300), "cannot be changed")
    refused(runs("rename", "none", "three"), "not the folder of a run")
    (folder / "manifest.json").write_text("{")
    refused(runs("rename", "one", "three"), "manifest")
    assert folder.exists()


def test_files_that_cannot_be_read_do_not_keep_a_run_from_its_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path, SIX, name="one")
    (folder / "trials.parquet").write_bytes(b"PAR1")
    (folder / "front.parquet").unlink()
    renamed = rename_run(folder, "two")
    assert results.read_manifest(renamed)["name"] == "two"
    assert (renamed / "trials.parquet").read_bytes() == b"PAR1"
