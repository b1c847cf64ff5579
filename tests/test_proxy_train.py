"""Training on a proxy: the same stream for every candidate, learning, determinism, failure, and the recipe itself."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from archsearch.errors import RunError, UserError
from archsearch.proxy.batches import draws, train_batches, val_batches
from archsearch.proxy.constellation import make_constellation
from archsearch.proxy.data import IMAGENET_MEAN, IMAGENET_STD, ProxyData
from archsearch.proxy.train import Progress, Recipe, Training, train_and_score

CPU = torch.device("cpu")
RECIPE = Recipe(steps=8, batch_size=16, learning_rate=1e-3, image_size=32, dtype="float32", augment="shift")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> ProxyData:
    return make_constellation(160, 48)


def network(width: int = 8, num_classes: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, num_classes),
    )


class Recorder(nn.Module):
    """Notes what it is shown in training, and calls the random generator as a model with dropout would."""

    def __init__(self, inner: nn.Module, num_randoms: int) -> None:
        super().__init__()
        self.inner, self.num_randoms = inner, num_randoms
        self.sums: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            torch.rand(self.num_randoms)
            self.sums.append(images.double().sum().item())
        logits: Tensor = self.inner(images)
        return logits


class FailsWhenFast(nn.Module):
    """Gives infinite outputs once its weight has moved further than `reach` from where it began."""

    seen: Tensor

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.zeros(16, 3))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        logits = images.mean((2, 3)) @ self.weight.T
        return logits / (self.weight.detach().abs().max() < self.reach).float()


def pictures(train: np.ndarray, val: np.ndarray) -> ProxyData:
    """Data of given pictures (N, S, S, C), all labelled 0, normalised as 0..1."""
    one = (1.0,) * train.shape[3]
    zero = (0.0,) * train.shape[3]
    labels = [np.zeros(len(each), dtype=np.int64) for each in (train, val)]
    return ProxyData("pictures", train, labels[0], val, labels[1], ("a", "b"), (), zero, one)


# The stream


def test_every_model_sees_the_same_batches(data: ProxyData) -> None:
    seen = []
    for width, num_randoms in ((4, 1), (8, 1000)):
        model = Recorder(network(width, seed=width), num_randoms)
        train_and_score(model, data, RECIPE, device="cpu")
        seen.append(model.sums)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == RECIPE.steps
    other = Recorder(network(4), 1)
    train_and_score(other, data, replace(RECIPE, seed=1), device="cpu")
    assert not set(other.sums) & set(seen[0])


@pytest.mark.parametrize(("num_images", "batch_size"), [(50, 20), (7, 20), (40, 20)])
def test_epochs_are_shuffled_without_replacement(num_images: int, batch_size: int) -> None:
    recipe = replace(RECIPE, steps=12, batch_size=batch_size)
    order = np.concatenate([draw.indices for draw in draws(num_images, recipe)])
    assert len(order) == 12 * batch_size
    epochs = [order[start : start + num_images] for start in range(0, len(order) - num_images + 1, num_images)]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert not any(np.array_equal(first, second) for first, second in pairwise(epochs))


def test_shift_moves_and_mirrors_whole_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), dtype=np.uint8)
    recipe = replace(RECIPE, steps=150, batch_size=4, image_size=12)
    seen = set()
    for (batch, _), draw in zip(train_batches(pictures(images, images), recipe, CPU), draws(4, recipe), strict=True):
        assert batch.shape == (4, 3, 12, 12)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for picture, index in zip((batch[:, 0] * 255).round().byte().numpy(), draw.indices, strict=True):
            seen |= {_explain(picture, images[index, :, :, 0])}
    assert seen == {(down, across, mirror) for down in range(5) for across in range(5) for mirror in (False, True)}


def _explain(picture: np.ndarray, original: np.ndarray) -> tuple[int, int, bool]:
    """Which of the 50 moves by up to 2 px, the rim repeated, and mirrorings made `picture`."""
    for mirror in (False, True):
        padded = np.pad(original[:, ::-1] if mirror else original, 2, mode="edge")
        for down in range(5):
            for across in range(5):
                moved = padded[down : down + 12, across : across + 12]
                if np.array_equal(moved, picture):
                    return down, across, mirror
    raise AssertionError("not a moved or mirrored original")


def test_crops_are_boxes_of_the_allowed_area_and_ratio() -> None:
    """Two ramps tell for every pixel of a crop where in the picture it came from."""
    size = 128
    ramp = np.broadcast_to((np.arange(size) * 2).astype(np.uint8), (size, size))
    image = np.stack([ramp, ramp.T, ramp], axis=-1)[None]
    recipe = replace(RECIPE, steps=20, batch_size=16, image_size=64, augment="crop")
    areas, ratios, mirrors = [], [], []
    for batch, _ in train_batches(pictures(image, image), recipe, CPU):
        across, down = batch[:, 0] * 255 / 2, batch[:, 1] * 255 / 2  # source column and row of every pixel
        assert across.min() >= 0
        assert down.max() <= size - 1
        # The inner pixels, away from where the border is repeated; 48 of 63 steps.
        width = (across[:, 32, 56] - across[:, 32, 8]) / 48 * 64 / size
        height = (down[:, 56, 32] - down[:, 8, 32]) / 48 * 64 / size
        areas += (width.abs() * height).tolist()
        ratios += (width.abs() / height).tolist()
        mirrors += (width < 0).tolist()
    assert 0.33 < min(areas) < 0.40
    assert 0.90 < max(areas) < 1.01
    assert 0.74 < min(ratios) < 0.80
    assert 1.25 < max(ratios) < 1.35
    assert 0.4 < np.mean(mirrors) < 0.6


def test_evaluation_cuts_the_stored_margin_off_and_normalises() -> None:
    val = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 3), dtype=np.uint8)
    data = ProxyData("noise", val, np.arange(5), val, np.arange(5), tuple("abcde"))
    batches = list(val_batches(data, replace(RECIPE, batch_size=2, augment="crop"), CPU))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]
    cut = val[:, 2:34, 2:34].astype(np.float64) / 255
    expected = (cut - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1), expected, atol=1e-5)


def test_evaluation_at_another_size_is_resized_like_pillow_does() -> None:
    val = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 1), dtype=np.uint8)
    images, _ = next(val_batches(pictures(val, val), RECIPE, CPU))
    expected = Image.fromarray(val[0, :, :, 0]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(images[0, 0] * 255, np.asarray(expected), atol=1.0)


# Training


def test_learns_and_reports(data: ProxyData) -> None:
    larger = make_constellation(3200, 320, seed=1)
    recipe = replace(RECIPE, steps=200, batch_size=32, learning_rate=5e-3)
    reports: list[Progress] = []
    result = train_and_score(network(24), larger, recipe, device="cpu", progress=reports.append)
    assert result.score > 0.5  # chance is 1/16, and telling the bags apart alone gives 1/4
    assert result.train_loss < math.log(16) - 0.3
    assert result.standard_error == pytest.approx(math.sqrt(result.score * (1 - result.score) / 320))
    assert (result.num_val, result.train_images, result.retried) == (320, 6400, False)
    assert result.learning_rate == 5e-3
    assert result.train_s > 0
    assert result.eval_s > 0
    assert [report.step for report in reports] == sorted({report.step for report in reports})
    assert reports[-1].step == reports[-1].steps == 200
    assert all(report.images_s > 0 and math.isfinite(report.loss) for report in reports)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_weights_and_recipe_give_the_same_score(data: ProxyData, dtype: Literal["float32", "bfloat16"]) -> None:
    recipe = replace(RECIPE, dtype=dtype)
    results = []
    for noise in (1, 2):
        model = network()
        torch.manual_seed(noise)  # the caller's random state does not matter
        result = train_and_score(model, data, recipe, device="cpu")
        results.append((result.score, result.train_loss, [value.tolist() for value in model.state_dict().values()]))
    assert results[0] == results[1]


def test_a_paused_training_ends_as_one_in_one_go(data: ProxyData) -> None:
    whole, parts = network(), network()
    expected = train_and_score(whole, data, RECIPE, device="cpu")
    reports: list[Progress] = []
    training = Training(parts, data, RECIPE, device="cpu", progress=reports.append)
    scores = [training.advance(step) for step in (1, 5)]
    torch.manual_seed(99)  # what happens in the pause does not matter
    network(3)
    scores.append(training.advance(RECIPE.steps))
    assert (scores[-1].score, scores[-1].train_loss) == (expected.score, expected.train_loss)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    assert [score.train_images for score in scores] == [16, 80, 128]
    assert [report.step for report in reports] == [1, 5, 8]
    assert len({score.train_s for score in scores}) == 3


def test_a_training_lost_after_a_pause_starts_again_at_half_the_rate(data: ProxyData) -> None:
    recipe = replace(RECIPE, steps=4, learning_rate=0.1, warmup_share=0.0)
    training = Training(FailsWhenFast(reach=0.15), data, recipe, device="cpu")
    assert not training.advance(1).retried
    later = training.advance(3)
    assert (later.retried, later.learning_rate, later.train_images) == (True, 0.05, 48)
    with pytest.raises(RunError, match=r"failed twice: .* at learning rate 0.1, .* at 0.05"):
        Training(FailsWhenFast(reach=0.04), data, recipe, device="cpu").advance(3)


def test_callers_random_state_is_left_alone(data: ProxyData) -> None:
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_and_score(model, data, RECIPE, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_score_is_the_share_of_right_answers(data: ProxyData) -> None:
    model = network()
    result = train_and_score(model, data, RECIPE, device="cpu")
    images = (data.val_images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    with torch.no_grad():
        answers = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float()).argmax(1)
    assert result.score == np.mean(answers.numpy() == data.val_labels)


def test_lost_training_starts_once_more_from_the_same_weights_at_half_the_rate(data: ProxyData) -> None:
    # One step of Adam moves a weight by about its learning rate: between 0.05 and 0.1 only the halved one stays inside.
    recipe = replace(RECIPE, steps=1, learning_rate=0.1, warmup_share=0.0)
    model = FailsWhenFast(reach=0.07)
    result = train_and_score(model, data, recipe, device="cpu")
    assert (result.retried, result.learning_rate) == (True, 0.05)
    assert model.weight.abs().max() < 0.07
    assert model.seen == 1 + 3  # buffers were put back too: one step, three batches of validation
    with pytest.raises(RunError, match=r"failed twice: .*outputs.* at learning rate 0.1, .* at 0.05"):
        train_and_score(FailsWhenFast(reach=0.01), data, recipe, device="cpu")
    with pytest.raises(RunError, match="the loss of step 2 of 8 was"):
        train_and_score(FailsWhenFast(reach=0.01), data, replace(recipe, steps=8), device="cpu")


# The recipe


def test_learning_rate_rises_then_falls_to_zero() -> None:
    recipe = replace(RECIPE, steps=100, learning_rate=2.0, warmup_share=0.1)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[:11] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.0])
    assert rates[55] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert replace(recipe, warmup_share=0.0).learning_rate_at(0) == 2.0


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", -1, "at least 1"),
        ("image_size", 0, "at least 1"),
        ("learning_rate", math.nan, "a finite number above 0"),
        ("learning_rate", 0.0, "a finite number above 0"),
        ("clip", math.inf, "a finite number above 0"),
        ("weight_decay", -0.1, "a finite number, at least 0"),
        ("warmup_share", 1.0, "at least 0 and below 1"),
        ("label_smoothing", -0.1, "at least 0 and below 1"),
        ("dtype", "float16", "'float32' or 'bfloat16'"),
        ("augment", "mixup", "'crop' or 'shift'"),
    ],
)
def test_recipes_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UserError, match=f"proxy recipe: {name} is .*; allowed is {allowed}"):
        replace(RECIPE, **{name: value})


@pytest.mark.cuda
def test_cuda_sees_the_same_batches(data: ProxyData) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for recipe in (RECIPE, replace(RECIPE, augment="crop", image_size=28)):
        pairs = zip(train_batches(data, recipe, CPU), train_batches(data, recipe, torch.device("cuda")), strict=True)
        for (on_cpu, labels), (on_cuda, cuda_labels) in pairs:
            assert torch.equal(labels, cuda_labels.cpu())
            torch.testing.assert_close(on_cpu, on_cuda.cpu(), rtol=0, atol=1e-3)
