"""Small trainings: an ImageFolder that is made, networks that learn on it in seconds, and requests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from support.pictures import make_folder
from torch import Tensor

import archsearch
from archsearch.space import Arch, load_space
from archsearch.training import TrainRequest

DATA = Path(__file__).parents[1] / "data"
SMALL_TWINS = DATA / "twins_svt_small_64px.toml"
CLOTHING = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "clothing-mini"
NUM_TRAIN, NUM_VAL = 26, 9
# What an epoch's row holds of clocks and machines.
CLOCKS = ["images_s", "seconds"]

# A recipe without drop path and mixing, for what must not depend on the number of processes in them.
PLAIN = "epochs = 2\nbatch_size = 8\nlearning_rate = 0.001\nrepeats = 1\ndrop_path_rate = 0.0\nclip = 1.0\n"


def tiny_folder(root: Path) -> Path:
    """26 pictures to train on and 9 to validate on, of three classes."""
    make_folder(root / "train", {"a": 9, "b": 8, "c": 9})
    make_folder(root / "val", {"a": 3, "b": 3, "c": 3})
    return root


def tiny_arch() -> Arch:
    """The smallest architecture of tests/data/tiny.toml, for 32 px."""
    arch = load_space(str(DATA / "tiny.toml")).sample(lambda name, choices: choices[0])
    return replace(arch, image_size=32)


def write_recipe(path: Path, text: str = PLAIN) -> str:
    """A recipe's file, by its name."""
    path.write_text(text)
    return str(path)


def make_request(data: Path, out: Path, **changes: Any) -> TrainRequest:
    """Two epochs of the tiny network in steps of 8, by the nearest paper's recipe."""
    asked: dict[str, Any] = {
        "what": "tiny",
        "arch": tiny_arch(),
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
        "workers": 0,
    }
    return TrainRequest(data=str(data), out=out, **{**asked, **changes})


def weights(out: Path, name: str = "model") -> dict[str, Tensor]:
    return archsearch.read_checkpoint(out / f"{name}.safetensors")


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []


def assert_same_training(got: Path, expected: Path) -> None:
    """Bit by bit: weights, their average, and all figures of the epochs but the clock's."""
    for name in ("model", "model_ema"):
        assert_equal(weights(got, name), weights(expected, name))
    one, other = (pd.read_parquet(out / "metrics.parquet").drop(columns=CLOCKS) for out in (got, expected))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
