"""No call of fused attention is longer than CUDA takes with gradients: 65,535 in its first dimension, batch x groups.

On meta tensors, where nothing is computed and every size is as on a GPU. The gate takes models of all families and every thirteenth hybrid, each at one
of the sizes in turn; `--whole` takes all of them at all sizes.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import FAMILIES, arch_of
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from archsearch import Arch, load_space, paper_names
from archsearch.blocks.common import grouped_attention
from archsearch.blocks.kernels import attention
from archsearch.blocks.kernels.attention import attention_by_hand, attention_in_parts
from archsearch.errors import UserError
from archsearch.models.network import build_without_weights
from archsearch.proxy import load_profile, shrink
from archsearch.proxy.profiles import profile_names
from archsearch.space import propose

MOST = 65_535
BATCH = 1024
EVERYTHING = Path(__file__).parents[1] / "data" / "everything.toml"
# The architecture as it is, and its small copies; profiles of equal scale give the same copy.
SCALES = [None, *dict.fromkeys(load_profile(name).scale for name in profile_names())]


class Lengths(TorchFunctionMode):
    """The first dimension of every query of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.seen.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def _network(arch: Arch) -> tuple[nn.Module, Tensor]:
    """In training mode, with 1,024 images."""
    return build_without_weights(arch).to("meta").train(), torch.empty(BATCH, *arch.image().tensor, device="meta")


def _lengths(arch: Arch) -> list[int]:
    """In one forward pass of training."""
    network, images = _network(arch)
    with Lengths() as lengths:
        network(images)
    seen: list[int] = lengths.seen
    return seen


def _check(archs: Iterator[Arch], scales: list[Any], *, is_whole: bool) -> None:
    """Each at all scales, or at the next."""
    turns = itertools.cycle(scales)
    for arch in archs:
        for scale in scales if is_whole else [next(turns)]:
            try:
                sized = arch if scale is None else shrink(arch, scale, 10)
            except UserError:
                continue  # no copy of this size
            assert max(_lengths(sized), default=0) <= MOST, (sized.arch_id, scale)


def _drawn(space: Any, count: int, step: int) -> Iterator[Arch]:
    loaded = load_space(space)
    return (propose(loaded, {}, random.Random(seed))[1] for seed in range(0, count, step))


@pytest.mark.slow
def test_papers_models_train_within_the_limit(request: pytest.FixtureRequest) -> None:
    is_whole = request.config.getoption("--whole")
    names = paper_names() if is_whole else [f"{name}-short" for name in FAMILIES]
    _check(map(arch_of, names), SCALES if is_whole else SCALES[:1], is_whole=is_whole)


@pytest.mark.slow
def test_hybrids_train_within_the_limit(request: pytest.FixtureRequest) -> None:
    is_whole = request.config.getoption("--whole")
    _check(_drawn("hybrid", 300, 1 if is_whole else 13), SCALES, is_whole=is_whole)


@pytest.mark.slow
def test_all_kinds_of_blocks_train_within_the_limit(request: pytest.FixtureRequest) -> None:
    is_whole = request.config.getoption("--whole")
    _check(_drawn(EVERYTHING, 300 if is_whole else 8, 1), SCALES, is_whole=is_whole)


def test_the_models_that_failed_train_within_the_limit_and_keep_one_call_in_inference() -> None:
    """At 128 pixels these five made 65,536 groups of 16 keys, and Swin at 224 of 49."""
    short = load_profile("imagenet-short").scale
    for name in ("davit_tiny", "twins_svt_small", "msg_transformer_tiny", "crossformer_small", "swin_tiny"):
        network, images = _network(shrink(arch_of(f"{name}-short"), short, 10))
        with Lengths() as trained:
            network(images)
        with torch.no_grad(), Lengths() as evaluated:
            network(images)
        assert max(trained.seen) <= MOST < max(evaluated.seen)
    lengths = _lengths(arch_of("swin_tiny-short"))
    assert lengths[:4] == [32_768] * 4  # both blocks of the first stage in two parts


@pytest.mark.parametrize(("name", "is_small"), [("davit_tiny", True), ("swin_tiny", False)])
def test_counts_stay_exact_by_hand_and_in_parts(name: str, is_small: bool) -> None:
    arch = arch_of(f"{name}-short")
    arch = shrink(arch, load_profile("imagenet-short").scale, 10) if is_small else arch
    network, images = _network(arch)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert counter.get_total_flops() == 2 * BATCH * (arch.cost().macs - arch.cost().norm_macs)


@pytest.mark.parametrize("biases", [None, 1, 3, 12])
@pytest.mark.parametrize("way", ["by hand", "in parts"])
def test_both_ways_are_fused_attention_forward_and_backward(way: str, biases: int | None) -> None:
    """In float64; a bias for all groups, for the groups of each of four images, or for each."""
    torch.manual_seed(0)
    shapes = [(12, 2, 5, 8), (12, 2, 7, 8), (12, 2, 7, 8), *([(biases, 2, 5, 7)] if biases else [])]
    mine = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    wanted = [leaf.detach().clone().requires_grad_() for leaf in mine]
    bias = wanted[3].repeat(12 // biases, 1, 1, 1) if biases else None
    query, key, value = wanted[:3]
    oracle = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    if way == "by hand":
        out = attention_by_hand(*mine)
    else:
        own = mine[3].repeat(4, 1, 1, 1) if biases == 3 else mine[3] if biases else None
        out = attention_in_parts(mine[0], mine[1], mine[2], own, most=5)
    torch.testing.assert_close(out, oracle, rtol=1e-12, atol=1e-12)
    pattern = torch.randn_like(out)
    for slope, other in zip(
        torch.autograd.grad(out, mine, pattern), torch.autograd.grad(oracle, wanted, pattern), strict=True
    ):
        torch.testing.assert_close(slope, other, rtol=1e-12, atol=1e-12)


def test_the_cpu_and_inference_have_no_limit() -> None:
    query = torch.zeros(MOST + 1, 1, 5, 1)
    with Lengths() as lengths:
        attention(query.to("meta"), query.to("meta"), query.to("meta"))
        with torch.no_grad():
            attention(query.to("meta"), query.to("meta"), query.to("meta"))
            attention(query, query, query)
    assert lengths.seen == [MOST + 1, MOST + 1]


class _Windows(nn.Module):
    def forward(self, qkv: Tensor) -> Tensor:
        return grouped_attention(qkv, head_dim=8)


def test_an_export_with_gradients_enabled_keeps_any_batch() -> None:
    """The limit is no condition on the batch there: on meta tensors, where it is asked for as on CUDA."""
    batch = torch.export.Dim("batch")
    windows = torch.empty(2, 64, 4, 48, device="meta")
    program = torch.export.export(_Windows(), (windows,), dynamic_shapes=({0: batch},))
    (allowed,) = program.range_constraints.values()
    assert allowed.upper > 2**31
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
