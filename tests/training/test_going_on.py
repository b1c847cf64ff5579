"""A training gives the same bits however it was stopped, however many processes share it, and is not mixed up with another one."""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.trainings import (
    CLOTHING,
    NUM_TRAIN,
    PLAIN,
    SMALL_TWINS,
    assert_equal,
    assert_same_training,
    make_request,
    tiny_folder,
    weights,
    write_recipe,
)
from torch import nn
from torch.nn import functional
from torchvision.datasets import ImageFolder

import archsearch
from archsearch.errors import RunError, UserError
from archsearch.space import load_space, paper
from archsearch.training import train
from archsearch.training.folder import read_state, training_lock

CHECKOUT = Path(__file__).parents[2]


def wait_for_step(out: Path, least: int, process: "subprocess.Popen[str]") -> int:
    """Updates of the first checkpoint that has so many."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state = read_state(out)
        if state is not None and state["steps"]["step"] >= least:
            return int(state["steps"]["step"])
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def command(out: Path, data: Path, *options: str) -> list[str]:
    words = [
        "train",
        str(SMALL_TWINS),
        str(out),
        "--data",
        str(data),
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    return [*words, "--checkpoint-every", "1", *options]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "archsearch", *arguments],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_killed_ends_the_same(data: Path, tmp_path: Path, number: int, batch_size: int, at: int) -> None:
    """Kill it in mid-epoch, go on, and compare with a training that nobody killed; the second decodes in processes of its own."""
    arguments = command(tmp_path / "killed", data, "--batch-size", str(batch_size))
    process = start([*arguments, "--workers", "0"])
    done = wait_for_step(tmp_path / "killed", at, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert done % (number // batch_size) != 0
    arch = load_space(str(SMALL_TWINS)).arch()
    for out in ("killed", "whole"):
        request = make_request(
            data, tmp_path / out, arch=arch, batch_size=batch_size, workers=1 if out == "killed" else 0
        )
        said: list[str] = []
        train(request, say=said.append)
        assert any("going on in epoch" in line for line in said) == (out == "killed")
    assert_same_training(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_killed_in_mid_epoch_it_goes_on_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    assert_killed_ends_the_same(folder, tmp_path, NUM_TRAIN, 2, at=5)


@pytest.mark.slow
def test_killed_on_photographs_it_goes_on_to_the_same_bits(photographs: Path, tmp_path: Path) -> None:
    if photographs != CLOTHING.resolve():
        pytest.skip("with --whole only: a made folder is tested above")
    assert_killed_ends_the_same(photographs, tmp_path, 1435, 64, at=25)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path / "out", folder, "--batch-size", "2", "--workers", "0")
    process = start(arguments)
    wait_for_step(tmp_path / "out", 3, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"go on with: archsearch {' '.join(arguments)}" in said
    state = read_state(tmp_path / "out")
    assert state is not None
    assert 3 <= state["steps"]["step"] < 2 * (NUM_TRAIN // 2)


def test_a_finished_training_is_told_again_and_not_repeated(folder: Path, tmp_path: Path) -> None:
    first = train(make_request(folder, tmp_path / "out"))
    before = weights(tmp_path / "out")
    again = train(make_request(folder, tmp_path / "out", checkpoint_every=7))
    assert (again["raw"], again["ema"]) == (first["raw"], first["ema"])
    assert_equal(weights(tmp_path / "out"), before)


def test_stopped_before_the_last_validation_it_says_the_epoch_that_is_left(folder: Path, tmp_path: Path) -> None:
    def stop(done: float, total: float, words: str) -> None:
        if done == total and "validating" in words:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_request(folder, tmp_path / "out"), progress=stop)
    said: list[str] = []
    train(make_request(folder, tmp_path / "out"), say=said.append)
    assert "going on in epoch 2 of 2, after step 3 of 3" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "recipe.epochs is 2 there and 3 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"learning_rate": 0.1}, "recipe.learning_rate is"),
        ({"image_size": 64}, "arch.image_size is 32 there and 64 here"),
        ({"num_classes": 5}, "arch.num_classes is 3 there and 5 here"),
    ],
)
def test_another_request_in_the_same_folder_is_refused_with_what_differs(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    train(make_request(folder, tmp_path / "out"))
    with pytest.raises(UserError, match=words):
        train(make_request(folder, tmp_path / "out", **changes))


def test_a_folder_of_something_else_and_a_second_process_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds 'mine.txt' and no training"):
        train(make_request(folder, tmp_path / "letters"))
    holder = (
        "import sys, pathlib\nfrom archsearch.training.folder import training_lock\n"
        "with training_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another archsearch trains in this folder"):
        train(make_request(folder, tmp_path / "out"))
    other.communicate("\n")
    with training_lock(tmp_path / "out"):
        pass


def test_a_damaged_checkpoint_is_named_and_never_run(folder: Path, tmp_path: Path) -> None:
    train(make_request(folder, tmp_path / "out", epochs=1))
    torch.save({"steps": os.system}, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(RunError, match=r"checkpoint.pt: damaged"):
        train(make_request(folder, tmp_path / "out", epochs=1))


# Several processes


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_with_the_doubled_batch(folder: Path, tmp_path: Path) -> None:
    """Each of two takes four of the eight images of a step; mixing is on. Float32 sums in another order: weights within 1e-6."""
    recipe = write_recipe(tmp_path / "plain.toml")
    alone = tmp_path / "alone"
    train(make_request(folder, alone, arch=load_space(str(SMALL_TWINS)).arch(), recipe=recipe, epochs=2, batch_size=8))
    words = command(tmp_path / "two", folder, "--batch-size", "8", "--workers", "0", "--recipe", recipe)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "archsearch",
        *words,
    ]
    done = subprocess.run(launch, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("measured here") == 1
    for name in ("model", "model_ema"):
        one, two = weights(alone, name), weights(tmp_path / "two", name)
        assert one.keys() == two.keys()
        assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-6
    one_table, two_table = (pd.read_parquet(out / "metrics.parquet") for out in (alone, tmp_path / "two"))
    np.testing.assert_allclose(one_table["train_loss"], two_table["train_loss"], rtol=1e-5)
    assert one_table["val_images"].tolist() == two_table["val_images"].tolist()


# Three trainings of one process of two: a whole one, one that is stopped in its second epoch, and the rest of that.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from archsearch import Arch
from archsearch.training import TrainRequest, train

data, out, recipe, arch, *ports = sys.argv[1:]

def begin(name, **options):
    os.environ["MASTER_PORT"] = ports.pop()
    asked = dict(what="van", arch=Arch.from_dict(json.loads(arch)), data=data, recipe=recipe, batch_size=4, device="cpu", workers=0)
    return train(TrainRequest(out=Path(out, name), **asked), **options)

def stop(done, total, words):
    if words == "epoch 1: validating":
        os.kill(os.getpid(), signal.SIGINT)

document = begin("whole")
if document["is_first"]:
    Path(out, "unreadable").write_text(" ".join(document["unreadable"]))
try:
    begin("stopped", progress=stop)
except KeyboardInterrupt:
    begin("stopped")
"""


