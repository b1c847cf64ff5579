"""Training on a proxy: the same stream for every candidate, learning, determinism, failure, and the recipe itself."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from support.networks import arch_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from archsearch import build, paper
from archsearch.data import IMAGENET_MEAN, IMAGENET_STD, ProxyData, make_constellation
from archsearch.errors import RunError, UserError
from archsearch.models.network import build_without_weights
from archsearch.proxy import Loader, Recipe, Training, TrainingProgress, load_profile, shrink, train_and_score
from archsearch.proxy.training.augment import augmented
from archsearch.proxy.training.gradients import Gradients
from archsearch.proxy.training.memory import activation_bytes, fitting_part, state_bytes, train_step_bytes
from archsearch.proxy.training.step import Record, Step

RECIPE = Recipe(steps=8, batch_size=16, learning_rate=1e-3, image_size=32, dtype="float32", augment="shift")
CPU = torch.device("cpu")


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
    """Records the images it sees in training, and calls the random generator as a model with dropout would."""

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


def test_learns_and_reports(data: ProxyData) -> None:
    larger = make_constellation(3200, 320, seed=1)
    recipe = replace(RECIPE, steps=200, batch_size=32, learning_rate=5e-3)
    reports: list[TrainingProgress] = []
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


def test_a_paused_training_ends_as_one_without_a_pause(data: ProxyData) -> None:
    whole, parts = network(), network()
    expected = train_and_score(whole, data, RECIPE, device="cpu")
    reports: list[TrainingProgress] = []
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


def test_a_training_that_diverges_after_a_pause_starts_again_at_half_the_rate(data: ProxyData) -> None:
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


def test_a_diverged_training_starts_once_more_from_the_same_weights_at_half_the_rate(data: ProxyData) -> None:
    # One step of Adam moves a weight by about its learning rate: between 0.05 and 0.1 only the halved one stays inside.
    recipe = replace(RECIPE, steps=1, learning_rate=0.1, warmup_share=0.0)
    model = FailsWhenFast(reach=0.07)
    result = train_and_score(model, data, recipe, device="cpu")
    assert (result.retried, result.learning_rate) == (True, 0.05)
    assert model.weight.abs().max() < 0.07
    assert model.seen == 1 + 1  # buffers were put back too: one step, one batch of validation
    with pytest.raises(RunError, match=r"failed twice: .*outputs.* at learning rate 0.1, .* at 0.05"):
        train_and_score(FailsWhenFast(reach=0.01), data, recipe, device="cpu")
    with pytest.raises(RunError, match="the loss of step 2 of 8 was"):
        train_and_score(FailsWhenFast(reach=0.01), data, replace(recipe, steps=8), device="cpu")


# The step


def step_ends(data: ProxyData, recipe: Recipe, record: Record | None) -> list[Tensor]:
    """Losses and weights after a few steps whose random numbers begin alike."""
    model = network()
    step = Step(model, recipe, CPU, record)
    torch.manual_seed(3)
    for number, (images, labels) in enumerate(Loader(data, CPU).train_batches(recipe)):
        step.run(number, images, labels)
    return [step.losses, *model.state_dict().values()]


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_a_step_replayed_from_fixed_buffers_computes_the_same_bits(data: ProxyData, micro_batch: int | None) -> None:
    """All that a CUDA graph replays is the recorded work, here called again as it is; one that cannot be recorded is done as before."""
    recipe = replace(RECIPE, micro_batch=micro_batch)
    calls: list[int] = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            work()
            calls.append(1)

        return replay

    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    eager = step_ends(data, recipe, None)
    replayed = step_ends(data, recipe, record)
    assert len(calls) == recipe.steps - 3
    with pytest.warns(UserWarning, match="no CUDA graph could be made .*not permitted"):
        refused = step_ends(data, recipe, refuse)
    for ends in (replayed, refused):
        assert all(map(torch.equal, eager, ends))


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
    """Refuses the operations for which the host waits for a GPU: those that read values, and copies between devices."""

    READING = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.READING, func
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and args and isinstance(args[0], Tensor):
            assert out.device == args[0].device, func
        return out


@pytest.mark.parametrize("name", ["davit_tiny-short", "litv2_s-short", "msg_transformer_tiny-short", "van_b0-short"])
def test_nothing_in_a_step_waits_for_the_device(name: str) -> None:
    """Of networks of every kind of block, so on any device: the mode sees the operations, not what computes them."""
    recipe = replace(RECIPE, batch_size=2, dtype="bfloat16")
    model = build(shrink(arch_of(name), load_profile("fashion-mnist").scale, 16))
    step = Step(model, recipe, CPU)
    images, labels = torch.rand(2, 3, 32, 32), torch.arange(2)
    step.run(0, images, labels)
    before = [weight.clone() for weight in model.parameters()]
    with NoWaiting():  # type: ignore[no-untyped-call]  # as above
        step.run(1, images, labels)
    assert not all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("augment", ["crop", "shift", "none"])
def test_augmentation_copies_nothing_from_the_host(data: ProxyData, augment: Literal["crop", "shift", "none"]) -> None:
    recipe = replace(RECIPE, augment=augment, image_size=24)
    with FakeTensorMode(), NoWaiting():  # type: ignore[no-untyped-call]  # as above
        images, uniforms = torch.empty(4, 32, 32, 3, dtype=torch.uint8, device="cuda"), torch.empty(4, 5, device="cuda")
        assert augmented(images, uniforms, recipe, data).device.type == "cuda"


# Memory


@pytest.mark.parametrize(
    ("name", "gib"), [("litv2_s", 20), ("lit_s", 15), ("twins_pcpvt_small", 23), ("van_b2", 38), ("pvt_small", 23)]
)
def test_the_memory_of_a_step_is_known_before_it(name: str, gib: int, pytestconfig: pytest.Config) -> None:
    """Within a tenth of what an H100 took for 1,024 images of 128 px under bfloat16 autocast; a GPU of 24 GiB then gets parts that fit."""
    if name != "pvt_small" and not pytestconfig.getoption("--whole"):
        pytest.skip("with --whole")
    profile = load_profile("imagenet-short")
    model = build_without_weights(shrink(paper(name), profile.scale, 1000))
    weights = sum(weight.nbytes for weight in model.parameters())
    activations = activation_bytes(model, (1024, 3, 128, 128), is_autocast=True)
    assert activations + state_bytes(model) + weights == pytest.approx(gib * 2**30, rel=0.1)
    assert fitting_part(model, profile.recipe, 23 * 2**30) == (None if gib < 22 else 512)


def test_saved_tensors_of_a_closed_form() -> None:
    """Two linears and a GELU save the input once, the hidden map before and after the GELU; in bfloat16 the weights are cast too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.GELU(), nn.Linear(64, 16))
    before = [weight.clone() for weight in model.parameters()]
    images = (8, 3, 32, 32)
    inputs, hidden, weights = 3 * 32 * 32, 64, 64 * 16
    saved = activation_bytes(model, images, is_autocast=False)
    assert saved == 4 * 8 * (inputs + 2 * hidden)
    cast = activation_bytes(model, images, is_autocast=True)
    assert 2 * 8 * (inputs + 2 * hidden) <= cast <= 2 * (8 * (inputs + 2 * hidden) + 64 * inputs + weights)
    assert all(map(torch.equal, before, model.parameters()))
    assert not torch.is_autocast_enabled("cuda")
    stored = 4 * sum(weight.numel() for weight in model.parameters())
    assert train_step_bytes(model, images, "float32") == 4 * stored + saved


