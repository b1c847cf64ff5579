"""What the official codes do beside or against their papers: undone in our network, each changes the logits by what stands in its table.

What logits cannot show is asserted on counts, attributes and refusals. The figures: `pytest tests/test_quirks.py -m "slow or not slow" -n 0 -rP`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    quirks_crossformer,
    quirks_davit,
    quirks_lit,
    quirks_msg,
    quirks_pvt,
    quirks_swin,
    quirks_twins,
    quirks_van,
)
from support.quirks_base import LOGITS, Case, Quirk, undone_effect
from torch.nn import functional

from archsearch import Arch, UserError, build, paper
from archsearch.blocks.kernels import cpu
from archsearch.blocks.litv2 import HiLo

COUNTS = json.loads((Path(__file__).parents[1] / "data" / "papers.json").read_text())
FAMILIES = [
    module.QUIRKS
    for module in (
        quirks_davit,
        quirks_crossformer,
        quirks_van,
        quirks_twins,
        quirks_lit,
        quirks_msg,
        quirks_pvt,
        quirks_swin,
    )
]
VISIBLE, INVISIBLE = (
    1e-7,
    1e-9,
)  # relative: what an undone quirk must change at least, and what one may that cannot matter


def _cases() -> list[Any]:
    """(quirk, fixture) of all families, a fixture's quirks side by side; the first that shows of VAN and of MSG-Transformer is quick."""
    cases = []
    for family in FAMILIES:
        names = list(dict.fromkeys(name for quirk in family for name in quirk.effects))
        pairs = [(quirk, name) for name in names for quirk in family if name in quirk.effects]
        quick = next((quirk, name) for quirk, name in pairs if quirk.effects[name] not in (0, (0, 0)))
        for quirk, name in pairs:
            marks = [] if (quirk, name) == quick and name.startswith(("van", "msg")) else [pytest.mark.slow]
            cases.append(pytest.param(quirk, name, marks=marks, id=f"{quirk.source}: {quirk.what} {name}"))
    return cases


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias tables are kept while weights stay as they are; here the code that makes them changes."""
    monkeypatch.setattr(cpu, "is_watched", lambda layer: True)


@pytest.mark.parametrize(("quirk", "name"), _cases())
def test_an_undone_quirk_changes_the_logits_by_its_figure(quirk: Quirk, name: str) -> None:
    figure = quirk.effects[name]
    measured, specified = figure if isinstance(figure, tuple) else (figure, None)
    effect = undone_effect(quirk, Case.parse(name))
    print(f"| {quirk.source} | {' | '.join(quirk.what.split(' -> '))} | {name} | {effect:.2g} | {specified} |")
    if measured == 0:
        assert effect <= INVISIBLE
    else:
        assert effect > VISIBLE
        assert effect == pytest.approx(measured, rel=0.06)  # two digits
    if specified:
        assert 0.75 < effect / specified < 1.25


def test_every_quirk_but_two_invisible_ones_shows_in_some_fixture() -> None:
    hidden = [
        quirk.what
        for family in FAMILIES
        for quirk in family
        if not any(effect not in (0, (0, 0)) for effect in quirk.effects.values())
    ]
    assert hidden == ["rel_pos_msg[:, 1] cancels in the softmax -> zero", "the mask is -100 -> -inf"]


def test_every_fixture_has_quirks() -> None:
    assert set(LOGITS) <= {name for family in FAMILIES for quirk in family for name in quirk.effects}


def _stage(number: int, *path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Another value at a place of a stage's table."""

    def edit(document: dict[str, Any]) -> None:
        table = document["stages"][number - 1]
        for key in path[:-1]:
            table = table[key]
        assert table[path[-1]] != value
        table[path[-1]] = value

    return edit


# Quirks of shape: undone, the weights would not fit, and the counts of the papers' own code are missed.
COUNTED = {
    "davit 11.1: mergings norm first -> norm after": ("davit_tiny", _stage(2, "patch", "norm", value="after")),
    "twins 9.3: depth 4 in PCPVT's stage 2 -> the paper's 3": ("twins_pcpvt_small", _stage(2, "depth", value=3)),
    "twins 9.4: cells of 8 in stage 1 -> 7": ("twins_svt_small", _stage(1, "gsa", "reduction", value=7)),
    "pvt 8.3: depth 4 in stage 2 -> the paper's 3": ("pvt_small", _stage(2, "depth", value=3)),
    "pvt 7: resizing a table costs 4CHW -> tables of the map's size": (
        "pvt_tiny",
        _stage(2, "learned", "side", value=0),
    ),
    "litv2 8.1: 10 of 12 heads (10.8 cut) -> 11": ("litv2_s", _stage(3, "hilo", "alpha", value=0.92)),
    "litv2 8.8: alpha 0.9 -> the code's default 0.5": ("litv2_s", _stage(3, "hilo", "alpha", value=0.5)),
    "litv2 8.2: the window 1 of stage 4 -> 2": ("litv2_s", _stage(4, "hilo", "window", value=2)),
    "lit 9.1: Ti's MLPs are 8 wide in stage 1 -> 4": ("lit_ti", _stage(1, "mlp", "mlp_ratio", value=4)),
    "lit 2.2: bias tables in S -> none": ("lit_s", _stage(3, "msa", "bias", value=False)),
    "van 1: B6 is 384 wide in stage 3 -> 480": ("van_b6", _stage(3, "width", value=480)),
}


@pytest.mark.parametrize("case", COUNTED)
def test_an_undone_quirk_of_shape_misses_the_counts(case: str) -> None:
    name, edit = COUNTED[case]
    document = paper(name).to_dict()
    edit(document)
    own, other = paper(name).cost(), Arch.from_dict(document).cost()
    assert (own.macs, own.params) == (COUNTS[name]["macs"], COUNTS[name]["params"])
    assert (other.macs, other.params) != (own.macs, own.params)


