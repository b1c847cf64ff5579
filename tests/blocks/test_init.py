"""Every weight is initialised as its paper specifies, and stochastic depth rises from block to block as in the paper.

Statistics of drawn weights are compared with the law's own within SIGMAS standard errors, tensor by tensor and pooled over all tensors of a rule.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from archsearch import UserError, build, paper, paper_names
from archsearch.blocks import MsgBlock, Shape, registered_layers

SIGMAS = (
    5.0  # of 2754 comparisons an honest draw would fail one in 0.2 % of the seeds; this seed's farthest stands at 3.4
)
LEAST_ALONE = 1000  # smaller tensors are tested pooled only: their tail counts are too skewed for standard errors


class Law(NamedTuple):
    """A distribution of weights divided by `scale`: expectation and standard deviation of three statistics of one draw."""

    scale: Callable[[nn.Module, Tensor], float]
    tail: float  # the third statistic is whether a value lies beyond this
    largest: float
    moments: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # of value, square, tail


class Constant(NamedTuple):
    """One value everywhere."""

    value: float


class Rule(NamedTuple):
    """Law of `<module>.weight` (or of a parameter that is called something else) and of `<module>.bias`; `B` in the pattern stands for any block."""

    modules: str
    weight: Law | Constant
    bias: Law | Constant | None


def _fan_in(owner: nn.Module) -> int:
    assert isinstance(owner.weight, Tensor)
    return math.prod(owner.weight.shape[1:])


def _fan_out(owner: nn.Module, tensor: Tensor) -> float:
    """std sqrt(2 / (kh kw outputs / groups)); VAN's 1x1 convolutions are Linear here."""
    groups = owner.groups if isinstance(owner, nn.Conv2d) else 1
    return math.sqrt(2 / (tensor.shape[0] * math.prod(tensor.shape[2:]) / groups))


_BEYOND_2 = math.erfc(math.sqrt(2))  # 4.55 % of a normal; a cut at two sigma would leave none
_NORMAL = partial(
    Law, tail=2.0, largest=7.0, moments=((0, 1), (1, math.sqrt(2)), (_BEYOND_2, math.sqrt(_BEYOND_2 * (1 - _BEYOND_2))))
)
# "Truncated" normal 0.02: all papers cut at an absolute 2, a hundred sigmas, so not at all.
TRUNCATED = _NORMAL(scale=lambda owner, tensor: 0.02)
FAN_OUT = _NORMAL(scale=_fan_out)
# PyTorch's default, kaiming-uniform with a = sqrt(5): uniform in +-1 / sqrt(fan_in), weight and bias.
DEFAULT = Law(
    scale=lambda owner, tensor: 1 / math.sqrt(_fan_in(owner)),
    tail=0.9,
    largest=1.0,
    moments=((0, math.sqrt(1 / 3)), (1 / 3, math.sqrt(4 / 45)), (0.1, 0.3)),
)
ONE, ZERO, LAYER_SCALE = Constant(1.0), Constant(0.0), Constant(0.01)

MLP = r"B\.mlp\.fc\d|head\.fc"
NORMS = Rule(r".*norm[^.]*", ONE, ZERO)
PATCHES = r"(stem|stages\.\d\.downsample)\.proj"
DEFORMABLE = [
    Rule(r"stem\.proj|stages\.\d\.downsample\.dconv", DEFAULT, DEFAULT),
    Rule(r"stages\.\d\.downsample\.dconv\.conv_offset", ZERO, ZERO),
]
POSITIONS = Rule(r"stages\.\d\.positions\.(table|token)", TRUNCATED, None)
BIAS_TABLE = Rule(r"B\.attn\.(relative_position_bias_table|rel_pos_msg)", TRUNCATED, None)
TWINS = [
    NORMS,
    Rule(r"B\.attn\.(qkv|q|kv|proj)|" + MLP, TRUNCATED, ZERO),
    Rule(PATCHES + r"|B\.attn\.sr|stages\.\d\.peg\.proj", FAN_OUT, ZERO),
]

