"""Images of any number of channels and any two sides: costs against independent counters, networks, ids, spaces and proxies."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.zero_weights import build_with_zeros

from archsearch import Arch, UserError, build, load_space, paper
from archsearch.models import count_flop_counter, count_fvcore
from archsearch.proxy import Scale, shrink
from archsearch.space import Space

SIZE = (192, 256)
FAMILIES = ("crossformer_tiny", "davit_tiny", "litv2_s", "pvt_tiny", "twins_svt_small", "van_b0")
TINY = (Path(__file__).parents[1] / "data" / "tiny.toml").read_text()


def tiny(**keys: Any) -> Space:
    return Space({**tomllib.loads(TINY), **keys}, "tiny.toml", TINY)


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("name", FAMILIES)
def test_costs_equal_the_counters(name: str, channels: int) -> None:
    arch, own = paper(name), replace(paper(name), image_size=SIZE, in_chans=channels)
    cost = arch.cost(SIZE, channels)
    assert own.cost() == cost
    with torch.device("meta"):
        model = build(own)
    assert count_flop_counter(model, SIZE, channels) == cost.macs - cost.norm_macs
    assert sum(each.numel() for each in model.parameters()) == cost.params


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_network_of_other_channels_is_one_of_another_architecture(channels: int) -> None:
    arch = paper("van_b0")
    model = build(arch, image_size=64, in_chans=channels, num_classes=5).eval()
    assert model.arch == replace(arch, in_chans=channels, head=model.arch.head)
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("channels", [1, 12])
def test_fvcore_counts_the_same(channels: int) -> None:
    arch = replace(paper("van_b0"), image_size=SIZE, in_chans=channels)
    assert count_fvcore(build_with_zeros(arch), SIZE, channels) == arch.cost().macs


@pytest.mark.parametrize("channels", [1, 2, 4, 300])
def test_only_the_stem_costs_something_else(channels: int) -> None:
    """van_b0 begins with 32 kernels of 7x7 at stride 4."""
    usual, cost = paper("van_b0").cost(SIZE), paper("van_b0").cost(SIZE, channels)
    kernels = 7 * 7 * 32 * (channels - 3)
    assert cost.params - usual.params == kernels
    assert cost.macs - usual.macs == kernels * 48 * 64


def test_ids_and_documents_have_channels_and_sides_only_where_they_are_unusual() -> None:
    arch = paper("davit_tiny")
    assert arch.arch_id == "e56702ece9d0"
    assert "in_chans" not in arch.to_dict()
    assert replace(arch, image_size=(224, 224), in_chans=3) == arch
    assert replace(arch, image_size=(224, 224)).arch_id == arch.arch_id
    others = [replace(arch, in_chans=4), replace(arch, image_size=(192, 256)), replace(arch, image_size=(256, 192))]
    assert len({each.arch_id for each in (arch, *others)}) == 4
    for other in others:
        again = Arch.from_dict(json.loads(json.dumps(other.to_dict())))
        assert (again, again.arch_id) == (other, other.arch_id)
    assert others[0].to_dict()["in_chans"] == 4
    assert others[1].to_dict()["image_size"] == [192, 256]


@pytest.mark.parametrize("size", [0, -1, 64.5, (64,), (64, 0), (64, 64, 64), "64"])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    for call in (paper("van_b0").cost, lambda size: build("van_b0", image_size=size)):
        with pytest.raises(UserError, match=r"image_size is .*; allowed are a side, or height and width"):
            call(size)


@pytest.mark.parametrize("channels", [0, -4, 1.5, "4"])
def test_channels_that_are_none_are_refused(channels: Any) -> None:
    for call in (
        lambda: paper("van_b0").cost(in_chans=channels),
        lambda: build("van_b0", in_chans=channels),
        lambda: build("van_b0", in_chans=channels, features_only=True),
    ):
        with pytest.raises(UserError, match=r"in_chans is .*; whole numbers from 1"):
            call()


def test_a_space_gives_its_channels_and_sides() -> None:
    space = tiny(image_size=[64, 96], in_chans=4)
    arch = space.sample(lambda name, choices: choices[-1])
    assert (arch.in_chans, arch.image_size) == (4, (64, 96))
    pyramid = build(arch, features_only=True).eval()
    maps = pyramid(torch.zeros(1, 4, 64, 96))
    strides = pyramid.feature_info.reduction()
    assert [tuple(each.shape[2:]) for each in maps] == [(64 // stride, 96 // stride) for stride in strides]
    assert space.canonical() != tiny(image_size=[64, 96]).canonical()
    assert space.canonical() == tiny(in_chans=4).resized((64, 96)).canonical()
    assert tiny(in_chans=3, image_size=[64, 64]).canonical() == tiny().canonical()


def test_another_size_keeps_what_is_fixed() -> None:
    hybrid = load_space("hybrid")
    space = hybrid.fixed({"stages.2.block": "hilo"}).resized((192, 256))
    assert (space.plan.image_size, space.name, space.text) == ((192, 256), "hybrid", hybrid.text)
    assert "stages.2.block" not in space.parameters()
    assert hybrid.resized(None) is hybrid.resized((224, 224)) is hybrid
    with pytest.raises(UserError, match=r"at 30x200 px: hybrid: image_size: .*30x200"):
        hybrid.resized((30, 200))


@pytest.mark.parametrize("name", FAMILIES)
def test_proxies_take_square_images_of_three_channels(name: str) -> None:
    arch, scale = paper(name), Scale(image_size=32, stem_stride=2, width_divisor=4)
    expected = shrink(arch, scale, 10)
    assert (expected.image_size, expected.in_chans) == (32, 3)
    assert shrink(replace(arch, in_chans=4), scale, 10) == expected
    wide = shrink(replace(arch, image_size=(224, 448), in_chans=1), scale, 10)
    assert (wide.image_size, wide.in_chans) == (32, 3)
    assert build(wide).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
