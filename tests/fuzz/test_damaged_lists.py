"""Damaged runs among whole ones: the list, the comparison, renaming and removing end in one sentence, or do their work."""

import json
import random
from pathlib import Path

import pytest
from support.fuzz import fault_of_command, mutated_bytes, mutated_document
from support.report_runs import SIX, write_run


def _damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a run; returns its name."""
    path = folder / rng.choice(["manifest.json"] * 5 + ["trials.parquet"])
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(json.dumps(mutated_document(json.loads(path.read_text()), rng)))
    else:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    return path.name


@pytest.mark.slow
def test_40_damaged_runs_are_listed_compared_renamed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, faults = random.Random(20), []
    write_run(tmp_path, SIX, name="whole")
    for number in range(40):
        name = _damage(write_run(tmp_path, SIX, name="run", extra={"settings": {"device": "cpu", "proxy": None}}), rng)
        commands = [
            ["runs"],
            ["report", "whole", "run"],
            ["report", "run", "whole", "--json"],
            ["runs", "rename", "run", "new"],
        ]
        faults += [f"{number}, {name}: {fault}" for words in commands if (fault := fault_of_command(words))]
        left = "new" if Path("results/new").exists() else "run"
        faults += [f"{number}, {name}: {fault}"] if (fault := fault_of_command(["runs", "rm", left, "--yes"])) else []
        assert not Path("results", left).exists()
    assert not faults, "\n".join(faults)