RULES: dict[str, list[Rule]] = {
    "davit_tiny": [
        NORMS,
        Rule(r"B\.attn\.(qkv|proj)|" + MLP, TRUNCATED, ZERO),
        Rule(PATCHES + r"|B\.cpe[12]", DEFAULT, DEFAULT),
    ],
    "crossformer_tiny": [
        NORMS,
        Rule(r"B\.attn\.pos\.pos[123]\.0", ONE, ZERO),
        Rule(r"B\.attn\.(qkv|proj|pos\.pos_proj|pos\.pos[123]\.2)|" + MLP, TRUNCATED, ZERO),
        Rule(r"stem\.projs\.\d|stages\.\d\.downsample\.reductions\.\d", DEFAULT, DEFAULT),
    ],
    "van_b0": [
        NORMS,
        Rule(r"B\.layer_scale_[12]", LAYER_SCALE, None),
        Rule(r"head\.fc", TRUNCATED, ZERO),
        Rule(PATCHES + r"|B\.attn\.(proj_[12]|spatial_gating_unit\.\w+)|B\.mlp\.(fc\d|dwconv)", FAN_OUT, ZERO),
    ],
    "twins_svt_small": TWINS,
    "twins_pcpvt_small": [TWINS[0], Rule(r"B\.attn\.(q|kv|proj)|" + MLP, TRUNCATED, ZERO), TWINS[2]],
    "lit_ti": [NORMS, Rule(r"B\.attn\.(qkv|proj)|" + MLP, TRUNCATED, ZERO), *DEFORMABLE, POSITIONS],
    "lit_s": [NORMS, Rule(r"B\.attn\.(qkv|proj)|" + MLP, TRUNCATED, ZERO), *DEFORMABLE, BIAS_TABLE],
    "litv2_s": [
        NORMS,
        Rule(r"B\.attn\.(l_q|l_kv|l_proj|h_qkv|h_proj)|" + MLP, TRUNCATED, ZERO),
        Rule(r"B\.mlp\.dwconv", FAN_OUT, ZERO),
        *DEFORMABLE,
    ],
    "msg_transformer_tiny": [
        NORMS,
        Rule(r"B\.attn\.(qkv|proj)|" + MLP, TRUNCATED, ZERO),
        Rule(r"stem\.proj|stages\.\d\.downsample\.reduction", DEFAULT, DEFAULT),
        Rule(r"stages\.0\.messengers\.token", TRUNCATED, None),
        BIAS_TABLE,
    ],
    "pvt_tiny": [
        NORMS,
        Rule(r"B\.attn\.(q|kv|proj)|" + MLP, TRUNCATED, ZERO),
        Rule(PATCHES + r"|B\.attn\.sr", DEFAULT, DEFAULT),
        POSITIONS,
    ],
    "swin_tiny": [
        NORMS,
        Rule(r"B\.attn\.(qkv|proj)|" + MLP, TRUNCATED, ZERO),
        Rule(r"stages\.\d\.downsample\.reduction", TRUNCATED, None),
        Rule(r"stem\.proj", DEFAULT, DEFAULT),
        BIAS_TABLE,
    ],
}


def _owner(key: str) -> tuple[str, str]:
    """(what a rule's pattern speaks of, `weight` or `bias`) of a parameter."""
    parent, _, last = key.rpartition(".")
    return (parent, last) if last in ("weight", "bias") else (key, "weight")


def _claims(rule: Rule, key: str) -> bool:
    name, _ = _owner(key)
    return re.fullmatch(rule.modules.replace("B", r"stages\.\d\.blocks\.\d+"), name) is not None


def _draws(model: nn.Module, key: str, law: Law) -> Tensor:
    """A parameter in units of its law, flat and in float64."""
    parameter = model.get_parameter(key).detach()
    return parameter.double().flatten() / law.scale(model.get_submodule(key.rpartition(".")[0]), parameter)


def _assert_law(draws: Tensor, law: Law, what: str) -> None:
    assert draws.abs().max() <= law.largest * (1 + 1e-6), what
    statistics = (draws, draws.square(), (draws.abs() > law.tail).double())
    for values, (expected, deviation), name in zip(statistics, law.moments, ("mean", "square", "tail"), strict=True):
        away = abs(values.mean().item() - expected) / (deviation / math.sqrt(draws.numel()))
        assert away <= SIGMAS, f"{what}: {name} is {away:.1f} standard errors from {expected:.3g}"


def _assert_rule(model: nn.Module, keys: list[str], law: Law | Constant | None, what: str) -> None:
    assert law is not None, f"{what}: {keys} should not exist"
    if isinstance(law, Constant):
        assert all((model.get_parameter(key) == law.value).all() for key in keys), what
        return
    draws = {key: _draws(model, key, law) for key in keys}
    for key, values in draws.items():
        if values.numel() >= LEAST_ALONE:
            _assert_law(values, law, key)
    _assert_law(torch.cat(list(draws.values())), law, f"{what} (all)")


