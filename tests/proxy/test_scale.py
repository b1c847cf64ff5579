"""Small copies: every architecture of the default space and every paper has one, with the same kinds and depths."""

import random

import pytest
import torch

from archsearch import UserError, build, load_space, paper, paper_names
from archsearch.blocks import Shape
from archsearch.proxy import Scale, load_profile, shrink
from archsearch.proxy.scale import nearest_divisor
from archsearch.space import Band, Bounds, draw

FASHION_MNIST, FOLDER_SMALL, FOLDER_FULL = (
    load_profile(name).scale for name in ("fashion-mnist", "cpu-small", "imagenet-short")
)
SCALES = {"fashion-mnist": FASHION_MNIST, "folder-small": FOLDER_SMALL, "folder-full": FOLDER_FULL}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", paper_names())
def test_papers_keep_kinds_depths_and_heads(name: str, scale: Scale) -> None:
    full, small = paper(name), shrink(paper(name), scale, 10)
    assert [stage.block for stage in small.stages] == [stage.block for stage in full.stages]
    assert [stage.depth for stage in small.stages] == [stage.depth for stage in full.stages]
    for big_stage, small_stage in zip(full.stages, small.stages, strict=True):
        # 16 messengers exchange 16 chunks of channels: a width of 24 has none, the nearest that has is 16.
        assert small_stage.width == (
            16
            if big_stage.width // scale.width_divisor == 24 and "msg" in name
            else big_stage.width // scale.width_divisor
        )
    maps = [placed.out.height for placed in small.layers() if placed.layer.role in ("stem", "downsample")]
    assert maps == list(scale.grids)
    for big_stage, small_stage in zip(full.stages, small.stages, strict=True):
        for big, little in zip(big_stage.blocks, small_stage.blocks, strict=True):
            if hasattr(big, "head_dim") and small_stage.width == big_stage.width // scale.width_divisor:
                heads = [stage.width // block.head_dim for stage, block in ((big_stage, big), (small_stage, little))]
                assert heads[0] == heads[1]


def test_windows_scale_with_the_map() -> None:
    """At 128 px a 7 x 7 window becomes 4 x 4: eight windows a side in stage 1, as at 224 px, and two or more in stages 1 and 2 at either scale."""
    for scale in (FOLDER_SMALL, FASHION_MNIST):
        small = shrink(paper("davit_tiny"), scale, 10)
        windows = [stage.blocks[0].window for stage in small.stages]  # type: ignore[attr-defined]  # window blocks
        assert windows == [4, 4, 4, 2] if scale is FASHION_MNIST else windows == [4, 4, 4, 4]
        assert scale.grids[0] // windows[0] >= 2
        assert scale.grids[1] // windows[1] >= 2


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_architecture_of_the_band_has_a_small_copy(scale: Scale) -> None:
    space, rng = load_space("hybrid"), random.Random(3)
    for _ in range(60):
        _, arch = draw(space, Bounds(macs=Band.around(4_500_000_000, 0.05)), rng)
        small = shrink(arch, scale, 10)
        assert small.num_classes == 10
        assert small.cost().macs < arch.cost().macs


def test_messengers_stay_and_positions_have_the_size_of_the_small_map() -> None:
    for scale in (FOLDER_SMALL, FASHION_MNIST):
        paths = [placed.path for placed in shrink(paper("msg_transformer_tiny"), scale, 10).layers()]
        assert [path for path in paths if "messengers" in path or "patches" in path] == ["stages.1.messengers"]
        for stage, side in zip(shrink(paper("pvt_tiny"), scale, 10).stages, scale.grids, strict=True):
            assert stage.positions is not None
            assert stage.positions.cost(Shape(8, side, side)).macs == 0


@pytest.mark.parametrize("name", ["lit_ti", "msg_transformer_tiny", "pvt_tiny", "swin_tiny"])
def test_small_papers_run_forward_and_backward(name: str) -> None:
    model = build(shrink(paper(name), FASHION_MNIST, 10))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_small_hybrids_run_forward_and_backward() -> None:
    space, rng = load_space("hybrid"), random.Random(4)
    for _ in range(4):
        _, arch = draw(space, Bounds(macs=Band.around(4_500_000_000, 0.05)), rng)
        model = build(shrink(arch, FASHION_MNIST, 10))
        logits = model(torch.randn(2, 3, 32, 32))
        logits.square().sum().backward()
        assert logits.shape == (2, 10)
        unused = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.isfinite().all()
        ]
        assert unused == []


def test_a_size_that_does_not_fit_is_refused_with_its_stage() -> None:
    with pytest.raises(UserError, match=r"stages\.\d cannot be trained at 36 px"):
        shrink(paper("crossformer_tiny"), Scale(image_size=36, stem_stride=4, width_divisor=4), 10)


def test_nearest_divisor_is_the_nearest_by_ratio() -> None:
    assert [nearest_divisor(32, value * 4 / 7, at_least=min(2, value)) for value in (1, 2, 4, 7, 8, 14)] == [
        1,
        2,
        2,
        4,
        4,
        8,
    ]
    assert nearest_divisor(1, 4.0, at_least=2) == 1
