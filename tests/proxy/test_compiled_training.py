"""Trainings whose steps are compiled: the same values again, the same stages of a training as eager, and what happens where the compiler cannot."""

import functools
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from support.runs import one_stage
from torch import Tensor, nn

from archsearch import build
from archsearch.data import ProxyData, make_constellation
from archsearch.errors import RunError, UserError
from archsearch.proxy import ProxyScore, Recipe, Training, choose_profile, profile_text, train_and_score
from archsearch.space import Space

Mode = Literal["eager", "compile", "compile-blocks"]
MODES: tuple[Mode, ...] = ("compile", "compile-blocks")
TEXT = one_stage('width = 32\ndepth = 3\nblock = "mlp"').replace("image_size = 224", "image_size = 32")
TINY = Space(tomllib.loads(TEXT), "tiny.toml", TEXT).sample(lambda name, choices: choices[0])
RECIPE = Recipe(
    steps=4, batch_size=8, micro_batch=5, learning_rate=1e-3, image_size=32, dtype="float32", augment="shift"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def data() -> ProxyData:
    return make_constellation(32, 16)


@pytest.fixture
def front_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured, and run as they are: in the same kernels as eager."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def trained(data: ProxyData, mode: Mode, *stops: int, drop_path_rate: float = 0.0) -> tuple[ProxyScore, list[Tensor]]:
    """The score after a training that pauses at these steps, and the losses and the weights."""
    torch.manual_seed(0)
    model = build(TINY, num_classes=16, drop_path_rate=drop_path_rate)
    names = list(model.state_dict())
    training = Training(model, data, replace(RECIPE, mode=mode), device="cpu")
    for stop in stops:
        training.advance(stop)
    score = training.advance(RECIPE.steps)
    assert list(model.state_dict()) == names
    return score, [training._attempt.step.losses, *model.state_dict().values()]


def graphs() -> int:
    """So many were captured in this process."""
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_training_gives_the_same_bits_again(
    request: pytest.FixtureRequest, data: ProxyData, mode: Mode
) -> None:
    """Also with random paths, in parts of two sizes, and with a pause; without random numbers it computes what an eager one does."""
    if not request.config.getoption("--whole"):
        pytest.skip("an empty compiler's cache takes a minute and more; --whole runs it")
    once, again = (trained(data, mode, *stops, drop_path_rate=0.5) for stops in ((), (2,)))
    assert (once[0].score, once[0].train_loss) == (again[0].score, again[0].train_loss)
    assert all(map(torch.equal, once[1], again[1]))
    eager, compiled = (trained(data, each)[1] for each in ("eager", mode))
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("front_end_alone")
@pytest.mark.parametrize("mode", MODES)
def test_parts_and_pauses_compile_two_graphs_and_blocks_that_are_alike_share_them(data: ProxyData, mode: Mode) -> None:
    """For the two sizes of the parts; of three blocks not more. The validation compiles none, and all is bit by bit as eager."""
    score, ends = trained(data, "eager")
    before = graphs()
    other, compiled = trained(data, mode, 1, 3)
    assert graphs() - before == 2
    assert (other.score, other.train_loss, other.micro_batch) == (score.score, score.train_loss, 5)
    assert all(map(torch.equal, ends, compiled))


class FailsWhenFast(nn.Module):
    """Gives infinite outputs once its weight has moved further than 0.15 from where it began."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits = images.mean((2, 3)) @ self.weight.T
        return logits / (self.weight.detach().abs().max() < 0.15).float()


@pytest.mark.usefixtures("front_end_alone")
def test_a_second_attempt_at_half_the_rate_compiles_nothing_more(data: ProxyData) -> None:
    recipe = replace(RECIPE, steps=3, micro_batch=None, learning_rate=0.1, warmup_share=0.0, mode="compile")
    model, before = FailsWhenFast(), graphs()
    score = Training(model, data, recipe, device="cpu").advance(2)
    assert (score.retried, score.learning_rate, graphs() - before) == (True, 0.05, 1)
    assert "forward" not in vars(model)


class InParts(nn.Identity):
    """Cannot be captured in one graph."""

    def forward(self, images: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return images


@pytest.mark.usefixtures("front_end_alone")
@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_compiled_fails_with_the_reason(data: ProxyData, mode: Mode) -> None:
    model = build(TINY, num_classes=16)
    model.get_submodule("stages.0.blocks").add_module("1", InParts())
    with pytest.raises(RunError, match=r"^proxy training: .* cannot be compiled: .*graph_break"):
        train_and_score(model, data, replace(RECIPE, mode=mode), device="cpu")


def test_blocks_are_those_of_a_network_of_stages(data: ProxyData) -> None:
    with pytest.raises(UserError, match="'compile-blocks', and Flatten has no stages of blocks; use 'compile'"):
        Training(nn.Flatten(), data, replace(RECIPE, mode="compile-blocks"), device="cpu")


def test_without_a_compiler_the_profile_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(profile_text("fashion-mnist") + '\nmode = "compile"\n')
    assert choose_profile(str(path), "cpu", None).recipe.mode == "compile"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        UserError, match=r"recipe\.mode is 'compile', but torch\.compile cannot run here: there is no C\+\+"
    ):
        choose_profile(str(path), "cpu", None)
    assert choose_profile("fashion-mnist", "cpu", None).recipe.mode == "eager"
