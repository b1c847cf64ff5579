"""`arch_id` is the same for two architectures exactly when their networks are: same weights and initialisation, same cost, same outputs.

The oracle builds: every parameter is filled by a seed in the order of its module's kind and its name, so that networks of the same tensors get the same
weights, and what comes out for one image is compared in float64.
"""

import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from archsearch import build
from archsearch.blocks import Block, Layer, LayerError, PatchStem, Shape, registered_layers
from archsearch.space import Arch, Space, propose

# Values at which something begins or ends to make a difference on maps of 4x4 with 32 channels.
VALUES: dict[str, Sequence[Any]] = {
    "window": (1, 2, 3, 4),
    "interval": (1, 2),
    "reduction": (1, 2, 3, 4),
    "head_dim": (16, 32),
    "group_dim": (16, 32),
    "alpha": (0.0, 0.4, 0.5, 0.9, 1.0),
    "mlp_ratio": (2.0, 2.02),
    "kernel": (4, 5, 7, 9),
    "dilation": (1, 3),
    "conv": (False, True),
    "bias": (False, True),
    "peg": (False,),
    "eps": (1e-5, 1e-6),
    "shuffle": (1, 2),
    "padding": (0, 2, 3, 7),
    "pad": (False, True),
    "init": ("default", "fan-out"),
    "norm": ("before", "after"),
    "num_kernels": (1, 2),
    "stride": (4,),
    "side": (0, 4, 5),
    "unresized": (0, 16, 25, 3136),
    "class_token": (False, True),
    "width": (32,),
    "num_classes": (3,),
}

Fingerprint = tuple[Any, ...]


def fingerprint(module: nn.Module, *size: int) -> Fingerprint:
    """Shapes of the weights and the output for them, rounded far above what the order of additions changes."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(0)
    owners = {
        f"{path}.{name}".lstrip("."): (isinstance(owner, nn.LayerNorm | nn.BatchNorm2d), name)
        for path, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }
    weights = dict(module.named_parameters())
    order = sorted(weights, key=lambda path: owners[path])
    with torch.no_grad():
        for path in order:
            weights[path].copy_(torch.randn(weights[path].shape, generator=generator, dtype=torch.float64) * 0.4)
        out = module(
            torch.randn(1, *size, generator=generator, dtype=torch.float64).contiguous(
                memory_format=torch.channels_last
            )
        )
    shapes = tuple((owners[path], tuple(weights[path].shape)) for path in order)
    return shapes, tuple(out.shape), tuple((out.flatten() * 1e9).round().long().tolist())


def start(layer: Layer) -> object:
    """How weights begin where a layer has more than one way: part of what an architecture is, though not of its function."""
    if layer.kind == "gsa" and getattr(layer, "reduction", 1) > 1:
        return "fan-out"
    return getattr(layer, "init", "default")


def settings_of(kind: type[Layer], shape: Shape) -> Iterator[Layer]:
    names = [item.name for item in fields(kind)]
    for values in product(*(VALUES[name] for name in names)):
        layer = kind(**dict(zip(names, values, strict=True)))
        try:
            layer.check_at(shape)
        except LayerError:
            continue
        yield layer


def canonical(layer: Layer, shape: Shape) -> Layer:
    return layer.canonical_in(shape, None) if isinstance(layer, Block) else layer.canonical(shape)


def assert_canonical_exactly_where_equal(layers: Sequence[Layer], shape: Shape) -> None:
    """Classes by canonical form and classes by fingerprint are the same classes."""
    assert len(layers) > 1
    by_form: dict[Layer, Fingerprint] = {}
    by_print: dict[Fingerprint, Layer] = {}
    for layer in layers:
        form = canonical(layer, shape)
        print_ = (*fingerprint(layer.build(shape), *shape.tensor), layer.cost(shape), start(layer))
        assert by_form.setdefault(form, print_) == print_, (form, layer)
        assert by_print.setdefault(print_, form) == form, (form, by_print[print_], layer)
        assert canonical(form, shape) == form
        assert (*fingerprint(form.build(shape), *shape.tensor), form.cost(shape), start(form)) == print_


@pytest.mark.slow
@pytest.mark.parametrize("side", [4, 1])
def test_blocks_have_one_canonical_form_exactly_where_they_are_equal(side: int) -> None:
    shape = Shape(32, side, side)
    layers = [
        layer
        for kind in registered_layers("block").values()
        if kind.kind != "msg"
        for layer in settings_of(kind, shape)
    ]
    assert_canonical_exactly_where_equal(layers, shape)


@pytest.mark.parametrize("shape", [Shape(32, 5, 5), Shape(32, 3, 5)])
def test_padded_windows_are_no_smaller_ones(shape: Shape) -> None:
    """Swin's windows where they do not tile the map, beside those that do and attention over the whole map."""
    kinds = [registered_layers("block")[name] for name in ("wmsa", "swmsa", "msa")]
    assert_canonical_exactly_where_equal([layer for kind in kinds for layer in settings_of(kind, shape)], shape)


