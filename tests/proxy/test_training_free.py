"""Training-free scores against closed forms and brute force, and over the papers' models."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from support.networks import MIXED, arch_of
from torch import nn

from archsearch.proxy.training_free import SCORES, aggregate, scores
from archsearch.proxy.training_free.az_nas import expressivity, progressivity, spectral_entropy, trainability
from archsearch.proxy.training_free.naswot import naswot
from archsearch.proxy.training_free.zico import zico
from archsearch.space import choose_papers, paper


class Tiny(nn.Module):
    """Two activations on maps, and one on a table that sees no image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.table = nn.Parameter(torch.randn(6, 2))

    def hidden(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(x)
        return first, self.second(nn.functional.gelu(first))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, second = self.hidden(x)
        return torch.relu(second).mean((2, 3)) + torch.relu(self.table).sum()


def test_naswot_is_the_log_determinant_of_agreeing_signs() -> None:
    torch.manual_seed(0)
    network, images = Tiny(), torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        units = torch.cat([hidden.flatten(1) for hidden in network.hidden(images)], dim=1) > 0
    kernel = np.array([[float((units[i] == units[j]).sum()) for j in range(6)] for i in range(6)])
    assert naswot(network, images) == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-9)
    assert math.isnan(naswot(network, images[:1].repeat(6, 1, 1, 1)))


def test_zico_is_the_sum_over_layers_of_log_sums_by_hand() -> None:
    batches = [[[1.0, -2.0, 5.0], [3.0]], [[3.0, 4.0, 5.0], [-3.0]], [[2.0, 0.0, -5.0], [3.0]]]
    gradients = [[torch.tensor(layer) for layer in batch] for batch in batches]
    absolute = np.array([[1.0, 2.0, 5.0], [3.0, 4.0, 5.0], [2.0, 0.0, 5.0]])
    first = sum(absolute[:, weight].mean() / absolute[:, weight].std() for weight in (0, 1))
    # The third weight and the second layer never change in size.
    assert zico(gradients) == pytest.approx(math.log(first))


def test_expressivity_is_the_entropy_of_the_spectrum() -> None:
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=4)))  # uncorrelated channels of equal variance
    assert spectral_entropy(corners) == pytest.approx(math.log(4))
    assert spectral_entropy(corners[:, :1].expand(-1, 4)) == pytest.approx(0, abs=1e-9)
    assert spectral_entropy(corners * 0 + 3) == 0
    scaled = corners * torch.tensor([3.0, 1.0, 0.0, 0.0])
    assert spectral_entropy(scaled) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert expressivity([[1.0, 2.0], [3.0]]) == 6
    assert progressivity([[1.0, 2.0], [9.0, 3.5], [4.0]]) == pytest.approx(0.5)


@pytest.mark.parametrize("gain", [1.0, 2.0, 0.25])
@pytest.mark.parametrize("size", [8, 2])  # more and fewer samples than channels
def test_trainability_is_zero_for_a_rotation_and_by_the_closed_form_for_its_multiples(gain: float, size: int) -> None:
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    block = nn.Conv2d(16, 16, 1, bias=False)
    with torch.no_grad():
        block.weight.copy_(gain * rotation[:, :, None, None])
    found = trainability(nn.Sequential(block), [["0"]], torch.randn(2, 16, size, size))
    assert found == pytest.approx(2 - gain - 1 / gain, abs=1e-4)


class Leaky(nn.Module):
    """x and a tenth of its neighbour: no gradient grows by more than 1.1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * x.roll(1, 3)


def test_a_residual_block_is_no_amplifier_where_there_are_as_many_samples_as_channels() -> None:
    found = trainability(nn.Sequential(Leaky()), [["0"]], torch.randn(2, 32, 4, 4))
    assert 2 - 1.1 - 1 / 1.1 - 1e-6 <= found <= 0


def test_aggregate_is_the_sum_of_log_ranks() -> None:
    table = [{"a": 1.0, "b": 10.0}, {"a": 2.0, "b": 10.0}, {"a": 3.0, "b": 5.0}]
    ranks = [(1, 2.5), (2, 2.5), (3, 1)]
    expected = [math.log(first / 3) + math.log(second / 3) for first, second in ranks]
    assert aggregate(table, ("a", "b")) == pytest.approx(expected)


@pytest.mark.slow
def test_scores_repeat_for_a_seed_and_leave_the_callers_random_numbers() -> None:
    arch = paper("pvt_tiny")
    torch.manual_seed(5)
    first, expected = scores(arch, batch_size=4), torch.rand(3)
    torch.manual_seed(5)
    assert torch.rand(3).tolist() == expected.tolist()
    assert scores(arch, batch_size=4) == first
    assert scores(arch, batch_size=4, seed=1) != first
    assert list(first) == list(SCORES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MIXED, *choose_papers("nearest", 1_000_000_000, 224)])
def test_a_model_of_every_family_has_finite_scores(name: str, request: pytest.FixtureRequest) -> None:
    """Of two networks that have all families' blocks, on which it depends, and with `--whole` of the smallest paper's model of each."""
    if name not in MIXED and not request.config.getoption("--whole"):
        pytest.skip("the two mixed networks have its blocks; --whole runs it")
    arch = arch_of(name)
    found = scores(arch, batch_size=4)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["params"], found["macs"]) == (arch.cost().params, arch.cost().macs)
    assert found["trainability"] <= 0
