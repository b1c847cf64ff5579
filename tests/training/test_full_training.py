"""A training gives the numbers of a loop written by hand, takes images of every form, and refuses what cannot be trained."""

import importlib
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from support.image_forms import FORMS, VAL_SPLITS, make_pictures
from support.trainings import (
    CLOTHING,
    SMALL_TWINS,
    assert_equal,
    make_request,
    tiny_arch,
    tiny_folder,
    weights,
    write_recipe,
)
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

import archsearch
from archsearch.errors import RunError, UserError
from archsearch.models import build, export_document, export_task, save_official
from archsearch.space import Arch, load_space, paper
from archsearch.training import train
from archsearch.training.folder import read_state
from archsearch.training.images import Pictures, open_images
from archsearch.training.teacher import Teacher, make_teacher

# The loop by hand: timm's parts, and the three rules that page training states for orders, pictures and steps.


def seeded(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch_by_hand(
    images: ImageFolder, transform: Any, epoch: int, places: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    pictures, labels = [], []
    for index, repeat in places:
        path, label = images.samples[index]
        with Image.open(path) as picture:
            seed_all(seeded(0, epoch, index, repeat))
            pictures.append(transform(picture.convert("RGB")))
        labels.append(label)
    return torch.stack(pictures), torch.tensor(labels)


def accuracy_by_hand(network: nn.Module, images: ImageFolder, transform: Any) -> float:
    network.eval()
    with torch.no_grad():
        right = [network(transform(picture)[None]).argmax().item() == label for picture, label in images]
    return float(sum(right) / len(right))


def train_by_hand(arch: Arch, root: Path, epochs: int, batch_size: int, drop_path_rate: float) -> Any:
    """Twins' recipe at seed 0 and 1e-3 in float32, every figure written out."""
    data, loss_functions, optim, scheduler, utils = (
        importlib.import_module(f"timm.{name}") for name in ("data", "loss", "optim", "scheduler", "utils")
    )

    images, val = ImageFolder(str(root / "train")), ImageFolder(str(root / "val"))
    transform = data.create_transform(
        64,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    torch.manual_seed(0)
    network = build(arch, drop_path_rate=drop_path_rate)
    optimizer = optim.create_optimizer_v2(network, "adamw", lr=1e-3, weight_decay=0.05)
    per_epoch = len(images) // batch_size
    schedule, _ = scheduler.create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=5 * epochs / 300, warmup_lr=1e-6, min_lr=1e-5, step_on_epochs=False, updates_per_epoch=per_epoch,
    )  # fmt: skip
    average = utils.ModelEmaV3(network, decay=0.99996, use_warmup=True)
    mix = data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=arch.num_classes)
    criterion, done, means = loss_functions.SoftTargetCrossEntropy(), 0, []
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seeded(0, epoch))).tolist()
        places, losses = [(index, repeat) for index in order for repeat in range(3)], []
        for step in range(per_epoch):
            inputs, labels = batch_by_hand(
                images, transform, epoch, places[step * batch_size : (step + 1) * batch_size]
            )
            np.random.seed(seeded(0, done))
            torch.manual_seed(seeded(0, done, 0))
            network.train()
            inputs, targets = mix(inputs.to(memory_format=torch.channels_last), labels)
            loss = criterion(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            average.update(network, step=done)
            schedule.step_update(done)
            losses.append(loss.item())
        means.append(sum(losses) / per_epoch)
    center = data.create_transform(64, interpolation="bicubic", crop_pct=0.875)
    return (
        network,
        average.module,
        means,
        accuracy_by_hand(network, val, center),
        accuracy_by_hand(average.module, val, center),
    )


def assert_numbers_of_a_loop_by_hand(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, epochs: int, batch_size: int, classes: int
) -> None:
    # Pillow 13 refuses 0 bits, which timm's RandAugment draws; before it gave black.
    real = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps, "posterize", lambda image, bits: real(image, bits) if bits else Image.new("RGB", image.size)
    )
    arch = load_space(str(SMALL_TWINS)).arch()
    request = make_request(root, out, arch=arch, epochs=epochs, batch_size=batch_size, learning_rate=1e-3)
    document = train(request)
    assert document["recipe"]["name"] == "twins_svt"
    fitted = archsearch.build(arch, num_classes=classes).arch
    network, average, losses, top1, ema_top1 = train_by_hand(
        fitted, root, epochs, batch_size, document["recipe"]["drop_path_rate"]
    )
    assert_equal(weights(out), {key: value.contiguous() for key, value in network.state_dict().items()})
    assert_equal(weights(out, "model_ema"), {key: value.contiguous() for key, value in average.state_dict().items()})
    table = pd.read_parquet(out / "metrics.parquet")
    assert table["train_loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert (document["raw"]["top1"], document["ema"]["top1"]) == (pytest.approx(top1), pytest.approx(ema_top1))


def test_it_gives_the_numbers_of_a_loop_written_by_hand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_numbers_of_a_loop_by_hand(folder, tmp_path / "out", monkeypatch, epochs=2, batch_size=8, classes=3)


@pytest.mark.slow
def test_photographs_give_the_numbers_of_a_loop_written_by_hand(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_size = 64 if photographs == CLOTHING.resolve() else 16
    assert_numbers_of_a_loop_by_hand(
        photographs, tmp_path / "out", monkeypatch, epochs=3, batch_size=batch_size, classes=10
    )


# Data, dtypes, teachers, and what cannot be


def test_images_that_cannot_be_read_are_named_and_the_training_goes_on(tmp_path: Path) -> None:
    root = tiny_folder(tmp_path / "images")
    (root / "train" / "a" / "0.png").write_bytes(b"no picture")
    (root / "val" / "b" / "1.JPEG").write_bytes(b"none either")
    said: list[str] = []
    document = train(make_request(root, tmp_path / "out"), say=said.append)
    assert [name.split(" ")[0] for name in document["unreadable"]] == ["train/a/0.png", "val/b/1.JPEG"]
    assert document["val_images"] == 8
    assert sum("train/a/0.png" in line for line in said) == 1


def test_many_pictures_in_a_row_that_cannot_be_read_end_it_with_the_first(tmp_path: Path) -> None:
    root = tiny_folder(tmp_path / "images")
    for path in [*(root / "train" / "a").iterdir(), *(root / "train" / "b").iterdir()]:
        path.write_bytes(b"no picture")
    recipe = write_recipe(tmp_path / "plain.toml")
    with pytest.raises(RunError, match=r"^train/a/\S+ \(.*\) cannot be read, nor can those after it"):
        train(make_request(root, tmp_path / "out", recipe=recipe))


def test_what_is_left_out_of_the_images_is_said(tmp_path: Path) -> None:
    root = tiny_folder(tmp_path / "images")
    Image.new("RGB", (4, 4)).save(root / "train" / "loose.png")
    (root / "val" / "b" / "list.txt").write_text("words")
    said: list[str] = []
    train(make_request(root, tmp_path / "out", epochs=1), say=said.append)
    assert [line for line in said if line.startswith("note: ")] == [
        "note: left out of split train: 1 images in no class folder",
        "note: left out of split val: 1 files of endings that are no image's ('.txt')",
    ]


def test_what_is_left_out_of_shards_is_said(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "shards", make_pictures(4, broken=False))
    next((tmp_path / "shards").rglob("train-00001-of-00002.parquet")).unlink()
    images = open_images(str(tmp_path / "shards"), 32, val_split=VAL_SPLITS["parquet"])
    assert images.notes[0] == "left out of split train: 1 of 2 shards, which are not there"


@pytest.mark.slow
def test_a_data_set_by_name_is_validated_on_the_split_that_it_has(tmp_path: Path) -> None:
    """It tells its splits only when one is opened."""
    pytest.importorskip("datasets")
    FORMS["parquet"](tmp_path / "shards", make_pictures(2, broken=False))
    assert VAL_SPLITS["parquet"] == "validation"
    images = open_images(f"hfds/{tmp_path / 'shards'}", 32)
    assert images.val.name(0).startswith("validation/")


@pytest.mark.parametrize("text", ["hfids/imagenet", "tfds/mnist", "torch/places365/here"])
def test_a_stream_is_to_be_prepared_first(text: str) -> None:
    with pytest.raises(
        UserError, match=f"{text}: is read as a stream; prepare it first: archsearch prepare {text} OUT"
    ):
        open_images(text, 32)


def test_every_form_of_the_same_images_gives_the_same_pictures_to_any_process(tmp_path: Path) -> None:
    found = {}
    for form, val_split in VAL_SPLITS.items():
        FORMS[form](tmp_path / form, make_pictures(2, broken=False))
        images = open_images(str(tmp_path / form), 32, val_split=val_split)
        sent: Pictures = pickle.loads(pickle.dumps(images.train))
        assert [sent.read(index) for index in range(6)] == [images.train.read(index) for index in range(6)]
        found[form] = [(np.asarray(sent.read(index)).tobytes(), int(sent.labels[index])) for index in range(6)]
    assert all(pictures == found["folder"] for pictures in found.values())


def test_prepared_images_train_too(folder: Path, tmp_path: Path) -> None:
    from archsearch.data.prepare import PrepareRequest, prepare

    rest: dict[str, Any] = dict.fromkeys(["classes", "per_class", "share", "val_share", "workers"])
    splits: dict[str, Any] = {"train_split": "train", "val_split": "val", "max_unreadable": 0.01, "seed": 0}
    prepare(PrepareRequest(source=str(folder), out=tmp_path / "prepared", size=36, **rest, **splits))
    document = train(make_request(tmp_path / "prepared", tmp_path / "out"))
    assert document["val_images"] == 9
    with pytest.raises(UserError, match=r"prepared at 36 px, and the network takes 64"):
        train(make_request(tmp_path / "prepared", tmp_path / "larger", image_size=64))
    for option in ({"train_split": "part"}, {"val_split": "test"}):
        with pytest.raises(
            UserError, match=r"has the splits train and val alone; leave --train-split and --val-split out"
        ):
            train(make_request(tmp_path / "prepared", tmp_path / "split", **option))


def test_embedded_images_are_found_by_name_and_are_in_colour() -> None:
    images = open_images("fashion-mnist", 32)
    assert (len(images.train.labels), len(images.val.labels), len(images.classes)) == (10_000, 2_000, 10)
    assert (images.train.read(0).mode, len(images.mean), len(images.std)) == ("RGB", 3, 3)


def test_bfloat16_and_labels_without_mixing_train(folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "labels.toml", "epochs = 1\nbatch_size = 8\nmixup = 0.0\ncutmix = 0.0\nclip = 1.0\n"
    )
    document = train(make_request(folder, tmp_path / "out", recipe=recipe, epochs=1, dtype="bfloat16"))
    assert document["conditions"]["dtype"] == "bfloat16"
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "out").values())


