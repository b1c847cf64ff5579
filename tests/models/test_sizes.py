"""Input sizes: those that the papers' code accepts are computed the same, all others are refused when the model is built."""

from typing import Any

import pytest
import torch

from archsearch import UserError, build, paper
from archsearch.models import count_flop_counter

SIZES = [(224, 224), (192, 256), (200, 260), (224, 448), (448, 448), (112, 448), (97, 131), (32, 32), (3, 500)]
HALVES_BADLY = {(200, 260), (112, 448), (3, 500)}  # a map with an odd side reaches a merging
# What each model's code (or, for maps that its windows do not divide, its dense-prediction code or our rule) can do with these sizes, from the specs.
REFUSED = {
    "davit_tiny": set(),  # pads everywhere (davit.md 2)
    "van_b0": set(),  # overlapping convolutions take any side (van.md 2)
    "crossformer_tiny": HALVES_BADLY
    | {(97, 131)},  # mergings assert even sides, the stem multiples of 4 (crossformer.md 2, 3)
    "twins_svt_small": {(3, 500)},  # floors; windows are padded by our rule (twins.py)
    "twins_pcpvt_small": {(3, 500)},  # any size from 32 (twins.md 9.6)
    "lit_s": HALVES_BADLY,  # deformable merging needs even sides (lit.md 3)
    "lit_ti": HALVES_BADLY,
    "litv2_s": HALVES_BADLY,
    "pvt_tiny": {(448, 448), (3, 500)},  # 3136 positions in stage 2 take its 784 rows unresized (pvt.md 8.2)
    "swin_tiny": set(SIZES) - {(224, 224), (224, 448), (448, 448)},  # no padding: multiples of 224 (swin.md 9.3)
    "msg_transformer_tiny": set(SIZES) - {(224, 224)},  # one window must be left (msg_transformer.md 9.1)
}


def _cases() -> list[Any]:
    """Every model at every size; the built and counted ones are slow but for two."""
    quick = {("davit_tiny", (97, 131)), ("pvt_tiny", (192, 256))}
    return [
        pytest.param(
            name,
            size,
            marks=[] if size in REFUSED[name] or (name, size) in quick else [pytest.mark.slow],
            id=f"{name}-{size[0]}x{size[1]}",
        )
        for name in REFUSED
        for size in SIZES
    ]


@pytest.mark.parametrize(("name", "size"), _cases())
def test_a_size_is_computed_or_refused_at_build_time(name: str, size: tuple[int, int]) -> None:
    arch = paper(name)
    if size in REFUSED[name]:
        with pytest.raises(UserError, match=r"on a map of|stem"):
            build(arch, image_size=size)
        return
    with torch.device("meta"):
        model = build(arch, image_size=size)
        assert model(torch.zeros(2, 3, *size)).shape == (2, 1000)
    cost = arch.cost(size)
    assert count_flop_counter(model, size) == cost.macs - cost.norm_macs


@pytest.mark.parametrize(
    ("name", "built", "size"),
    [
        ("davit_tiny", 224, (97, 131)),
        ("van_b0", 224, (97, 131)),
        pytest.param("crossformer_tiny", 224, (96, 160), marks=pytest.mark.slow),
        pytest.param("twins_pcpvt_small", 224, (97, 131), marks=pytest.mark.slow),
        pytest.param("twins_svt_small", 224, (96, 160), marks=pytest.mark.slow),
        pytest.param("litv2_s", 224, (96, 160), marks=pytest.mark.slow),
        ("pvt_tiny", 224, (96, 160)),
        pytest.param("swin_tiny", 224, (224, 448), marks=pytest.mark.slow),
    ],
)
def test_a_built_model_takes_other_sizes_as_if_it_were_built_for_them(
    name: str, built: int, size: tuple[int, int]
) -> None:
    first, second = build(paper(name), image_size=built).eval(), build(paper(name), image_size=size).eval()
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(first(image), second(image))


@pytest.mark.parametrize("name", ["lit_ti", "lit_s", "msg_transformer_tiny", "swin_tiny"])
def test_a_model_tied_to_its_size_refuses_another(name: str) -> None:
    model = build(paper(name)).eval()
    with torch.inference_mode(), pytest.raises(UserError, match="build the model for this image size"):
        model(torch.zeros(1, 3, 256, 256))


def test_pvt_uses_its_table_unresized_where_its_code_does() -> None:
    """112 x 448 has stage 1's 3136 positions, so the 56 x 56 table is added in the wrong geometry; 224 x 448 resizes every table."""
    table = torch.randn(1, 3136, 64)
    for size, grid in (((112, 448), (28, 112)), ((224, 448), (56, 112))):
        model = build(paper("pvt_tiny"), image_size=size).eval()
        positions = model.get_submodule("stages.0.positions")
        positions.load_state_dict({"table": table})
        with torch.inference_mode():
            added = positions(torch.zeros(1, 64, *grid))[0]
        spatial = table.view(56, 56, 64).permute(2, 0, 1)
        resized = torch.nn.functional.interpolate(spatial[None], size=grid, mode="bilinear")[0]
        expected = table[0].t().reshape(64, *grid) if grid == (28, 112) else resized
        assert torch.equal(added, expected)
