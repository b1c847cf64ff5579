"""`archsearch export`: what it writes of a paper, a file, stdin and a row of a run, what it says, and how it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.report_runs import SIX, write_run

from archsearch import Arch, build, load, load_space, save
from archsearch.cli import main
from archsearch.results import Row

TINY = load_space(str(Path(__file__).parents[1] / "data" / "tiny.toml")).sample(lambda name, choices: choices[0])
Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `archsearch export ...` in an empty folder, the architecture TINY on stdin."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Result:
        given = json.dumps(TINY.to_dict())
        return CliRunner().invoke(main, ["export", *words], input=given, env={"COLUMNS": "140"})

    return run


def loaded_by(line: str) -> Any:
    """What the printed line of Python leaves as `model`."""
    names: dict[str, Any] = {}
    exec(compile(line, "printed", "exec"), names)
    return names["model"].eval()


@pytest.mark.parametrize("out", ["network.safetensors", "folder"])
def test_the_line_that_is_printed_loads_what_was_written(out: str, cli: Cli) -> None:
    torch.manual_seed(4)
    network = build(TINY).eval()
    save(network, "weights.safetensors", provenance={"weights": "drawn by a test"})
    result = cli("-", out, "--weights", "weights.safetensors")
    assert result.exit_code == 0, result.output
    (line,) = [line.strip() for line in result.stdout.splitlines() if line.startswith("  import")]
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded_by(line)(images), network(images))
    assert "Weights: drawn by a test (weights.safetensors)." in result.stdout
    assert "writing" in result.stderr


def test_initial_weights_cannot_be_overlooked(cli: Cli) -> None:
    result = cli("-", "folder")
    assert "NOT TRAINED" in result.stdout
    assert "NOT TRAINED" in Path("folder/README.md").read_text()
    assert load("folder/model.safetensors").arch_id == TINY.arch_id


def test_json_has_every_figure(cli: Cli) -> None:
    result = cli("-", "a.toml", "--json")
    document = json.loads(result.stdout)
    assert (document["arch_id"], document["macs"], document["params"]) == (
        TINY.arch_id,
        TINY.cost().macs,
        TINY.cost().params,
    )
    (file,) = document["files"]
    assert file["bytes"] == Path("a.toml").stat().st_size
    assert file["load"].startswith("archsearch cost ")
    shown = CliRunner().invoke(main, ["cost", "a.toml", "--json"])
    assert json.loads(shown.stdout)["arch_id"] == TINY.arch_id


def test_options_reach_the_network(cli: Cli) -> None:
    result = cli("-", "x", "--format", "safetensors", *"--image-size 64 96 --num-classes 3 --in-chans 1".split())
    assert result.exit_code == 0, result.output
    network = load("x.safetensors")
    assert (network.size, network.num_classes, network.arch.in_chans) == ((64, 96), 3, 1)


def rows() -> list[Row]:
    """A run's rows, all of the small architecture."""
    names = ("davit_tiny", "van_b2")
    document = {**TINY.to_dict(), "name": "tiny"}
    assert all(row["paper"] in (*names, None) for row in SIX)
    return [row | {"arch": json.dumps(document)} for row in SIX]


def test_the_card_of_a_trial_has_its_figures_and_their_conditions(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path, rows())
    assert cli("one:3", "member").exit_code == 0
    card = " ".join(Path("member/README.md").read_text().split())
    assert "Trial 3 of the run one. It is on the front of 3 trials by proxy_score, throughput_img_s, params." in card
    assert "0.790 +- 0.010 (proxy fashion-mnist-12k@32px/400steps/v1)" in card
    assert "25.0 images per second" in card
    assert "measured on cpu, float32, eager, batch 4, 224 px" in card
    assert f"{TINY.cost().macs}" in card
    assert "Apache License 2.0" in card
    document = json.loads(cli("one:4", "beside.toml", "--json").stdout)
    assert document["run"]["is_member"] is False
    assert document["run"]["row"]["proxy_score"] == 0.75
    failed = cli("one:5", "failed")
    assert failed.exit_code == 0
    assert "proxy_score:" not in Path("failed/README.md").read_text()


def test_the_card_says_the_runtime_the_precision_and_the_threads(cli: Cli, tmp_path: Path) -> None:
    runtime = {"runtime": "openvino", "runtime_version": "2026.4", "runtime_providers": ["CPU"], "precision": "int8"}
    where = json.dumps(runtime | {"threads": 2, "reference": "van_b0", "device": "cpu"})
    write_run(tmp_path, [row | {"conditions": where} for row in rows()])
    assert cli("one:3", "member").exit_code == 0
    card = " ".join(Path("member/README.md").read_text().split())
    assert "measured on cpu, openvino 2026.4 (CPU), int8, batch 4, 224 px, 2 threads, reference van_b0" in card


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-", "none/x"], "there is no folder"),
        (["one:3", "x"], "not the folder of a run"),
        (["van_b00", "x"], "did you mean 'van_b0'?"),
        (["-", "x", "--batch", "0"], "neither dynamic nor a whole number from 1"),
        (["-", "x", "--batch", "2"], "--batch: has no meaning for --format timm"),
        (["-", "x", "--weights", "no.safetensors"], "no such file"),
        (["-", "x", "--format", "h5"], "'h5' is not one of"),
        (["-", "x", "--image-size", "7"], "on a map of"),
    ],
)
def test_bad_input_is_one_sentence_with_exit_code_2(words: list[str], sentence: str, cli: Cli, tmp_path: Path) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_without_force(cli: Cli) -> None:
    assert cli("-", "a.toml").exit_code == 0
    text = Path("a.toml").read_text()
    assert Arch.from_dict(load_space("a.toml").arch().to_dict()) == TINY
    refused = cli("-", "a.toml", "--num-classes", "3")
    assert refused.exit_code == 2
    assert "exists; give another name, or --force to replace it" in refused.stderr
    assert Path("a.toml").read_text() == text
    assert cli("-", "a.toml", "--num-classes", "3", "--force").exit_code == 0
    assert load_space("a.toml").arch().num_classes == 3