class LimitedMemory(nn.Module):
    """Runs out of memory at the end of a forward pass of more images than fit, as a network does at its widest map."""

    def __init__(self, inner: nn.Module, most: int, most_in_evaluation: int = 1000) -> None:
        super().__init__()
        self.inner, self.most, self.most_in_evaluation = inner, most, most_in_evaluation

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        if len(images) > (self.most if self.training else self.most_in_evaluation):
            raise torch.OutOfMemoryError("out of memory")
        return logits


def test_a_step_that_ran_out_of_memory_is_done_again_in_parts(data: ProxyData) -> None:
    """Bit by bit as if it had been in parts from the start: random numbers, running averages and gradients are put back."""
    short, parted = network(), network()
    expected = train_and_score(parted, data, replace(RECIPE, micro_batch=4), device="cpu")
    result = train_and_score(LimitedMemory(short, most=7, most_in_evaluation=5), data, RECIPE, device="cpu")
    assert result.micro_batch == expected.micro_batch == 4
    assert train_and_score(network(), data, RECIPE, device="cpu").micro_batch is None
    assert result.score == expected.score  # in batches of four, too
    assert result.train_loss == expected.train_loss
    for name, value in parted.state_dict().items():
        assert torch.equal(value, short.state_dict()[name]), name


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(micro_batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(10, 3, 8, 8, generator=generator), torch.arange(10)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 16))
    recipe = replace(RECIPE, batch_size=10)
    losses, gradients = [], []
    for each in (recipe, replace(recipe, micro_batch=micro_batch)):
        losses.append(Gradients(model, each, torch.device("cpu")).add(images, labels))
        gradients.append([weight.grad for weight in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_memory_too_short_for_one_image_is_an_error(data: ProxyData) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train_and_score(LimitedMemory(network(), most=0), data, RECIPE, device="cpu")
    with pytest.raises(torch.OutOfMemoryError):
        train_and_score(LimitedMemory(network(), most=16, most_in_evaluation=0), data, RECIPE, device="cpu")


def test_a_mistake_is_not_taken_for_short_memory(data: ProxyData) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_and_score(nn.Sequential(nn.Flatten(), nn.Linear(5, 16)), data, RECIPE, device="cpu")


@pytest.mark.cuda
def test_cuda_gives_the_same_weights_again_and_leaves_its_settings(data: ProxyData) -> None:
    """Of layers whose backward PyTorch has a deterministic version of."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.GELU(), nn.Dropout(0.1))
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 15 * 15, 16))
        score = train_and_score(model, data, RECIPE, device="cuda")
        assert score.peak_memory_bytes
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == before


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
        ("steps", 0, "1 to "),
        ("batch_size", -1, "1 to "),
        ("image_size", 0, "1 to "),
        ("learning_rate", math.nan, "above 0, at most "),
        ("learning_rate", 0.0, "above 0, at most "),
        ("clip", math.inf, "a finite number above 0"),
        ("weight_decay", -0.1, "0 to "),
        ("warmup_share", 1.0, "at least 0 and below 1"),
        ("label_smoothing", -0.1, "at least 0 and below 1"),
        ("dtype", "float16", "'float32' or 'bfloat16'"),
        ("augment", "mixup", "'crop', 'shift' or 'none'"),
        ("mode", "max-autotune", "'eager', 'compile' or 'compile-blocks'"),
        ("micro_batch", 0, "1 to "),
    ],
)
def test_recipes_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UserError, match=f"proxy recipe: {name} is .*; allowed is {allowed}"):
        replace(RECIPE, **{name: value})
