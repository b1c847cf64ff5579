"""Activations are timm's: equal to fvcore's count of timm's own models, and with attention in parts to what timm publishes (`macts`)."""

import math
from typing import Any

import pytest
import torch
from support.zero_weights import build_with_zeros
from torch import nn

from archsearch import paper, paper_names
from archsearch.models import count_activations
from archsearch.units import sides

# Of each model of both houses: timm's name where it is another one, and millions in timm's table (results/benchmark-infer-*.csv, August 2026).
PUBLISHED: dict[str, tuple[str, float | None]] = {
    "davit_tiny": ("", 18.89),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 17.06),
    "twins_pcpvt_small": ("", 18.08),
    "twins_svt_small": ("", 13.75),
    "davit_small": ("", 30.49),
    "davit_base": ("", 40.66),
    "swin_small": ("swin_small_patch4_window7_224", 27.47),
    "swin_base": ("swin_base_patch4_window7_224", 36.63),
    "swin_base_384": ("swin_base_patch4_window12_384", None),  # the table ends at 256 pixels
    "twins_pcpvt_base": ("", 25.25),
    "twins_pcpvt_large": ("", 35.82),
    "twins_svt_base": ("", 26.33),
    "twins_svt_large": ("", 35.10),
}
QUICK = ("davit_tiny", "pvt_tiny", "swin_tiny", "twins_pcpvt_small", "twins_svt_small")


@pytest.fixture(autouse=True)
def _quick(name: str, request: pytest.FixtureRequest) -> None:
    """A small model a family; the others with `--whole` alone."""
    if name not in QUICK and not request.config.getoption("--whole"):
        pytest.skip("a larger model: --whole counts it")


def counted(model: nn.Module, side: int, **handlers: Any) -> int:
    """By fvcore's own handlers and these."""
    from fvcore.nn import ActivationCountAnalysis  # late: importing it runs torch.jit.script

    analysis = ActivationCountAnalysis(model.eval(), torch.zeros(1, 3, side, side)).set_op_handle(**handlers)
    with torch.no_grad():
        return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def attention_in_parts(inputs: list[Any], outputs: list[Any]) -> int:
    """The weights of each head, and what they give."""
    query, key, value = (item.type().sizes() for item in inputs[:3])
    return int(math.prod(query[:-1]) * (key[-2] + value[-1]))


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace's, and those of timm's own imports
@pytest.mark.parametrize("name", PUBLISHED)
def test_timms_model_writes_as_much(name: str) -> None:
    import timm  # late: slow to import
    from timm.layers.config import set_fused_attn

    arch = paper(name)
    set_fused_attn(True, experimental=True)  # Swin's and the pyramids' too
    try:
        model = timm.create_model(PUBLISHED[name][0] or name)
        assert counted(model, sides(arch.image_size)[0]) == arch.cost().activations
    finally:
        set_fused_attn(True)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace's
@pytest.mark.parametrize("name", [name for name, (_, millions) in PUBLISHED.items() if millions])
def test_with_attention_in_parts_it_is_what_timm_publishes(name: str) -> None:
    model = build_with_zeros(paper(name))
    parts = {"aten::scaled_dot_product_attention": attention_in_parts}
    assert round(counted(model, 224, **parts) / 1e6, 2) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", [name for name in paper_names() if name not in PUBLISHED])
def test_papers_that_timm_lacks_write_what_fvcore_counts(name: str) -> None:
    arch = paper(name)
    assert count_activations(build_with_zeros(arch), arch.image_size) == arch.cost().activations
