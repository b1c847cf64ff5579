"""The trainings of an audit: safe against kills, shared among processes, resumed, and the same as a search's."""

import json
import multiprocessing
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.audits import STEPS, make_plan, make_record
from support.settings import settings_for

from archsearch.cli.audit import audit as audit_command
from archsearch.data import load
from archsearch.data.dataset import load_fashion_mnist
from archsearch.proxy import AuditPlan, AuditStore, ProxyTask, Subject
from archsearch.proxy.audit.plan import paper_subjects
from archsearch.space import paper


def test_a_line_cut_short_is_ignored_and_writing_continues_after_it(tmp_path: Path) -> None:
    store, subjects = AuditStore(tmp_path), make_plan().subjects
    records = [make_record(one, 0, {STEPS: 0.5}) for one in subjects[:3]]
    for record in records[:2]:
        store.append(record)
    path = tmp_path / "scores.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert list(store.records().values()) == records[:1]
    store.append(records[2])
    assert list(store.records().values()) == [records[0], records[2]]
    assert b"NaN" not in path.read_bytes()


def _append(folder: Path, place: int) -> None:
    """Train everything that no other process has; the score is the number of the process."""
    store = AuditStore(folder)
    for number in range(30):
        record = make_record(Subject(arch=paper("van_b0"), group="papers"), number, {STEPS: place / 10})
        with store.claimed(record.key) as is_ours:
            if is_ours:
                store.append(record)


@pytest.mark.slow
def test_processes_at_once_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(tmp_path, place)) for place in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines) == list(range(30))


def test_a_claim_holds_as_long_as_its_process(tmp_path: Path) -> None:
    key = ("p", "a" * 12, 0)
    store = AuditStore(tmp_path)
    code = (
        "import sys; from pathlib import Path; from archsearch.proxy.audit.store import AuditStore\n"
        f"with AuditStore(Path({str(tmp_path)!r})).claimed({key!r}) as is_ours: print(is_ours, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with store.claimed(key) as is_ours:
            assert not is_ours
        other.kill()
        other.wait()
    with store.claimed(key) as is_ours:
        assert is_ours


TINY = """
title = "tiny"
data = "fashion-mnist"
[profile]
image_size = 32
stem_stride = 2
width_divisor = 16
[recipe]
steps = 4
batch_size = 50
learning_rate = 2e-3
dtype = "float32"
augment = "shift"
"""


@pytest.mark.slow
def test_the_command_resumes_and_trains_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_fashion_mnist()
    few = replace(data, val_images=data.val_images[:200], val_labels=data.val_labels[:200])
    monkeypatch.setattr(load, "load_fashion_mnist", lambda: few)
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    options = ["--proxy", "tiny.toml", "--hybrids", "0", "--device", "cpu", "--output", "here", "--json"]

    def run(*more: str) -> dict[str, Any]:
        result = CliRunner().invoke(audit_command, [*options, *more])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    first = run("--papers", "van_b0,van_b1", "--seeds", "1")
    assert first["trainings"] == 2
    assert first["comparisons"] == []
    lines = Path("here/scores.jsonl").read_text().splitlines()
    second = run("--papers", "van_b0,van_b1,pvt_tiny", "--seeds", "2")
    grown = Path("here/scores.jsonl").read_text().splitlines()
    assert grown[:2] == lines
    assert len(grown) == 6
    assert second["groups"]["papers"]["seeds"] == 2
    assert json.loads(Path("here/audit.json").read_text())["verdict"] == second["verdict"]
    assert {tuple(json.loads(line)["curve"]) for line in grown} == {("1", "2", "4")}
    again = run("--papers", "van_b0,van_b1,pvt_tiny", "--seeds", "2")
    assert Path("here/scores.jsonl").read_text().splitlines() == grown
    assert again["comparisons"] == second["comparisons"]


@pytest.mark.slow
def test_its_scores_equal_those_of_a_search_and_it_says_what_it_waits_for(tmp_path: Path) -> None:
    from archsearch.proxy.audit.training import Trainer
    from archsearch.search.evaluate import evaluate

    (tmp_path / "tiny.toml").write_text(TINY)
    settings = {**settings_for(str(tmp_path / "tiny.toml")), "phases": ["proxy"]}
    events: list[dict[str, Any]] = []
    evaluate(paper("van_b0").to_dict(), settings, {}, events.append)
    searched = next(event["values"] for event in events if event["event"] == "phase")
    plan = AuditPlan(
        proxy=ProxyTask.from_dict(settings),
        device="cpu",
        subjects=paper_subjects(["van_b0"]),
        num_seeds=1,
        longer=0,
    )
    code = (
        "import sys; from archsearch.lock import machine_lock, work_for; work_for('run results/one')\n"
        "with machine_lock('cpu-0', exclusive=True): print('held', flush=True); sys.stdin.read()"
    )
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"

        def say(line: str) -> None:
            said.append(line)
            other.kill()

        record = Trainer(plan).train(next(plan.trainings()), lambda progress: None, say=say)
    assert [f"process {other.pid} (run results/one" in line for line in said] == [True], said
    assert (record.score, record.standard_error) == (searched["proxy_score"], searched["proxy_score_se"])
    assert asdict(record)["proxy_id"] == searched["proxy_id"]


def test_a_run_and_a_proxy_together_are_refused() -> None:
    result = CliRunner().invoke(audit_command, ["some-run", "--proxy", "fashion-mnist"])
    assert result.exit_code == 2
    assert "name one" in result.stderr


def test_settings_of_an_earlier_version_make_the_same_task() -> None:
    settings = settings_for()
    task = ProxyTask.from_dict(settings)
    assert task.to_dict() == {name: settings[name] for name in task.to_dict()}
    proxy = settings["proxy"]
    recipe = {name: value for name, value in proxy["recipe"].items() if name not in ("micro_batch", "clip")}
    earlier = {"proxy": {**proxy, "recipe": recipe}, "proxy_id": settings["proxy_id"], "proxy_num_val": task.num_val}
    found = ProxyTask.from_dict(earlier)
    assert (found.source, found.scale, found.recipe, found.rungs) == (task.source, task.scale, task.recipe, task.rungs)
    assert (found.proxy_id, found.num_val, found.training_free) == (task.proxy_id, task.num_val, False)