@pytest.mark.slow
def test_two_processes_write_down_what_both_of_them_saw(tmp_path: Path) -> None:
    """Pictures that cannot be read, the mean loss of an epoch that was stopped, and what the weights that are written, with BatchNorm, do."""
    root = tiny_folder(tmp_path / "images")
    broken = [f"train/{name}/{number}.png" for name in "abc" for number in (2, 6)]
    for name in broken:
        (root / name).write_bytes(b"no picture")
    recipe = write_recipe(tmp_path / "plain.toml", f"{PLAIN}mixup = 0.0\ncutmix = 0.0\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    arch = paper("van_b0").to_dict() | {"name": "short", "image_size": 32}
    arch["stages"] = [stage | {"depth": 1} for stage in arch["stages"]]
    words = [str(root), str(tmp_path), recipe, json.dumps(arch)]
    run_two([str(tmp_path / "program.py"), *words, *free_ports(3)])
    assert [name for name in broken if name in (tmp_path / "unreadable").read_text()] == broken
    whole, stopped = (pd.read_parquet(tmp_path / name / "metrics.parquet") for name in ("whole", "stopped"))
    assert stopped["train_loss"].tolist() == pytest.approx(whole["train_loss"].tolist(), rel=1e-6)
    for name, column in (("model", "val_loss"), ("model_ema", "ema_val_loss")):
        network = archsearch.load(tmp_path / "whole" / f"{name}.safetensors").eval()
        assert whole[column].iloc[-1] == pytest.approx(loss_by_hand(network, root / "val"), rel=1e-4)


def run_two(arguments: list[str]) -> None:
    """A program in two processes, with the variables that torchrun sets."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    finally:
        for process in both:
            process.kill()


def free_ports(number: int) -> list[str]:
    """Ports of this machine that nothing uses."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [str(each.getsockname()[1]) for each in opened]


def loss_by_hand(network: nn.Module, folder: Path) -> float:
    """Mean cross-entropy on the pictures of class folders, by timm's transform."""
    transform = importlib.import_module("timm.data").create_transform(32, interpolation="bicubic", crop_pct=0.875)
    images, labels = zip(*((transform(image), label) for image, label in ImageFolder(str(folder))), strict=True)
    with torch.inference_mode():
        return functional.cross_entropy(network(torch.stack(images)), torch.tensor(labels)).item()