QUICK = ("van_b0", "pvt_tiny")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RULES]
)
def test_every_parameter_starts_as_its_paper_specifies(name: str) -> None:
    torch.manual_seed(0)
    model = build(paper(name))
    claimed: dict[tuple[Rule, str], list[str]] = {}
    for key, _ in model.named_parameters():
        rules = [rule for rule in RULES[name] if _claims(rule, key)]
        assert len(rules) == 1, f"{key} is claimed by {[rule.modules for rule in rules]}"
        claimed.setdefault((rules[0], _owner(key)[1]), []).append(key)
    assert {rule for rule, _ in claimed} == set(RULES[name])
    for (rule, kind), keys in claimed.items():
        _assert_rule(model, keys, rule.weight if kind == "weight" else rule.bias, f"{rule.modules} {kind}")


@pytest.mark.parametrize("name", ["van_b0", "lit_s"])
def test_batch_norm_statistics_start_neutral(name: str) -> None:
    norms = [module for module in build(paper(name)).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)


# `name rate blocks`: rate of the training recipe and number of blocks by the specifications' tables.
_RECIPES = """
davit_tiny 0.1 12, davit_small 0.1 24, davit_base 0.1 24,
crossformer_tiny 0.1 16, crossformer_small 0.2 12, crossformer_base 0.3 24, crossformer_large 0.5 24,
van_b0 0.1 13, van_b1 0.1 10, van_b2 0.1 21, van_b3 0.2 38, van_b4 0.2 52, van_b5 0.2 33, van_b6 0.2 108,
twins_svt_small 0.2 18, twins_svt_base 0.3 24, twins_svt_large 0.5 24,
twins_pcpvt_small 0.2 16, twins_pcpvt_base 0.3 28, twins_pcpvt_large 0.5 41,
lit_ti 0.1 16, lit_s 0.2 12, lit_m 0.3 24, lit_b 0.5 24,
litv2_s 0.2 12, litv2_m 0.3 24, litv2_b 0.5 24, litv2_b_384 0.5 24,
msg_transformer_tiny 0.1 22, msg_transformer_small 0.3 22, msg_transformer_base 0.5 38,
pvt_tiny 0.1 8, pvt_small 0.1 16, pvt_medium 0.3 28, pvt_large 0.3 41,
swin_tiny 0.2 12, swin_small 0.3 24, swin_base 0.5 24, swin_base_384 0.5 24
"""
RECIPES = {name: (float(rate), int(blocks)) for name, rate, blocks in map(str.split, _RECIPES.split(","))}
# The rates of the official models, read from their modules (float32).
MEASURED_RATES = {
    "davit_tiny": "0 .0090909088 .018181818 .027272727 .036363635 .045454543 .054545458 .063636363 .072727278 .081818186 .090909094 .1",
    "lit_ti": "0 .0066666668 .013333334 .02 .026666667 .033333335 .039999999 .046666667 .053333335 .060000002 .06666667 .073333338 "
    ".079999998 .086666666 .093333334 .1",
    "lit_s": "0 .018181818 .036363635 .054545455 .07272727 .090909086 .10909092 .12727273 .14545456 .16363637 .18181819 .2",
}


def _rates(name: str) -> list[float]:
    """Drop rate of every block of a paper's model at its recipe's rate, in order of execution; a block that never drops has the identity."""
    with torch.device("meta"):
        model = build(paper(name), drop_path_rate=RECIPES[name][0])
    paths = [placed.module for placed in paper(name).layers() if placed.layer.role == "block"]
    layers = [model.get_submodule(f"{path}.drop_path") for path in paths]
    assert isinstance(layers[0], nn.Identity)
    assert not any(isinstance(layer, nn.Identity) for layer in layers[1:])
    return [0.0, *(float(layer.p) for layer in layers[1:])]  # type: ignore[arg-type]  # torchvision's StochasticDepth.p


def test_recipes_are_those_of_all_papers() -> None:
    assert set(RECIPES) == set(paper_names())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RECIPES]
)
def test_drop_rate_rises_linearly_over_all_blocks(name: str) -> None:
    rate, blocks = RECIPES[name]
    assert _rates(name) == pytest.approx(np.linspace(0, rate, blocks), abs=1e-12)


