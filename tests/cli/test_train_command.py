"""The command line of `archsearch train`: options, what it prints, and how it ends."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.trainings import SMALL_TWINS, tiny_folder

from archsearch.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("images"))


def train(folder: Path, out: Path, *options: str) -> Result:
    words = [
        "train",
        str(SMALL_TWINS),
        str(out),
        "--data",
        str(folder),
        "--device",
        "cpu",
        "--batch-size",
        "8",
        "--workers",
        "0",
    ]
    return CliRunner().invoke(main, [*words, *options], env={"COLUMNS": "400"})


def test_it_prints_both_accuracies_the_recipe_and_the_next_command(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "out", "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    for words in ("measured here", "weights ", "average of the weights (EMA)", "9 validation images of images"):
        assert words in result.stdout
    assert "Recipe twins_svt: 12 of its 12 blocks are of this paper's kinds" in result.stdout
    assert (
        f"Next: archsearch export {SMALL_TWINS} {tmp_path}/out/export --weights {tmp_path}/out/model_ema.safetensors"
        in result.stdout
    )
    assert re.search(
        r"epoch 1 of 1: loss \d\.\d+, top-1 [\d.]+ \(average of weights [\d.]+\), \d+ img/s", result.stderr
    )
    found = json.loads(train(folder, tmp_path / "out", "--epochs", "1", "--json").stdout)
    assert (found["epochs"], found["num_classes"], found["val_images"], found["published"]) == (1, 3, 9, None)
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        "training.json", "checkpoint.pt", "metrics.parquet", "model.safetensors", "model_ema.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-size", "8"], "on a map of 2x2"),
        (["--recipe", "davitt"], "did you mean 'davit'"),
        (["--batch-size", "9"], "images are mixed in pairs: multiples of 2 are allowed"),
        (["--init-from", "absent.safetensors"], "absent.safetensors"),
        (["--teacher", "van_b0"], "--teacher-weights"),
    ],
)
def test_bad_input_is_one_sentence_and_the_folder_stays_free(
    folder: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = train(folder, tmp_path / "out", "--epochs", "1", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "training.json").exists()


def test_tensorboard_writes_events_or_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "out", "--epochs", "1", "--tensorboard")
    if find_spec("tensorboard"):
        assert list((tmp_path / "out" / "tensorboard").iterdir())
    else:
        assert result.exit_code == 2
        assert "the package tensorboard is not installed" in result.stderr
