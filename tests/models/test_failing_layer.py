"""The layer that a failure's reason names: of a block outside the package, by the whole evaluation of a trial."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.cli_stub import evaluate_with_short_timings
from support.own_blocks import CONVNEXT, SPACE, forgetting
from support.settings import settings_for
from torch import Tensor, nn

from archsearch.blocks import BlockFile
from archsearch.errors import RunError
from archsearch.models import failing_layer
from archsearch.space import Space

FORWARD = """        tokens = self.norm("""


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting():
        yield


def phase_of(condition: str, phase: str) -> str:
    """The reason why a phase of a trial fails whose block raises under this condition."""
    raising = f"        if {condition}:\n            raise RuntimeError('no kernel\\nfor this')\n"
    text = CONVNEXT.read_text().replace(FORWARD, raising + FORWARD)
    files = [BlockFile("convnext.py", text)]
    arch = Space(tomllib.loads(SPACE), source="own.toml", text=SPACE, files=files).sample(
        lambda name, choices: choices[0]
    )
    settings: dict[str, Any] = {
        **settings_for(steps=2),
        "batch_size": 3,
        "image_size": 64,
        "blocks": {"convnext.py": text},
    }
    with pytest.raises(RunError) as caught:
        evaluate_with_short_timings(arch.to_dict(), {**settings, "phases": [phase]}, {}, lambda event: None)
    return str(caught.value)


def test_a_forward_pass(capfd: pytest.CaptureFixture[str]) -> None:
    reason = phase_of("x.device.type != 'meta'", "throughput")
    assert reason == "throughput: stages.0.blocks.0 at batch 3, 64 px: RuntimeError: no kernel"
    assert "Traceback" in capfd.readouterr().err, "the log has the whole of it"


def test_a_training() -> None:
    reason = phase_of("self.training and x.device.type != 'meta'", "proxy")
    assert reason == "proxy: stages.0.blocks.0 at batch 32, 32 px: RuntimeError: no kernel"


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no gradient")


def test_a_backward_pass_and_what_is_no_network() -> None:
    images = torch.zeros(2, 3, 8, 6)
    network = nn.Conv2d(3, 1, 1)
    with pytest.raises(RuntimeError) as caught:
        _NoBackward.apply(network(images)).sum().backward()
    assert failing_layer(caught.value) == "the backward pass at batch 2, 8x6 px"
    with pytest.raises(ZeroDivisionError) as division:
        _ = 1 / 0
    assert failing_layer(division.value) is None