@pytest.mark.parametrize("distillation", ["soft", "hard"])
def test_a_teacher_changes_the_loss_and_its_own_checkpoint_will_do(
    folder: Path, tmp_path: Path, distillation: str
) -> None:
    train(make_request(folder, tmp_path / "teacher", epochs=1))
    given = str(tmp_path / "teacher" / "model.safetensors")
    train(make_request(folder, tmp_path / "taught", epochs=1, teacher=given, distillation=distillation))
    one, other = weights(tmp_path / "taught"), weights(tmp_path / "teacher")
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_soft_teacher_is_the_divergence_of_its_answers() -> None:
    torch.manual_seed(0)
    taught, answers = torch.randn(4, 5), torch.randn(4, 5)
    network = nn.Module()
    network.forward = lambda images: answers
    images = torch.zeros(4, 3, 2, 2)
    p, q = answers.softmax(1), taught.softmax(1)
    assert Teacher(network, "soft", None).loss(images, taught).item() == pytest.approx(
        (p * (p / q).log()).sum(1).mean().item(), rel=1e-5
    )
    picked = -taught.log_softmax(1)[torch.arange(4), answers.argmax(1)].mean()
    assert Teacher(network, "hard", None).loss(images, taught).item() == pytest.approx(picked.item(), rel=1e-6)


