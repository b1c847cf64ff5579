"""`archsearch evaluate` as a command: what it prints, the comparison with the published figure, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.pictures import CLASSES, SORTED, expected_labels, make_folder, picture, rigged, save, ten_classes

from archsearch.cli import main
from archsearch.models import Accuracy, EvaluateTask, evaluate_task
from archsearch.models.validation.checkpoint import difference
from archsearch.report.validation import comparison

CHECKOUT = Path(__file__).resolve().parents[2]
CLOTHING = CHECKOUT / ".." / "shared" / "data" / "clothing-mini"

Cli = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes, 23 images."""
    return ten_classes(tmp_path / "images")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`archsearch evaluate ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_top1_is_the_share_of_the_class_that_always_wins(cli: Cli, folder: Path, tmp_path: Path) -> None:
    labels = expected_labels(folder)
    winners = (SORTED.index("c9"), SORTED.index("B"), 5, 6, 7)
    arguments = ("van_b0", "--checkpoint", save(rigged(*winners), tmp_path), "--data", folder, "--resolution", "64")
    result = cli(*arguments, "--json", "--batch-size", "10")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["images"], document["total"], document["num_classes"]) == (len(labels), len(labels), 10)
    assert document["top1_correct"] == labels.count(winners[0]) == len(list((folder / "c9").iterdir()))
    assert document["top5_correct"] == sum(labels.count(winner) for winner in winners)
    assert document["top1"] == pytest.approx(labels.count(winners[0]) / len(labels))
    assert document["complete"]
    assert not document["interrupted"]
    assert (document["image_size"], document["batch_size"], document["workers"]) == ([64, 64], 10, 0)
    assert document["dtype"] == "float32"
    assert document["conditions"]["device"] in ("cpu", "cuda", "mps")
    assert document["published"]["top1"] == 75.4
    assert document["difference"]["top1"] is None
    assert "10 classes with 23 images" in document["difference"]["reason"]
    assert document["preprocessing"]["resized"] == [71, 71]
    assert document["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert len(document["notes"]) == 1
    assert result.stderr.splitlines() == [f"note: {document['notes'][0]}"]
    assert "1000" in document["notes"][0]

    text = cli(*arguments)
    assert text.exit_code == 0, text.output
    row = next(line for line in text.stdout.splitlines() if line.startswith("top-1"))
    assert row.split()[2:] == [f"{100 * document['top1']:.2f}", f"{100 * document['top1_se']:.2f}", "-", "-"]
    output = " ".join(text.stdout.split())
    assert "van_b0 on 23 images" in output
    assert "Published top-1 75.4 (repo README" in output
    assert "no difference is given: this is not the validation set of ImageNet-1K" in output
    assert "resize 71 (short side, bicubic), centre crop 64, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)" in output
    assert "float32" in output
    assert "img/s" in output


@pytest.mark.slow
@pytest.mark.skipif(not CLOTHING.is_dir(), reason="shared/data/clothing-mini is not beside this checkout")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_folder_end_to_end(cli: Cli, tmp_path: Path, dtype: str) -> None:
    names = sorted(path.name for path in (CLOTHING / "val").iterdir())
    counts = {name: len(list((CLOTHING / "val" / name).iterdir())) for name in names}
    checkpoint = save(rigged(names.index("shoes")), tmp_path)
    how = ("--resolution", "64", "--workers", "2", "--dtype", dtype, "--device", "cpu", "--json")
    result = cli("van_b0", "--checkpoint", checkpoint, "--data", CLOTHING, *how)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["total"] == document["images"] == sum(counts.values())
    assert document["top1_correct"] == counts["shoes"]
    assert document["data"].endswith("val")


def test_unreadable_images_make_the_accuracy_partial(cli: Cli, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "c10" / "1.JPEG").read_bytes()
    (folder / "c10" / "1.JPEG").write_bytes(whole[: len(whole) // 2])
    for number in range(6):
        (folder / "h" / f"broken{number}.png").write_bytes(b"no picture")
    arguments = ("van_b0", "--checkpoint", save(rigged(0), tmp_path), "--data", folder, "--resolution", "64")
    result = cli(*arguments, "--batch-size", "4")
    assert result.exit_code == 1
    assert "van_b0 on 22 images of 29 (partial)" in result.stdout
    error = result.stderr.splitlines()[-1]
    assert "7 of 29 images cannot be read" in error
    assert "c10/1.JPEG (OSError: " in error
    assert "h/broken0.png (UnidentifiedImageError: " in error
    assert error.endswith("and 2 more")
    document = json.loads(cli(*arguments, "--json").stdout)
    assert (document["images"], document["complete"], len(document["unreadable"])) == (22, False, 7)
    assert document["difference"]["reason"] == "not all images were judged"


def test_a_folder_of_broken_images_has_no_accuracy(cli: Cli, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "0.png").write_bytes(b"no picture")
    arguments = (
        "van_b0",
        "--checkpoint",
        save(rigged(0), tmp_path),
        "--data",
        tmp_path / "broken",
        "--resolution",
        "64",
    )
    result = cli(*arguments, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["top1"] is None
    assert "van_b0 on 0 images of 10 (partial)" in cli(*arguments).stdout


def refused(result: Result) -> str:
    """The one sentence of a command that ends with exit code 2."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").strip()


def test_bad_input_is_refused_in_one_sentence(cli: Cli, folder: Path, tmp_path: Path) -> None:
    weights = save(rigged(0), tmp_path)
    (tmp_path / "junk.pth").write_bytes(b"no checkpoint")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    for number in range(3):
        picture(8, 8).save(tmp_path / "flat" / f"ILSVRC2012_val_0000000{number}.JPEG")

    def asked(
        name: str = "van_b0", *, checkpoint: Path = weights, data: Path = folder, more: tuple[str, ...] = ()
    ) -> str:
        return refused(cli(name, "--checkpoint", checkpoint, "--data", data, *more))

    assert "did you mean 'van_b0'?" in asked("vann_b0")
    assert "missing.pth: no such file" in asked(checkpoint=tmp_path / "missing.pth")
    assert "empty: not a file" in asked(checkpoint=tmp_path / "empty")
    assert "junk.pth" in asked(checkpoint=tmp_path / "junk.pth")
    assert "van_b1" in asked("van_b1")
    assert "nowhere: no such folder" in asked(data=tmp_path / "nowhere")
    assert "van_b0.pth: not a folder" in asked(data=weights)
    assert "empty: no class folders with images" in asked(data=tmp_path / "empty")
    assert "flat: 3 images but no class folders; sort them into CLASS/IMAGE" in asked(data=tmp_path / "flat")
    for text in ("0", "64x0", "big", "64x64x3", "-64"):
        assert f"--resolution: got {text!r}" in asked(more=("--resolution", text))
    assert "device: got 'mps'" in asked(more=("--device", "mps")) or torch.backends.mps.is_available()


def test_a_resolution_that_the_model_cannot_take_is_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    asked = ("crossformer_tiny", "--checkpoint", save(rigged(0), tmp_path), "--data", folder, "--resolution", "100")
    sentence = refused(cli(*asked))
    assert sentence.startswith("crossformer_tiny at 100x100 px: stages.2.downsample (cross-scale) on a map of 25x25")
    assert sentence.endswith("of the multiples of 32, 96x96 and 128x128 would work")


def test_class_folders_that_do_not_fit_the_checkpoint_are_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (folder / "j").mkdir()
    checkpoint = save(rigged(0), tmp_path)
    result = cli("van_b0", "--checkpoint", checkpoint, "--data", folder, "--resolution", "64")
    assert result.exit_code == 2
    assert "11 class folders, but the model has 10 classes" in result.stderr


def test_folders_that_are_not_named_as_imagenets_are_noted(cli: Cli, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
    picture(40, 40).save(tmp_path / "set" / "10" / "0.png")  # third among the sorted names: 0, 1, 10
    checkpoint = save(rigged(2, num_classes=1000), tmp_path)
    result = cli("van_b0", "--checkpoint", checkpoint, "--data", tmp_path / "set", "--resolution", "64", "--json")
    document = json.loads(result.stdout)
    assert (document["top1_correct"], document["images"]) == (1, 1)
    assert result.stderr.startswith("note: the class folders are not named by ImageNet's identifiers (n01440764)")


# Beside the published figure


def task(tmp_path: Path, image_size: int = 224) -> EvaluateTask:
    make_folder(tmp_path / "set", {"n01440764": 1})
    (tmp_path / "weights.pth").write_bytes(b"")
    how: Any = {"device": "cpu", "dtype": "float32", "batch_size": None, "workers": None}
    size = (image_size, image_size)
    return evaluate_task("davit_tiny", tmp_path / "weights.pth", tmp_path / "set", resolution=size, **how)


def on_imagenet(top1_correct: int, images: int = 50_000, num_classes: int = 1000) -> Accuracy:
    return Accuracy(
        images=images,
        total=50_000,
        num_classes=num_classes,
        top1_correct=top1_correct,
        top5_correct=48_100,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("top1_correct", "words"),
    [
        (41_400, "measured here 82.80: equal up to rounding (0.05)."),
        (41_425, "measured here 82.85: equal up to rounding (0.05)."),
        (41_375, "measured here 82.75: equal up to rounding (0.05)."),
        (
            41_300,
            "measured here 82.60: 0.20 points below, more than rounding (0.05) though within two standard errors (0.34)",
        ),
        (
            41_500,
            "measured here 83.00: 0.20 points above, more than rounding (0.05) though within two standard errors (0.34)",
        ),
        (
            41_000,
            "measured here 82.00: 0.80 points below, more than rounding (0.05) and two standard errors (0.34) together",
        ),
    ],
)
def test_the_difference_is_explained(tmp_path: Path, top1_correct: int, words: str) -> None:
    found = on_imagenet(top1_correct)
    points = difference(task(tmp_path), found)
    assert points["top1"] == pytest.approx(top1_correct / 500 - 82.8)  # davit_tiny publishes 82.8 and 96.2
    assert points["top5"] == pytest.approx(96.2 - 96.2)
    assert points["reason"] is None
    document = {
        "published": {"top1": 82.8, "top5": 96.2, "source": "the README"},
        "difference": points,
        "top1": found.top1,
        "top1_se": found.top1_se,
    }
    assert comparison(document).startswith(f"Published top-1 82.8, top-5 96.2 (the README), {words}")


def test_other_images_are_not_compared_with_the_published_figure(tmp_path: Path) -> None:
    asked = task(tmp_path)
    for found, words in (
        (on_imagenet(40_000, images=49_999), "not all images were judged"),
        (on_imagenet(40_000, num_classes=999), "999 classes with 50000 images"),
    ):
        points = difference(asked, found)
        assert (points["top1"], points["top5"]) == (None, None)
        assert words in points["reason"]


def test_another_resolution_is_not_compared(tmp_path: Path) -> None:
    points = difference(task(tmp_path, image_size=256), on_imagenet(41_400))
    assert (points["top1"], points["reason"]) == (None, "the published figure is for 224 px")


def test_progress_in_one_line() -> None:
    found = Accuracy(
        images=12_798, unreadable=("a", "b"), top1_correct=9_000, total=50_000, num_classes=1000, seconds=30.0
    )
    assert found.describe() == "12800 of 50000 images, 427 img/s, top-1 70.32"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is neither a terminal to open nor SIGINT to send on Windows")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_ctrl_c_reports_the_images_seen_so_far(folder: Path, tmp_path: Path, workers: str) -> None:
    """On a terminal, where the whole process group gets the signal, workers included."""
    for number in range(400):
        os.link(folder / "B" / "0.png", folder / "B" / f"more{number}.png")
    checkpoint = save(rigged(0), tmp_path)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "archsearch", "evaluate", "van_b0", "--checkpoint", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--data", str(folder), "--batch-size", "2", "--workers", workers, "--json"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        # As a terminal starts it: what a shell puts into the background ignores SIGINT, and so would all that is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        shown = read_until(ours, b"of 423 images")
        os.killpg(process.pid, signal.SIGINT)
        shown += read_until(ours, None)  # first: the program would wait for a full terminal that is not read
        assert process.stdout
        document = json.loads(process.stdout.read())
    os.close(ours)
    assert process.returncode == 130, shown
    assert document["interrupted"]
    assert not document["complete"]
    assert 0 < document["images"] < document["total"] == 423
    assert f"interrupted: {document['images']} of 423 images were judged" in shown.decode()
    assert "Traceback" not in shown.decode()


def read_until(descriptor: int, words: bytes | None) -> bytes:
    """The output of a terminal up to these words, or to its end."""
    shown = b""
    while words is None or words not in shown:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # on Linux the other end is closed
            part = b""
        if not part:
            assert words is None, shown
            return shown
        shown += part
    return shown