def test_the_papers_own_rates_are_theirs_and_a_number_is_asked_for_where_they_state_none() -> None:
    unstated = ("davit_small", "davit_base", "van_b4", "van_b5", "van_b6", "swin_base_384")
    stated = {name for name in RECIPES if name not in unstated}
    for name in RECIPES:
        with torch.device("meta"):
            if name not in stated:
                with pytest.raises(UserError, match=f"no paper states a rate for {name}; give a number"):
                    build(paper(name), drop_path_rate="paper")
                continue
            *_, last = (m for m in build(name, drop_path_rate="paper").modules() if isinstance(m, StochasticDepth))
        assert last.p == pytest.approx(RECIPES[name][0])


@pytest.mark.parametrize("rate", [-0.1, 1, float("nan"), "papers", None])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(UserError, match=r"drop_path_rate is .*; allowed are numbers from 0 to below 1, and 'paper'"):
        build(paper("van_b0"), drop_path_rate=rate)


@pytest.mark.parametrize("name", MEASURED_RATES)
def test_drop_rates_are_the_official_models(name: str) -> None:
    assert _rates(name) == pytest.approx([float(rate) for rate in MEASURED_RATES[name].split()], abs=3e-8)


def test_a_model_without_a_rate_never_drops() -> None:
    assert not any(isinstance(module, StochasticDepth) for module in build(paper("van_b0")).modules())


SHAPE, RATE, SAMPLES = Shape(64, 14, 14), 0.4, 64
BY_SAMPLE = [kind for kind in registered_layers("block") if kind != "msg"]


def _assert_share(kept: Tensor) -> None:
    """The share of kept branches within 4 standard errors."""
    assert abs(kept.double().mean().item() - (1 - RATE)) <= 4 * math.sqrt(RATE * (1 - RATE) / kept.numel())


def _branches(kind: str) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of every drop of a branch in one training step of a block, (B, ...)."""
    torch.manual_seed(3)
    block = registered_layers("block")[kind]().build(SHAPE, RATE).train()
    seen: list[tuple[Tensor, Tensor]] = []
    block.get_submodule("drop_path").register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    block(torch.randn(SAMPLES, *SHAPE.tensor).contiguous(memory_format=torch.channels_last))
    return seen


@pytest.mark.parametrize("kind", BY_SAMPLE)
def test_branches_of_a_block_are_dropped_each_by_itself_at_one_rate(kind: str) -> None:
    branches = _branches(kind)
    assert len(branches) == (1 if kind == "mlp" else 2)
    all_kept = []
    for before, after in branches:
        before, after = before.flatten(1), after.flatten(1)
        kept = (after != 0).any(dim=1)
        torch.testing.assert_close(after[kept], before[kept] / (1 - RATE))
        _assert_share(kept)
        all_kept.append(kept)
    if len(all_kept) == 2:
        assert (all_kept[0] != all_kept[1]).any()
        assert (all_kept[0] == all_kept[1]).any()


def test_messenger_windows_are_dropped_by_region() -> None:
    """msg_transformer.md quirk 5: the four regions of an image are dropped each by itself, the windows of one together."""
    torch.manual_seed(4)
    shape = Shape(64, 28, 28, tokens=16)
    block = MsgBlock(window=7, shuffle=2).build(shape, RATE).train()
    # Both branches add a constant, attention 1 and the MLP 10, so that a sum tells which of them were kept.
    for path, constant in (("attn.proj", 1.0), ("mlp.fc2", 10.0)):
        linear = block.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, constant)
    x = torch.randn(SAMPLES, *shape.tensor).contiguous(memory_format=torch.channels_last)
    added = (block(x) - x)[..., 1:] * (1 - RATE)  # the patches: messengers have exchanged their channels
    by_window = added.mean((1, 3)).round().long()  # (B, windows)
    torch.testing.assert_close(added, by_window[:, None, :, None].expand_as(added).float(), rtol=0, atol=1e-4)
    assert set(by_window.unique().tolist()) == {0, 1, 10, 11}
    regions = by_window.view(SAMPLES, 2, 2, 2, 2).transpose(2, 3).reshape(SAMPLES, 4, 4)  # (B, region, window of it)
    assert (regions == regions[:, :, :1]).all()
    attention, mlp = regions[:, :, 0] % 10, regions[:, :, 0] // 10  # (B, region): kept or not
    for kept in (attention, mlp):
        _assert_share(kept)
        assert (kept != kept[:, :1]).any()  # regions of an image differ
    assert (attention != mlp).any()