def _teachers(folder: Path) -> dict[str, tuple[str, Path | None]]:
    """Names and weights of networks that were trained on images around 0.5."""
    network, half = build("van_b0", image_size=32), [0.5, 0.5, 0.5]
    save_official(network, folder / "official.pth")
    stated = {"mean": half, "std": half, "crop_share": 0.9, "interpolation": "bicubic"}
    archsearch.save(build(tiny_arch()), folder / "own.safetensors", provenance={"preprocessing": stated})
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "timm.safetensors")
    return {
        "official": ("van_b0", folder / "official.pth"),
        "own": (str(folder / "own.safetensors"), None),
        "timm": ("timm:archsearch_van_b0", folder / "timm.safetensors"),
    }


@pytest.mark.parametrize("kind", ["official", "own", "timm"])
def test_a_teacher_sees_images_as_it_was_trained_on_them(kind: str, tmp_path: Path) -> None:
    importlib.import_module("archsearch.timm")
    name, file = _teachers(tmp_path)[kind]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    classes = tiny_arch().num_classes if kind == "own" else 1000
    given: dict[str, Any] = {"num_classes": classes, "size": (32, 32), "mean": mean, "std": std}
    teacher = make_teacher(name, file, "soft", device=torch.device("cpu"), **given)
    pictures, logits = torch.rand(2, 3, 32, 32), torch.randn(2, classes)
    images = (pictures - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        p = teacher.network((pictures - 0.5) / 0.5).softmax(1)
    expected = (p * (p.log() - logits.log_softmax(1))).sum(1).mean().item()
    assert teacher.loss(images, logits).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "van_b9"}, "no paper's model and no file 'van_b9', did you mean 'van_b"),
        ({"teacher": "van_b0"}, "needs --teacher-weights"),
        ({"teacher": "timm:resnet1"}, "timm has no model 'resnet1'"),
        (
            {"teacher": "timm:resnet18.none", "teacher_weights": Path("any.pth")},
            "timm cannot make it: Invalid pretrained tag",
        ),
        ({"teacher_weights": Path("any.pth")}, "--teacher-weights: has no meaning without --teacher"),
        ({"distillation": "hard"}, "--distillation: has no meaning without --teacher"),
        ({"distillation": "medium"}, "--distillation: got 'medium'; allowed are soft and hard"),
        ({"batch_size": 27}, "a step takes 27 images, and there are 26"),
        ({"batch_size": 7}, "multiples of 2 are allowed"),
        ({"num_classes": 2}, "the data have 3 classes"),
        ({"recipe": "twin"}, "no paper and no file 'twin'"),
        ({"val_split": "test"}, "split 'test' is missing; found 'train', 'val'"),
        ({"init_from": Path("absent.pth")}, "no such checkpoint file"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(make_request(folder, tmp_path / "out", **changes))


def test_an_augmentation_that_timm_does_not_know_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "mine.toml", "auto_augment = 'randaugment'\n")
    with pytest.raises(
        UserError, match=r"auto_augment is 'randaugment', which timm does not know; allowed are .*rand-m9"
    ):
        train(make_request(folder, tmp_path / "out", recipe=recipe))


