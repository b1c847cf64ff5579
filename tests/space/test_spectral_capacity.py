"""Spectral capacity: its closed form against singular values of random matrices, and an architecture's against its built network."""

import math

import numpy as np
import pytest
import torch
from support.brute_force import every, middle, small
from support.networks import MIXED, arch_of
from torch import nn

from archsearch import paper_names
from archsearch.blocks import module_spectral_capacity
from archsearch.blocks.spectral import log_det, weight_matrices
from archsearch.models.network import build_without_weights
from archsearch.space import InBand, layer_spectral_capacity, spectral_capacity


@pytest.mark.parametrize(("outputs", "inputs", "number"), [(64, 64, 100), (64, 256, 50), (256, 64, 50), (48, 27, 200)])
def test_the_closed_form_is_the_mean_over_random_matrices(outputs: int, inputs: int, number: int) -> None:
    weights = np.random.default_rng(0).standard_normal((number, outputs, inputs)) / math.sqrt(inputs)
    singular = np.linalg.svd(weights, compute_uv=False)
    assert log_det(outputs, inputs) == pytest.approx(np.log1p(singular**2).sum(1).mean(), rel=0.005)


def test_the_closed_form_is_the_integral_over_the_marchenko_pastur_law() -> None:
    outputs, inputs = 96, 384
    low, high = (1 - 0.5) ** 2, (1 + 0.5) ** 2
    angles = (np.arange(20_000) + 0.5) / 20_000 * math.pi
    squares = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    density = np.sin(angles) ** 2 / squares
    expected = outputs * np.average(np.log1p(squares), weights=density)
    assert log_det(outputs, inputs) == pytest.approx(expected, rel=1e-9)


def test_a_convolution_is_its_matrix_and_in_groups_a_block_diagonal_one() -> None:
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 32, (1, 5), groups=4), nn.LayerNorm(32), nn.Linear(32, 7))
    assert list(weight_matrices(module)) == [(1, 16, 72), (4, 8, 20), (1, 7, 32)]
    assert list(weight_matrices(nn.Embedding(5, 6))) == []
    expected = log_det(16, 72) + 4 * log_det(8, 20) + log_det(7, 32)
    assert module_spectral_capacity(module) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", MIXED)
def test_an_architecture_has_exactly_the_capacity_of_its_network(name: str) -> None:
    arch = arch_of(name)
    assert spectral_capacity(arch) == module_spectral_capacity(build_without_weights(arch)) > 0


@pytest.mark.slow
def test_so_has_every_papers_model() -> None:
    for name in paper_names():
        arch = arch_of(name)
        assert spectral_capacity(arch) == module_spectral_capacity(build_without_weights(arch))


def test_it_leaves_the_callers_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    spectral_capacity(arch_of("van_b0"))
    assert torch.equal(torch.rand(3), expected)


def test_the_best_of_a_band_is_that_of_all_architectures() -> None:
    space = small()
    archs = [space.fixed(params).arch() for params, _ in every(space)]
    band = middle(arch.cost().macs for arch in archs)
    inside = [arch for arch in archs if band.low <= arch.cost().macs <= band.high]
    (best,) = InBand(space, band).best(layer_spectral_capacity)
    assert best.score == pytest.approx(max(map(spectral_capacity, inside)))
    assert spectral_capacity(best.arch) == pytest.approx(sum(map(layer_spectral_capacity, best.arch.layers())))