@pytest.mark.parametrize(
    ("role", "shape"),
    [
        ("stem", Shape(3, 16, 16)),
        ("stem", Shape(3, 18, 18)),
        pytest.param("downsample", Shape(16, 4, 4), marks=pytest.mark.slow),
        pytest.param("downsample", Shape(16, 5, 5), marks=pytest.mark.slow),
    ],
)
def test_entries_have_one_canonical_form_exactly_where_they_are_equal(role: Any, shape: Shape) -> None:
    layers: list[Layer] = []
    for kind in registered_layers(role).values():
        for layer in settings_of(kind, shape):
            if isinstance(layer, PatchStem):
                layers += [replace(layer, kernel=kernel) for kernel in (4, 7, 9)]
            else:
                layers.append(layer)
    assert_canonical_exactly_where_equal(list(dict.fromkeys(layers)), shape)


def test_positions_and_heads_have_one_canonical_form_exactly_where_they_are_equal() -> None:
    for role, shape in (("positions", Shape(8, 4, 4)), ("head", Shape(8, 4, 4)), ("head", Shape(8, 1, 1))):
        layers = [layer for kind in registered_layers(role).values() for layer in settings_of(kind, shape)]  # type: ignore[arg-type]  # literals above
        assert_canonical_exactly_where_equal(layers, shape)


ONE_STAGE = """
name = "one stage"
image_size = 16
num_classes = 3
[stem]
kind = "patch"
patch = { kernel = [4, 7] }
[[stages]]
width = 32
depth = [1, 2, 3]
block = ["sda/lda", "lda/sda", "sda", "lsa/gsa", "gsa/lka", "lka/lsa", "gsa", "sra", "wmsa/swmsa", "msa", "lsa", "hilo/lka"]
head_dim = 16
mlp_ratio = 2
sda = { window = [2, 4] }
lda = { window = [2, 4], interval = [1, 2] }
lsa = { window = [2, 4], peg = [true, false] }
gsa = { reduction = [1, 2], peg = [true, false] }
sra = { reduction = 1 }
wmsa = { window = [2, 4] }
swmsa = { window = [2, 4] }
hilo = { window = [1, 2], alpha = [0.5, 0.9] }
lka = { kernel = 7, dilation = 1 }
[head]
kind = "pool"
"""

MESSENGERS = """
name = "messengers"
image_size = 32
num_classes = 3
[stem]
kind = "patch"
patch = { kernel = 4 }
[[stages]]
width = 16
depth = [1, 2]
block = ["msg", "mlp/msg", "mlp"]
head_dim = 16
mlp_ratio = 2
mlp = { conv = false }
msg = { window = [2, 4], shuffle = [1, 2] }
[[stages]]
width = 32
depth = [1, 2]
downsample = ["messenger", "merging"]
block = ["msg", "mlp/msg", "mlp"]
head_dim = 16
mlp_ratio = 2
mlp = { conv = false }
msg = { window = 2, shuffle = [1, 2] }
[head]
kind = "pool"
"""


def architectures(text: str, number: int) -> list[Arch]:
    space, rng = Space(tomllib.loads(text), "test.toml"), random.Random(0)
    return [propose(space, {}, rng)[1] for _ in range(number)]


def _starts(arch: Arch) -> tuple[object, ...]:
    return tuple(start(placed.layer) for placed in arch.layers() if start(placed.layer) != "default")


@pytest.mark.slow
@pytest.mark.parametrize(("text", "number", "least"), [(ONE_STAGE, 1200, 100), (MESSENGERS, 500, 60)])
def test_ids_are_equal_exactly_where_networks_are(text: str, number: int, least: int) -> None:
    """Messengers that are made and thrown away unread, at equal cost in one stage or another, are left out of the reverse direction."""
    ids: dict[str, Fingerprint] = {}
    prints: dict[Fingerprint, str] = {}
    written = set(architectures(text, number))
    for arch in written:
        print_ = (*fingerprint(build(arch), *arch.image()[:3]), arch.cost(), _starts(arch))
        assert ids.setdefault(arch.arch_id, print_) == print_, arch.to_dict()
        is_same = prints.setdefault(print_, arch.arch_id) == arch.arch_id
        assert is_same or text == MESSENGERS, arch.to_dict()
    assert least < len(ids) < len(written)


def test_blocks_that_a_stage_never_reaches_make_no_difference_but_the_layers_they_bring_do() -> None:
    def stage(**table: Any) -> str:
        document = {**tomllib.loads(ONE_STAGE), "stem": {"kind": "patch", "patch": {"kernel": 4}}}
        common = {"width": 32, "head_dim": 16, "mlp_ratio": 2}
        return Space({**document, "stages": [{**common, **table}]}, "test.toml").arch().arch_id

    shallow = stage(depth=1, block="sda/lda", sda={"window": 2}, lda={"window": 4, "interval": 2})
    assert shallow == stage(depth=1, block="sda/lda", sda={"window": 2}, lda={"window": 2, "interval": 1})
    assert shallow == stage(depth=1, block="sda", sda={"window": 2})
    assert shallow != stage(depth=2, block="sda", sda={"window": 2})
    with_peg = stage(depth=1, block="lsa/gsa", lsa={"window": 2, "peg": False}, gsa={"reduction": 1, "peg": True})
    assert with_peg == stage(depth=1, block="lsa", lsa={"window": 2, "peg": True})
    assert with_peg != stage(depth=1, block="lsa", lsa={"window": 2, "peg": False})