def test_alpha_has_no_effect_where_the_window_is_1() -> None:
    """litv2 8.2: stage 4 is plain attention under Lo-Fi's names."""
    with torch.device("meta"):
        attention = build(paper("litv2_s")).get_submodule("stages.3.blocks.0.attn")
    assert isinstance(attention, HiLo)
    assert not hasattr(attention, "h_qkv")
    assert (attention.lofi_width, attention.hifi_width) == (768, 0)


# (model, parameter, there or not): what a checkpoint of the official code holds and lacks.
KEYS = [
    ("lit_s", "stages.0.blocks.0.norm2.weight", True),  # lit 9.3
    ("lit_s", "stages.0.blocks.0.norm1.weight", False),
    ("litv2_s", "stages.0.blocks.0.norm1.weight", False),  # litv2 8.7
    ("litv2_s", "stages.2.blocks.0.attn.proj.weight", False),  # litv2 8.3: no projection across the two
    ("twins_svt_small", "stages.3.blocks.0.attn.qkv.weight", True),  # twins 9.2
    ("twins_svt_small", "stages.3.blocks.1.attn.sr.weight", False),  # twins 3.2: no modules where s is 1
    ("swin_tiny", "stages.1.downsample.reduction.weight", True),
    ("swin_tiny", "stages.1.downsample.reduction.bias", False),  # swin 1
    ("van_b0", "stages.3.norm.weight", False),  # the head's own
]


@pytest.mark.parametrize(("name", "key", "is_there"), KEYS)
def test_parameters_that_quirks_demand_or_forbid(name: str, key: str, is_there: bool) -> None:
    with torch.device("meta"):
        assert (key in build(paper(name)).state_dict()) == is_there


def test_offsets_have_eight_channels() -> None:
    """lit 9.7, litv2 8.9: no modulation, although the repositories' own count includes it."""
    with torch.device("meta"):
        state = build(paper("lit_s")).state_dict()
    assert state["stages.1.downsample.dconv.conv_offset.weight"].shape == (8, 96, 2, 2)


def test_swin_masks_with_a_finite_number() -> None:
    """swin 9.2: -100, which float64 logits cannot tell from -inf."""
    masks = {name: buffer for name, buffer in build(paper("swin_tiny")).named_buffers() if name.endswith("attn_mask")}
    assert len(masks) == 5  # odd blocks of stages 1 to 3
    assert all(((mask == 0) | (mask == -100)).all() and mask.any() for mask in masks.values())


# Sizes that the papers' own classifiers fail at, or fold into the batch, and that our rules take.
TAKEN = {
    "swin 9.3: no padding": ("swin_tiny", (192, 256)),
    "msg 9.1: two windows left at the head": ("msg_transformer_tiny", (224, 448)),
    "msg 9.4: fewer windows than the next region": ("msg_transformer_tiny", (112, 112)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_sizes_that_the_official_code_cannot_take_give_logits_for_each_image(case: str) -> None:
    name, size = TAKEN[case]
    with torch.device("meta"), torch.no_grad():
        assert build(paper(name), image_size=size)(torch.zeros(3, 3, *size)).shape == (3, 1000)


def test_a_table_that_the_official_code_cannot_add_is_refused() -> None:
    """pvt 8.2: stage 2 has 3136 positions and a table of 784."""
    with torch.device("meta"), pytest.raises(UserError, match="3136"):
        build(paper("pvt_tiny"), image_size=448)


def test_bias_of_a_whole_map_refuses_another_map() -> None:
    """lit 9.13: the size is fixed at construction."""
    model = build(paper("lit_s")).eval()
    with torch.inference_mode(), pytest.raises(UserError, match="14x14"):
        model(torch.zeros(1, 3, 192, 256))


def _logits(name: str, image: torch.Tensor) -> torch.Tensor:
    """Of a freshly drawn float64 model built for the image's size; the same weights whenever the shapes are the same."""
    torch.manual_seed(1)
    model = build(paper(name), image_size=(image.shape[2], image.shape[3])).double().eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(image)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["twins_pcpvt_small", "pvt_tiny"])
def test_pixels_that_fill_no_patch_are_dropped(name: str) -> None:
    """twins 9.6, pvt 8.6: sizes are floored."""
    image = torch.randn(1, 3, 67, 99, dtype=torch.float64)
    torch.testing.assert_close(_logits(name, image), _logits(name, image[:, :, :64, :96]))


@pytest.mark.slow
def test_davit_pads_the_last_patches() -> None:
    """davit 3: zeros at the right and the bottom."""
    image = torch.randn(1, 3, 61, 94, dtype=torch.float64)
    padded = functional.pad(image, (0, 2, 0, 3))
    torch.testing.assert_close(_logits("davit_tiny", image), _logits("davit_tiny", padded))


@pytest.mark.parametrize(
    ("alpha", "gmacs"),
    [(0.0, 3.967), (0.2, 3.882), (0.4, 3.816), (0.5, 3.770), (0.7, 3.743), (0.9, 3.736), (1.0, 3.747)],
)
def test_alpha_costs_what_the_official_code_does(alpha: float, gmacs: float) -> None:
    """litv2 6 and 8.10: LITv2-S at other alphas; 1.0 is 3.747 G and not the 3.70 of the repository's table."""
    document = paper("litv2_s").to_dict()
    document["stages"][2]["hilo"]["alpha"] = alpha
    assert Arch.from_dict(document).cost().macs / 1e9 == pytest.approx(gmacs, abs=5e-4)
