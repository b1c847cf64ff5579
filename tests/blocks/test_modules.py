"""HiLo attention and deformable merging alone, at settings that no paper's model has, against the official modules' float64 outputs."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.official import official_tensor
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import DeformableDownsample, HiLoBlock, Shape, litv2
from archsearch.blocks.common import grouped_attention, padded_key_mask, pre_norm_cost, to_map, to_tokens
from archsearch.blocks.lit import DeformableMerging
from archsearch.blocks.litv2 import HiLo
from archsearch.models import count_fvcore

CASES = json.loads((Path(__file__).parents[1] / "data" / "litv2_modules.json").read_text())


def _hilo_id(case: dict[str, Any]) -> str:
    return (
        f"{case['H']}x{case['W']}-dim{case['dim']}-heads{case['num_heads']}-window{case['window']}-alpha{case['alpha']}"
    )


def _dtm_id(case: dict[str, Any]) -> str:
    return f"{case['H']}x{case['W']}-{case['dim_in']}-to-{case['dim_out']}"


def _fill(module: nn.Module) -> nn.Module:
    """The convention's weights under the module's bare keys, which are the official ones; float64, eval mode."""
    state = module.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = official_tensor(key, tuple(tensor.shape))
    module.load_state_dict(state)
    return module.double().eval()


def _tokens(height: int, width: int, channels: int) -> Tensor:
    """The convention's input as (1, H, W, C), float64."""
    name = f"tokens-1x{height * width}x{channels}"
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = generator.standard_normal(height * width * channels).astype(np.float32)
    return torch.from_numpy(values).double().view(1, height, width, channels)


def _assert_equal(tokens: Tensor, expected: dict[str, Any]) -> None:
    """Every recorded number within 1e-9 of the largest one of its kind."""
    flat: NDArray[np.float64] = tokens.flatten().numpy()
    ours = {"first32": flat[:32], "strided": flat[:: expected["stride"]][:64]}
    for name, values in ours.items():
        reference = np.array(expected[name])
        assert np.abs(values - reference).max() <= 1e-9 * np.abs(reference).max(), name
    assert abs(flat.mean() - expected["mean"]) <= 1e-9 * expected["std"]
    assert abs(flat.std() - expected["std"]) <= 1e-9 * expected["std"]


class _OnMap(nn.Module):
    """A module on tokens as one on maps, which is what the counter feeds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.module(to_tokens(x)))


def _hilo(case: dict[str, Any]) -> tuple[HiLoBlock, HiLo]:
    """The layer with the case's settings, and the attention inside the block that it builds."""
    layer = HiLoBlock(window=case["window"], alpha=case["alpha"], head_dim=case["dim"] // case["num_heads"])
    attention = layer.build(Shape(case["dim"], case["H"], case["W"])).attn
    assert isinstance(attention, HiLo)
    return layer, attention


def test_all_cases_are_there() -> None:
    assert (len(CASES["hilo"]), len(CASES["dtm"])) == (12, 3)


@pytest.mark.parametrize("case", CASES["hilo"], ids=_hilo_id)
def test_hilo_equals_the_official_module(case: dict[str, Any]) -> None:
    layer, attention = _hilo(case)
    assert layer.lofi_width(case["dim"]) == case["lofi_heads"] * case["dim"] // case["num_heads"]
    with torch.inference_mode():
        out = _fill(attention)(_tokens(case["H"], case["W"], case["dim"]))
    _assert_equal(out, case["output"])


PADDED = [case for case in CASES["hilo"] if case["source"] == "detection"]


def _real_average(case: dict[str, Any], own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lo-Fi's average over the window's real positions only."""

    def average(x: Tensor, window: int) -> Tensor:
        real = torch.zeros_like(x[:, :1])
        real[..., : case["H"], : case["W"]] = 1
        return own(x, window) / own(real, window)

    return average


def _masked(case: dict[str, Any]) -> Callable[..., Tensor]:
    """Hi-Fi without padded keys."""

    def attention(qkv: Tensor, *, head_dim: int) -> Tensor:
        mask = padded_key_mask(case["H"], case["W"], round(qkv.shape[2] ** 0.5), 1, -1e6, qkv)
        return grouped_attention(qkv, head_dim=head_dim, bias=mask)

    return attention


@pytest.mark.parametrize("undone", ["average of real positions", "padded keys masked"])
@pytest.mark.parametrize("case", PADDED, ids=_hilo_id)
def test_padding_takes_part_in_hilo(case: dict[str, Any], undone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """litv2.md section 3: zeros enter the average with the full divisor, and are keys with the bias of h_qkv."""
    _, attention = _hilo(case)
    tokens = _tokens(case["H"], case["W"], case["dim"])
    if undone == "padded keys masked":
        matters = attention.hifi_width > 0
        monkeypatch.setattr(litv2, "grouped_attention", _masked(case))
    else:
        matters = attention.lofi_width > 0
        monkeypatch.setattr(functional, "avg_pool2d", _real_average(case, functional.avg_pool2d))
    with torch.inference_mode():
        first = _fill(attention)(tokens).flatten().numpy()[:: case["output"]["stride"]][:64]
    reference = np.array(case["output"]["strided"])
    effect = np.abs(first - reference).max() / np.abs(reference).max()
    print(f"| litv2 3 | padding takes part in HiLo | {undone} | {_hilo_id(case)} | {effect:.2g} |")
    assert effect > 1e-2 if matters else effect <= 1e-9


@pytest.mark.parametrize("case", CASES["hilo"], ids=_hilo_id)
def test_hilo_costs_what_fvcore_counted_on_the_official_module(case: dict[str, Any]) -> None:
    layer, attention = _hilo(case)
    shape, hidden = Shape(case["dim"], case["H"], case["W"]), int(case["dim"] * layer.mlp_ratio)
    others = pre_norm_cost(shape, hidden).macs + 9 * hidden * shape.height * shape.width  # 9: the FFN's depthwise 3x3
    assert layer.cost(shape).macs - others == case["fvcore_macs"]
    assert count_fvcore(_OnMap(attention), (case["H"], case["W"]), case["dim"]) == case["fvcore_macs"]


@pytest.mark.parametrize("case", CASES["dtm"], ids=_dtm_id)
def test_deformable_merging_equals_the_official_module(case: dict[str, Any]) -> None:
    """Offsets of these weights reach pixels beyond the map; odd sides are the detection backbone's case."""
    merging = DeformableMerging(case["dim_in"], case["dim_out"])
    x = to_map(_tokens(case["H"], case["W"], case["dim_in"]))
    with torch.inference_mode():
        out = _fill(merging)(x)
        offset = merging.dconv.conv_offset(x)
    assert list(out.shape) == [1, case["dim_out"], *case["out_hw"]]
    _assert_equal(to_tokens(out), case["output"])
    _assert_equal(offset.contiguous(), case["offset"])


@pytest.mark.parametrize("case", [case for case in CASES["dtm"] if case["source"] == "classification"], ids=_dtm_id)
def test_deformable_merging_costs_its_three_parts(case: dict[str, Any]) -> None:
    """lit.md section 7: 32 n Cin for the offsets, 2 n Cout for BatchNorm, 4 n Cin Cout for the convolution."""
    (height, width), inputs, outputs = case["out_hw"], case["dim_in"], case["dim_out"]
    layer, shape = DeformableDownsample(width=outputs), Shape(inputs, case["H"], case["W"])
    expected = height * width * (32 * inputs + 2 * outputs + 4 * inputs * outputs)
    assert layer.cost(shape).macs == expected
    assert count_fvcore(layer.build(shape), (case["H"], case["W"]), inputs) == expected
