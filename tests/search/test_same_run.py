"""The same request finds its run: a space that is written otherwise or lies elsewhere, a renamed folder, a run of an earlier version."""

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.runs import InProcessWorker, make_config, one_stage, run
from support.stub_evaluators import evaluate

from archsearch import results
from archsearch.errors import UserError
from archsearch.search import RunConfig, open_run
from archsearch.search.same_run import default_name, find_run
from archsearch.space import load_space

SPACE = one_stage(
    """width = [64, 96]
depth = [1, 2, 3]
block = ["mlp", "lka"]
mlp_ratio = 4
lka = { kernel = [15, 21] }
"""
)
# The same architectures: other orders, 4 as a fraction, the layer's own dilation written out.
OTHERWISE = (
    SPACE.replace("[64, 96]", "[96, 64]")
    .replace("[1, 2, 3]", "[3, 1, 2]")
    .replace('["mlp", "lka"]', '["lka", "mlp"]')
    .replace("mlp_ratio = 4", "mlp_ratio = 4.0")
    .replace("{ kernel = [15, 21] }", "{ dilation = 3, kernel = [21, 15] }")
)
SMALL: dict[str, Any] = {"budget_macs": 250_000_000, "tolerance": 0.9, "papers": ()}


def small(log: Path, text: str = SPACE, name: str = "x.toml", **changes: Any) -> RunConfig:
    return make_config(log, space_text=text, space_name=name, **{**SMALL, **changes})


def found(root: Path, config: RunConfig) -> Path:
    return find_run(root, config, config.space, said.append)


said: list[str] = []


def started(root: Path, config: RunConfig, trials: int = 2) -> Path:
    """The run of a request in the folder that it finds."""
    folder = found(root, config)
    run(folder, replace(config, name=folder.name), trials, fixed={}, worker=InProcessWorker(evaluate))
    return folder


@pytest.mark.slow
def test_a_space_elsewhere_or_written_otherwise_is_the_same_run(tmp_path: Path) -> None:
    folder = started(tmp_path, small(tmp_path / "log", sampler="tpe"))
    before = results.read_trials(tmp_path / folder.name)
    for name in ("./x.toml", "/elsewhere/x.toml", "y.toml"):
        assert found(tmp_path, small(tmp_path / "log", name=name, sampler="tpe")) == folder
    other = small(tmp_path / "log", text=OTHERWISE, name="y.toml", sampler="tpe")
    assert started(tmp_path, other, 4) == folder
    assert "written otherwise" in said[-1]
    parts = results.read_trials(folder)
    assert parts.iloc[:2].drop(columns="front").equals(before.drop(columns="front"))
    whole = small(tmp_path / "log2", sampler="tpe", settings={"log": str(tmp_path / "log")})
    run(tmp_path / "whole", whole, 4, fixed={}, worker=InProcessWorker(evaluate))
    assert parts.arch_id.tolist() == results.read_trials(tmp_path / "whole").arch_id.tolist()
    assert (folder / "space.toml").read_text() == SPACE
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [("[64, 96]", "[64, 128]"), ("[1, 2, 3]", "[1, 2]"), ("[15, 21]", "21"), ("image_size = 224", "image_size = 192")],
)
def test_other_architectures_are_another_run(old: str, new: str, tmp_path: Path) -> None:
    one, other = small(tmp_path / "log"), small(tmp_path / "log", text=SPACE.replace(old, new))
    assert [words[:10] for words in one.differences(other)] == ["space was "]


def test_the_order_of_choices_is_no_difference_in_any_shipped_space(tmp_path: Path) -> None:
    for name in ("hybrid", "davit_tiny"):
        text = load_space(name).text
        assert small(tmp_path, text=text).differences(small(tmp_path, text=f"# again\n{text}")) == []
    hybrid = load_space("hybrid")
    assert json.dumps(hybrid.canonical(), sort_keys=True) == json.dumps(
        load_space("hybrid").canonical(), sort_keys=True
    )


def test_a_renamed_folder_is_found_and_offered(tmp_path: Path) -> None:
    config = small(tmp_path / "log")
    folder = started(tmp_path, config)
    mine = folder.rename(tmp_path / "mine")
    for _ in range(2):
        with pytest.raises(UserError, match=f"this request's run is in {mine}, .*go on with it by --output {mine}"):
            found(tmp_path, small(tmp_path / "log", text=OTHERWISE))
        run(mine, replace(config, name="mine"), 3, fixed={}, worker=InProcessWorker(evaluate))  # as --output says
    assert results.read_manifest(mine)["name"] == "mine"
    assert len(results.read_trials(mine)) == 3
    # Another request, and a run that was given its name at its start, are left alone.
    run(
        tmp_path / "chosen",
        replace(small(tmp_path / "log", seed=1), name="chosen"),
        1,
        fixed={},
        worker=InProcessWorker(evaluate),
    )
    for seed in (1, 2):
        other = small(tmp_path / "log", seed=seed)
        assert found(tmp_path, other).name == default_name(other, other.space)
    (mine / "manifest.json").write_text("{}")
    assert found(tmp_path, config) == folder


@pytest.mark.slow
def test_a_run_of_an_earlier_version_says_its_options_and_goes_on_with_them(tmp_path: Path) -> None:
    """Before there were rungs, threads and cores in a configuration; the sampler was tpe by default."""
    old = small(tmp_path / "log", sampler="tpe")
    run(tmp_path / "run", old, 2, fixed={}, worker=InProcessWorker(evaluate))
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "study.db")) as connection:
        ((text,),) = connection.execute(
            "SELECT value_json FROM study_system_attributes WHERE key = 'archsearch:config'"
        )
        stored = {key: value for key, value in json.loads(text).items() if key not in ("rungs", "fix")}
        connection.execute(
            "UPDATE study_system_attributes SET value_json = ? WHERE key = 'archsearch:config'", (json.dumps(stored),)
        )
        connection.commit()
    now = {"threads": None, "cpus": None, "weights_dtype": None}
    asked = small(tmp_path / "log", sampler="known-cost", settings=now, rungs=(1, 8))
    with pytest.raises(UserError, match=r"sampler was tpe.*go on with it by --sampler tpe --no-rungs$"):
        run(tmp_path / "run", asked, 3, fixed={}, worker=InProcessWorker(evaluate))
    run(
        tmp_path / "run",
        small(tmp_path / "log", sampler="tpe", settings=now),
        3,
        fixed={},
        worker=InProcessWorker(evaluate),
    )
    assert len(results.read_trials(tmp_path / "run")) == 3


def test_what_no_option_gives_back_is_not_promised(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", small(tmp_path / "log")):
        pass
    with (
        pytest.raises(UserError, match="or ask for the same"),
        open_run(tmp_path / "run", small(tmp_path / "other", seed=1)),
    ):
        pass
