"""Damaged runs: 300 folders with a wrong manifest, parquet file, space or database end in one sentence, or go on."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.fuzz import damaged_toml, fault_of_call, fault_of_command, mutated_bytes, mutated_document
from support.runs import InProcessWorker, make_rung_config, run
from support.stub_evaluators import evaluate

from archsearch import load_run
from archsearch.search import RunConfig
from archsearch.search.same_run import find_run

SPACE = """
image_size = 64
num_classes = 10
stem = { kind = "patch", patch = { kernel = 4 } }
[[stages]]
width = [32, 64]
depth = [1, 2, 3]
block = ["mlp", "lka"]
mlp_ratio = [2, 4]
lka = { kernel = 21 }
"""
TRIALS = 5


def _config(folder: Path) -> RunConfig:
    config = make_rung_config(folder / "log", space_text=SPACE, budget_macs=12_000_000, tolerance=0.9, papers=())
    return replace(config, name="run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with stopped and complete trials, timed again and trained with two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    worker = InProcessWorker(evaluate)
    run(folder / "run", _config(folder), TRIALS, fixed={}, recheck=True, num_seeds=2, worker=worker)
    return folder


def _damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a run; returns its name."""
    name = rng.choice(["manifest.json"] * 5 + ["study.db"] * 3 + ["trials.parquet", "front.parquet", "space.toml"])
    path = folder / name
    if name == "manifest.json" and rng.random() < 0.8:
        path.write_text(json.dumps(mutated_document(json.loads(path.read_text()), rng)))
    elif name == "space.toml":
        path.write_bytes(damaged_toml(path.read_text(), rng))
    elif name == "study.db":
        content = path.read_bytes()
        for _ in range(rng.choice((1, 1, 3, 10, 30))):
            content = mutated_bytes(content, rng) if rng.random() < 0.3 else _scratched(content, rng)
        path.write_bytes(content)
    else:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    return name


def _scratched(content: bytes, rng: random.Random) -> bytes:
    """The database with a few other letters in one of its texts: SQLite itself sees nothing wrong."""
    data = bytearray(content)
    letters = [
        at for at in rng.choices(range(len(data)), k=min(len(data), 2000)) if chr(data[at]) in '0123456789"{}:,abcdefg'
    ]
    for at in letters[: rng.choice((1, 3))]:
        data[at] = rng.choice(b'0129"{}:,az\xff\x00')
    return bytes(data)


def _uses(folder: Path, name: str) -> list[Callable[[], str | None]]:
    """What a person does with the run: each returns what is wrong with the answer."""

    def goes_on() -> str | None:
        worker = InProcessWorker(evaluate)
        return fault_of_call(lambda: run(folder, _config(folder.parent), TRIALS + 1, fixed={}, worker=worker))

    def finds() -> str | None:
        config = _config(folder.parent)
        return fault_of_call(lambda: find_run(folder.parent, config, config.space, lambda line: None))

    reading = [
        lambda: fault_of_command(["report", str(folder)]),
        lambda: fault_of_command(["report", "--json", str(folder)]),
        lambda: fault_of_command(["report", "--csv", str(folder)]),
        lambda: fault_of_call(lambda: load_run(folder)),
        lambda: fault_of_command(["runs", "restore", str(folder)]),
        finds,
    ]
    return [goes_on, goes_on, goes_on, reading[4]] if name == "study.db" else [goes_on, *reading]


def assert_each_ends_well(
    whole: Path, folder: Path, rng: random.Random, number: int, use: Callable[[Path, str], str | None]
) -> None:
    """So many copies of a run, each with one file damaged, whose name `use` is given; it returns the fault of what it did."""
    faults = []
    for place in range(number):
        shutil.copytree(whole / "run", folder)
        name = _damage(folder, rng)
        fault = use(folder, name)
        if fault is not None:
            faults.append(f"{place}, {name}: {fault}")
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_damaged_runs(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(14)
    assert_each_ends_well(whole, tmp_path / "run", rng, 300, lambda folder, name: rng.choice(_uses(folder, name))())


@pytest.mark.slow
def test_one_trial_of_damaged_runs(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(20)

    def use(folder: Path, _: str) -> str | None:
        trial = f"{folder}:{rng.randrange(TRIALS + 1)}"
        return fault_of_command(["report", trial, *(["--json"] if rng.random() < 0.5 else [])])

    assert_each_ends_well(whole, tmp_path / "run", rng, 150, use)
