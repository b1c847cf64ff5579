"""The analytic cost equals two independent counters to the unit: every registered layer x its choices, and whole random hybrids."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.zero_weights import build_with_zeros
from torch import Tensor, nn

from archsearch import Arch, RunError, build, load_space, paper
from archsearch.blocks import Layer, LayerError, Shape, own_choices, registered_layers
from archsearch.models import Finding, check_layer, count_activations, count_flop_counter, count_fvcore
from archsearch.models.contract import SHAPES, layer_settings, shapes_for
from archsearch.space import Space, propose

ROLES = ("stem", "downsample", "positions", "block", "extra", "head")
LAYERS = {
    f"{role}-{kind}": layer
    for role in ROLES
    for kind, layer in registered_layers(role).items()  # type: ignore[arg-type]  # ROLES are the literals
}
FIRST_SHAPE, MORE_SHAPES = SHAPES[:1], (*SHAPES[1:], Shape(128, 28, 28))
HYBRIDS = 300


def _problems(name: str, shapes: tuple[Shape, ...]) -> list[Finding]:
    return [finding for finding in check_layer(LAYERS[name], shapes, notes=False) if finding.problem]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_the_contract_at_every_choice(name: str) -> None:
    """Above all: its cost equals both counters. tests/models/test_contract.py shows that each check finds what it is for."""
    assert _problems(name, FIRST_SHAPE) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_the_contract_on_more_maps(name: str) -> None:
    assert _problems(name, MORE_SHAPES) == []


@pytest.mark.parametrize("name", LAYERS)
def test_every_choice_of_every_layer_can_stand_somewhere(name: str) -> None:
    def stands(layer: Layer, shape: Shape) -> bool:
        try:
            layer.check_at(shape)
        except LayerError:
            return False
        return True

    for layer in layer_settings(LAYERS[name]):
        assert any(stands(layer, shape) for shape in shapes_for(layer, FIRST_SHAPE)), layer
        assert sum(stands(layer, shape) for shape in shapes_for(layer, MORE_SHAPES)) >= 2, layer


def _hybrids(space: Space, count: int) -> list[tuple[int, dict[str, object]]]:
    rng = random.Random(20)
    return [(index, dict(propose(space, {}, rng)[0])) for index in range(count)]


def _check_hybrid(space: Space, params: dict[str, object], *, fvcore: bool) -> None:
    arch = propose(space, params, random.Random(0))[1]  # type: ignore[arg-type]  # stored parameters are scalars
    cost = arch.cost()
    model = build_with_zeros(arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.params
    assert count_flop_counter(model, arch.image_size) == cost.macs - cost.norm_macs
    if fvcore:
        assert count_fvcore(model, arch.image_size) == cost.macs
        assert count_activations(model, arch.image_size) == cost.activations


@pytest.mark.parametrize("chunk", range(2))
def test_cost_of_random_hybrids_equals_the_counters(chunk: int) -> None:
    """The first of the 300 below, which are many seconds' work."""
    space = load_space("hybrid")
    for index, params in _hybrids(space, 12)[chunk::4]:
        _check_hybrid(space, params, fvcore=index < 4)


EVERYTHING = Path(__file__).parents[1] / "data" / "everything.toml"


@pytest.mark.parametrize("chunk", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_kind_of_block_beside_every_other_that_the_grammar_allows(chunk: int) -> None:
    """Messengers that are taken along or dropped, unread class tokens, positions, windows: counters, built networks and runs agree with the cost."""
    space = load_space(EVERYTHING)
    rng = random.Random(chunk)
    for index in range(12):
        params, arch = propose(space, {}, rng)
        assert type(arch).from_dict(arch.to_dict()) == arch
        _check_hybrid(space, params, fvcore=index < 3)  # type: ignore[arg-type]  # as above


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_cost_of_300_random_hybrids_equals_the_counters(chunk: int, request: pytest.FixtureRequest) -> None:
    """By torch's counter all of them, and by fvcore, which takes five times as long, every 26th, or with `--whole` all."""
    space = load_space("hybrid")
    is_whole = request.config.getoption("--whole")
    for index, params in _hybrids(space, HYBRIDS)[chunk::10]:
        _check_hybrid(space, params, fvcore=is_whole or index % 26 == 0)


@pytest.mark.parametrize(
    "first", [kind for kind, layer in registered_layers("block").items() if not layer.takes_tokens]
)
def test_any_two_blocks_in_one_stage_cost_what_they_are_built_of(first: str) -> None:
    """Two of the layers that a stage of such a pair gets by itself (PEG, the stage's LayerNorm) once shared an address, and so a cost."""
    for second, layer in registered_layers("block").items():
        if second == first or layer.takes_tokens:
            continue
        tables = {
            kind: {name: values[0] for name, values in own_choices(registered_layers("block")[kind]).items()}
            for kind in (first, second)
        }
        stages = [{"width": 64, "depth": 2, "block": f"{first}/{second}", **tables} for _ in range(2)]
        stages[1] |= {"downsample": "merging"}
        arch = Arch.from_dict({"image_size": 112, "stem": {"kind": "overlapping"}, "stages": stages})
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in build(arch).parameters()) == arch.cost().params


def test_rectangular_input_is_counted_as_it_is() -> None:
    size = (64, 96)
    for name in ("davit_tiny", "van_b0", "pvt_tiny"):
        cost = paper(name).cost(size)
        model = build(paper(name), image_size=size)
        assert count_fvcore(model, size) == cost.macs
        assert count_activations(model, size) == cost.activations
        assert count_flop_counter(model, size) == cost.macs - cost.norm_macs


class _Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.linear(x), dim=-1)


def test_an_operation_without_a_formula_fails_by_its_name() -> None:
    with pytest.raises(RunError, match="cumsum"):
        count_fvcore(_Unknown(), 8)
    with pytest.raises(RunError, match="cumsum"):
        count_flop_counter(_Unknown(), 8)


def test_fvcore_alone_would_miss_attention_and_deformable_convolution() -> None:
    """What the handlers are for: without them the count of a network with both is too small."""
    from fvcore.nn import FlopCountAnalysis

    arch = paper("litv2_s")
    analysis = FlopCountAnalysis(build(arch).eval(), torch.zeros(1, 3, 224, 224))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    assert analysis.total() < arch.cost().macs


@pytest.mark.slow
def test_a_deformable_network_can_be_the_first_thing_counted() -> None:
    """In a process of its own: torchvision is imported late, and cannot be imported inside a trace."""
    program = (
        "import archsearch; from archsearch.models.count import count_fvcore;"
        "print(count_fvcore(archsearch.build(archsearch.paper('litv2_s')), 224))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3735631104", done.stderr
