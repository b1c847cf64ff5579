"""Input sizes: those that the papers' code accepts are computed the same, all others are refused when the model is built."""

import re
import warnings
from typing import Any

import pytest
import torch

from archsearch import Arch, UserError, build, paper
from archsearch.blocks import own_choices, registered_layers
from archsearch.models import count_flop_counter

SIZES = [(224, 224), (192, 256), (200, 260), (224, 448), (448, 448), (112, 448), (97, 131), (32, 32), (3, 500)]
SIZES += [(480, 640), (227, 301)]
HALVES_BADLY = {(200, 260), (112, 448), (3, 500)}  # a map with an odd side reaches a merging
# What each model's code (or, for maps that its windows do not divide, its dense-prediction code or our rule) can do with these sizes, from the specs.
REFUSED = {
    "davit_tiny": set(),  # pads everywhere (davit.md 2)
    "van_b0": set(),  # overlapping convolutions take any side (van.md 2)
    "crossformer_tiny": HALVES_BADLY
    | {(97, 131), (227, 301)},  # mergings assert even sides, the stem multiples of 4 (crossformer.md 2, 3)
    "twins_svt_small": {(3, 500)},  # floors; windows are padded by our rule (twins.py)
    "twins_pcpvt_small": {(3, 500)},  # any size from 32 (twins.md 9.6)
    "lit_s": {(3, 500)},  # deformable merging rounds down, as in the detection code (lit.md 3)
    "lit_ti": {(3, 500)},
    "litv2_s": {(3, 500)},
    "pvt_tiny": {(448, 448), (3, 500)},  # 3136 positions in stage 2 take its 784 rows unresized (pvt.md 8.2)
    "swin_tiny": set(),  # pads as the detection code does (swin.py)
    "msg_transformer_tiny": set(),  # pads and masks by our rule, and reads the mean of the messengers (msg.py)
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
        with pytest.raises(UserError, match=r"on a map of|stem") as caught:
            build(arch, image_size=size)
        assert_refused_alike(arch, size, str(caught.value))
        return
    with torch.device("meta"):
        model = build(arch, image_size=size)
        assert model(torch.zeros(2, 3, *size)).shape == (2, 1000)
    cost = arch.cost(size)
    assert count_flop_counter(model, size) == cost.macs - cost.norm_macs


def assert_refused_alike(arch: Arch, size: tuple[int, int], sentence: str) -> None:
    """The sizes that a refusal names work, and a model built for another size refuses this one in the same words."""
    named = re.search(r"; of the multiples of (\d+), (.+) would work$", sentence)
    assert named, sentence
    near = [tuple(map(int, sides.split("x"))) for sides in named[2].split(" and ")]
    for height, width in near:
        arch.check((height, width))
        assert height % int(named[1]) == width % int(named[1]) == 0
    with torch.device("meta"), torch.no_grad():
        for features_only in (False, True):
            model = build(arch, image_size=near[-1], features_only=features_only).eval()  # type: ignore[call-overload]  # features_only is no literal here
            with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
                model(torch.zeros(1, 3, *size))


ODD_SIZES = ((16, 16), (23, 38), (24, 33), (32, 64), (49, 20))
ENTRIES = (("patch", "merging"), ("cross-scale", "cross-scale"), ("overlapping", "messenger"), ("patch", "deformable"))


def _small(role: Any, kind: str) -> dict[str, Any]:
    """One value for each field of a layer: small ones, the same for every layer."""
    small = {"window": 3, "head_dim": 16, "group_dim": 16, "reduction": 2, "interval": 2, "shuffle": 2}
    fields = own_choices(registered_layers(role)[kind])
    return {kind: {name: small.get(name, choices[0]) for name, choices in fields.items()}}


def _pairs() -> list[Any]:
    """Every block with two of the entries, in turn; one of them is slow."""
    return [
        pytest.param(block, *ENTRIES[(index + slow) % len(ENTRIES)], marks=[pytest.mark.slow] * slow)
        for index, block in enumerate(registered_layers("block"))
        for slow in (0, 1)
    ]


@pytest.mark.parametrize(("block", "stem", "downsample"), _pairs())
def test_what_is_accepted_runs_and_costs_what_is_counted_and_what_is_not_names_what_is(
    block: str, stem: str, downsample: str
) -> None:
    """For every kind of block in two stages of small maps; what a layer refuses by its own rules is for it to say."""
    stage = {"width": 32, "depth": 2, "block": block, **_small("block", block)}
    arch = Arch.from_dict(
        {
            "image_size": 64,
            "num_classes": 2,
            "stem": {"kind": stem, **_small("stem", stem)},
            "stages": [stage, {**stage, "downsample": downsample, **_small("downsample", downsample)}],
        }
    )
    for size in ODD_SIZES:
        try:
            arch.check(size)
        except UserError as error:
            assert_refused_alike(arch, size, str(error))
            continue
        model = build(arch, image_size=size).eval()
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, *size)).isfinite().all()
        cost = arch.cost(size)
        assert sum(parameter.numel() for parameter in model.parameters()) == cost.params
        assert count_flop_counter(model, size) == cost.macs - cost.norm_macs


