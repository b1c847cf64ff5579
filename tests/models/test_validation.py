"""Accuracy on a folder of images: against brute force, with known answers, and errors."""

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import SORTED, Recorder, expected_labels, make_folder, rigged, ten_classes
from torch import Tensor, nn

from archsearch.errors import RunError, UserError
from archsearch.models import Accuracy, Preprocessing, ValidationSet, validate
from archsearch.models.validation.accuracy import default_workers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes, 23 images."""
    return ten_classes(tmp_path / "images")


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_top1_and_top5_are_those_of_brute_force(folder: Path, batch_size: int) -> None:
    model = Recorder(10)
    reported: list[Accuracy] = []
    found = validate(
        model,
        folder,
        Preprocessing.from_paper("van_b0"),
        image_size=32,
        batch_size=batch_size,
        workers=0,
        progress=reported.append,
    )
    labels = expected_labels(folder)
    ranks = [int((row > row[label]).sum()) for row, label in zip(model.logits, labels, strict=True)]
    assert (found.images, found.total, found.num_classes) == (len(labels), len(labels), 10)
    assert (found.top1_correct, found.top5_correct) == (ranks.count(0), sum(rank < 5 for rank in ranks))
    assert 0 < found.top1_correct < found.top5_correct < found.images
    assert found.top1 == pytest.approx(np.mean(np.array(ranks) == 0))
    share = found.top5_correct / found.images
    assert found.top5_se == pytest.approx(np.sqrt(share * (1 - share) / found.images))
    assert reported[-1] == found
    assert [item.images for item in reported] == [*range(batch_size, len(labels), batch_size), len(labels)]


def test_with_fewer_than_five_classes_top5_is_everything(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", {"a": 2, "b": 3, "c": 1})
    found = validate(Recorder(3), tmp_path / "images", Preprocessing.from_paper("van_b0"), image_size=32, workers=0)
    assert (found.top5_correct, found.images) == (6, 6)


def test_an_empty_class_keeps_its_place_and_hidden_files_are_no_images(folder: Path) -> None:
    for file in (folder / "a").iterdir():
        file.unlink()
    (folder / ".cache").mkdir()
    (folder / "B" / "._0.png").write_bytes(b"macOS metadata")
    (folder / "readme.txt").write_text("not an image")
    found = ValidationSet.find(folder)
    assert found.classes == SORTED
    assert 1 not in found.labels
    assert {Path(path).parts[0] for path in found.paths} == set(SORTED) - {"a"}
    for path, label in zip(found.paths, found.labels, strict=True):
        assert SORTED[label] == Path(path).parts[0]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_the_validation_folder_inside_a_root_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "root" / "train").mkdir(parents=True)
    folder.rename(tmp_path / "root" / name)
    found = ValidationSet.find(tmp_path / "root")
    assert (found.root, found.classes) == (tmp_path / "root" / name, SORTED)


def test_few_images_are_decoded_in_the_main_process() -> None:
    assert default_workers(999) == 0
    assert 1 <= default_workers(50_000) <= 16


@pytest.mark.slow
def test_worker_processes_change_nothing(folder: Path) -> None:
    (folder / "B" / "broken.png").write_bytes(b"no picture")
    models = [Recorder(10), Recorder(10)]
    found = [
        validate(model, folder, Preprocessing.from_paper("van_b0"), image_size=32, batch_size=4, workers=workers)
        for model, workers in zip(models, (0, 2), strict=True)
    ]
    assert torch.equal(models[0].inputs, models[1].inputs)
    assert replace(found[0], seconds=0.0) == replace(found[1], seconds=0.0)
    assert len(found[0].unreadable) == 1


@pytest.mark.parametrize(("dtype", "seen"), [("bfloat16", torch.bfloat16), ("amp_bfloat16", torch.float32)])
def test_bfloat16_evaluates_a_copy_or_uses_autocast(folder: Path, dtype: Any, seen: torch.dtype) -> None:
    model = rigged(3)
    inputs: list[torch.dtype] = []
    model.register_forward_hook(lambda module, images, logits: inputs.append(images[0].dtype))
    found = validate(model, folder, Preprocessing.from_paper("van_b0"), image_size=64, dtype=dtype, workers=0)
    assert found.top1_correct == expected_labels(folder).count(3)
    assert set(inputs) == {seen}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "amp_bfloat16"])
def test_cuda_counts_as_the_cpu_does(folder: Path, dtype: Any) -> None:
    model = rigged(3)
    found = validate(
        model, folder, Preprocessing.from_paper("van_b0"), image_size=64, device="cuda", dtype=dtype, workers=0
    )
    assert found.top1_correct == expected_labels(folder).count(3)


def test_logits_that_are_not_finite_are_an_error(folder: Path) -> None:
    model = Recorder(10)
    model.weight[3, 0] = float("nan")
    with pytest.raises(RunError, match=r"23 of 23 images have logits that are not finite in float32"):
        validate(model, folder, Preprocessing.from_paper("van_b0"), image_size=32, batch_size=50, workers=0)


class Hungry(nn.Module):
    """Needs more memory than there is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(2**60)


def test_lack_of_memory_is_one_sentence(folder: Path) -> None:
    with pytest.raises(RunError, match=r"^out of memory on cpu; take a smaller batch$"):
        validate(Hungry(), folder, Preprocessing.from_paper("van_b0"), image_size=32)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
# Of torch's iterator, when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_one_sentence(folder: Path) -> None:
    def kill(found: Accuracy) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(RunError, match=r"^a decoding process died, .*take fewer workers, or 0"):
        validate(
            Recorder(10),
            folder,
            Preprocessing.from_paper("van_b0"),
            image_size=32,
            batch_size=1,
            workers=1,
            progress=kill,
        )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM on Windows")
@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_a_worker_whose_death_is_signalled_after_its_broken_pipe_is_one_sentence(
    folder: Path, request: pytest.FixtureRequest, delay: float
) -> None:
    def on_signal(number: int, frame: object) -> None:
        # As torch's handler does, anywhere.
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    def break_pipe(found: Accuracy) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay or 1e-6)
        raise ConnectionResetError

    before = signal.signal(signal.SIGALRM, on_signal)
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    with pytest.raises(RunError, match=r"^a decoding process died, "):
        validate(
            Recorder(10), folder, Preprocessing.from_paper("van_b0"), image_size=32, workers=0, progress=break_pipe
        )


def test_another_number_of_classes_is_refused_with_both_numbers(folder: Path) -> None:
    model = Recorder(11)
    with pytest.raises(UserError, match=r"images: 10 class folders, but the model has 11 classes"):
        validate(model, folder, Preprocessing.from_paper("van_b0"), image_size=32)
    assert len(model.seen) == 1  # the blank image: no picture was decoded