def test_a_loss_that_is_not_finite_ends_it_and_keeps_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the training diverged at learning rate .*checkpoint") as caught:
        train(make_request(folder, tmp_path / "out", learning_rate=1000.0, epochs=50, checkpoint_every=1))
    assert "take a smaller --lr" in str(caught.value)
    state = read_state(tmp_path / "out")
    assert state is None or all(value.isfinite().all() for value in state["steps"]["model"].values())


def test_lack_of_memory_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("archsearch.models.network.Network.forward", full)
    with pytest.raises(
        RunError, match=r"out of memory on cpu in a step of 8 images, 8 in this process; take a smaller --batch-size"
    ):
        train(make_request(folder, tmp_path / "out"))


def test_a_published_figure_of_other_images_is_never_compared(folder: Path, tmp_path: Path) -> None:
    from archsearch.report import train_parts

    document = train(
        make_request(folder, tmp_path / "out", what="van_b0", arch=paper("van_b0"), image_size=32, epochs=1)
    )
    assert document["published"]["top1"] == 75.4
    words = [part for part in train_parts(document) if isinstance(part, str)]
    assert "on ImageNet-1K: top-1 75.4" in words[0]
    assert "cannot be compared: this is images" in words[0]
    assert "not ImageNet-1K, at 32 px, not 224, after 1 epochs, not 300" in words[0]
    assert words[-1].startswith("Next: archsearch export van_b0")
    assert train(make_request(folder, tmp_path / "other"))["published"] is None


def test_an_export_has_the_preprocessing_of_the_training(folder: Path, tmp_path: Path) -> None:
    """The images' mean, not that of the paper of the model, and the crop of the recipe's model."""
    van = paper("van_b0")
    train(make_request(folder, tmp_path / "out", arch=van, image_size=32, epochs=1, recipe="twins_svt"))
    usual: dict[str, Any] = dict.fromkeys(("weights", "image_size", "num_classes", "in_chans")) | {"force": False}
    usual["weights"] = tmp_path / "out" / "model_ema.safetensors"
    export_document(export_task(van, tmp_path / "exported", "timm", **usual), json.dumps)
    found = json.loads((tmp_path / "exported" / "config.json").read_text())["pretrained_cfg"]
    assert (found["mean"], found["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (found["crop_pct"], found["crop_mode"], found["interpolation"]) == (0.875, "center", "bicubic")


def test_the_weights_say_what_they_were_trained_by(folder: Path, tmp_path: Path) -> None:
    from archsearch.models import read_header

    train(make_request(folder, tmp_path / "out", epochs=1, seed=3))
    header = read_header(tmp_path / "out" / "model_ema.safetensors")
    said = header.provenance
    assert (said["epochs"], said["seed"], said["version"]) == (1, 3, archsearch.__version__)
    assert (header.size, header.num_classes) == ((32, 32), 3)
    assert len(said["data_fingerprint"]) == 8
    assert tiny_arch().stages == header.arch.stages