@pytest.mark.parametrize("height", [32, 36, 97, 130, 161, 192])
def test_crossformer_takes_when_it_runs_what_it_takes_when_it_is_built(height: int) -> None:
    """Its mergings assert even sides and its stem a multiple of 4, so sides are multiples of 32."""
    document = paper("crossformer_tiny").to_dict() | {"name": "tiny"}
    for index, stage in enumerate(document["stages"]):
        stage |= {"width": 16 << index, "depth": 2}
    for table in (stage[kind] for stage in document["stages"] for kind in ("sda", "lda")):
        table |= {"head_dim": 16, "window": 3}
    arch = Arch.from_dict(document)
    model = build(arch).eval()
    for width in (32, 48, 64, 97, 130, 160, 161):
        image = torch.zeros(1, 3, height, width)
        if height % 32 == width % 32 == 0:
            arch.check((height, width))
            with torch.inference_mode():
                assert model(image).isfinite().all()
            continue
        with pytest.raises(UserError, match="would work") as refused:
            arch.check((height, width))
        with torch.inference_mode(), pytest.raises(UserError, match=f"^{re.escape(str(refused.value))}$"):
            model(image)


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
        pytest.param("swin_tiny", 224, (230, 301), marks=pytest.mark.slow),
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


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lit_ti", 256),
        ("lit_s", 256),
        ("msg_transformer_tiny", 256),
        ("swin_tiny", 192),
    ],  # at 192 a map of 6x6 has smaller windows
)
def test_a_model_tied_to_its_size_refuses_another(name: str, size: int) -> None:
    model = build(paper(name)).eval()
    with (
        torch.inference_mode(),
        pytest.raises(UserError, match=r"build the model for this image size.* built for 224x224"),
    ):
        model(torch.zeros(1, 3, size, size))


@pytest.mark.slow
@pytest.mark.parametrize(("block", "downsample"), [("wmsa/swmsa", "merging"), ("msg", "messenger")])
def test_padded_maps_are_traced_and_exported_for_any_batch(block: str, downsample: str) -> None:
    """Sides that neither the stem, nor windows, nor regions, nor the merging divide."""
    tables = {kind: _small("block", kind)[kind] for kind in block.split("/")}
    stage = {"width": 32, "depth": 2, "block": block, **tables}
    stem = {"kind": "patch", "patch": {"kernel": 4, "pad": True}}
    stages = [stage, {**stage, "downsample": downsample}]
    size, head = (45, 70), "token" if block == "msg" else "pool"
    arch = Arch.from_dict({"image_size": 64, "num_classes": 2, "stem": stem, "stages": stages, "head": {"kind": head}})
    model, images = build(arch, image_size=size).eval(), torch.randn(2, 3, *size)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the size of a map becomes a constant
        traced = torch.jit.trace(model, images, check_trace=False)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
        for given in (images[:1], torch.cat((images, images[:1]))):
            for network in (traced, exported):
                torch.testing.assert_close(network(given), model(given), rtol=1e-4, atol=1e-5)


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
