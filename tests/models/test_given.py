"""Networks of timm's and of the user's own code: counted exactly, known again, refused in one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.own_networks import TEXT, own_module
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archsearch.errors import RunError, UserError
from archsearch.models import GivenNetwork, read_network
from archsearch.space import Arch


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    with own_module(tmp_path) as name:
        yield name


def count(source: str, *, image_size: int = 32, in_chans: int = 3, num_classes: int = 10) -> GivenNetwork:
    return GivenNetwork.count(source, image_size=image_size, in_chans=in_chans, num_classes=num_classes)


def _written(model: nn.Module, kinds: tuple[type[nn.Module], ...], image: tuple[int, ...]) -> int:
    """Elements that layers of these kinds write for one image."""
    sizes: list[int] = []
    for layer in model.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(lambda _layer, _inputs, out: sizes.append(out.numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image))
    return sum(sizes)


def test_costs_of_a_network_of_timm_are_those_of_independent_counters() -> None:
    found = count("timm:resnet10t", image_size=64, num_classes=7, in_chans=4)
    model = timm.create_model("resnet10t", num_classes=7, in_chans=4).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 4, 64, 64))
    norms = 2 * _written(model, (nn.BatchNorm2d,), (4, 64, 64))
    assert found.macs == counter.get_total_flops() // 2 + norms
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    fresh = timm.create_model("resnet10t", num_classes=7, in_chans=4)
    assert found.activations == _written(fresh, (nn.Conv2d, nn.Linear), (4, 64, 64))
    assert (found.uncounted, found.num_classes, found.describe()) == ((), 7, f"ResNet, timm {timm.__version__}")


def test_attention_is_counted_in_parts_and_what_has_no_formula_is_named(module: str) -> None:
    found = count(f"{module}:Attention")
    tokens, width = 16, 16
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    assert found.macs == tokens * 8 * 8 * 3 * width + projections + products
    assert found.uncounted == ("lstm",)
    assert found.describe().endswith(", MACs without lstm")


def test_a_network_of_timm_made_for_one_size_is_made_for_the_runs() -> None:
    small, large = count("timm:test_vit", image_size=64), count("timm:test_vit", image_size=160)
    width, patches = 64, [(size // 16) ** 2 for size in (64, 160)]
    assert large.params - small.params == width * (patches[1] - patches[0])  # the table of positions


def test_the_same_network_is_the_same_in_every_process(module: str, tmp_path: Path) -> None:
    first = count(f"{module}:small")
    assert first == read_network(json.loads(json.dumps(first.to_dict())))
    weights = [list(first.build().state_dict().values()) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    with own_module(tmp_path):
        assert count(f"{module}:small").arch_id == first.arch_id
    others = [
        count(f"{module}:small", num_classes=9),
        count(f"{module}:small", image_size=64),
        count(f"{module}:seven"),
    ]
    with own_module(tmp_path, f"{TEXT}# another text\n"):
        others.append(count(f"{module}:small"))
    assert len({first.arch_id, *(other.arch_id for other in others)}) == 5
    with (
        own_module(tmp_path, TEXT.replace("8, 4, 4", "9, 4, 4").replace("(8", "(9")),
        pytest.raises(RunError, match="another network now"),
    ):
        first.build()


def test_the_classes_are_those_asked_for_or_the_functions_own(module: str) -> None:
    assert count(f"{module}:small", num_classes=5).num_classes == 5
    seven = count(f"{module}:seven", num_classes=5)
    assert seven.num_classes == 7
    seven.check_trainable(32, 7)
    with pytest.raises(UserError, match="7 classes where 5 are needed"):
        seven.check_trainable(32, 5)
    with pytest.raises(UserError, match="gives a tuple"):
        count(f"{module}:Two").check_trainable(32, 10)


def test_it_has_no_architecture(module: str) -> None:
    with pytest.raises(
        UserError, match=f"run:3: {module}:small is a network that was included as it is, and has no architecture"
    ):
        Arch.from_dict(count(f"{module}:small").to_dict(), "run:3")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:resnet_18", "has no model 'resnet_18', did you mean 'resnet18'?"),
        ("timm:resnet18.a1_in1", "has no 'a1_in1' of resnet18, did you mean 'resnet18.a1_in1k'?"),
        ("timm:hf-hub:timm/resnet18", "has no model"),
        ("nets_of_nobody:small", "nets_of_nobody cannot be imported: ModuleNotFoundError"),
        ("{}:smal", "has no function 'smal', did you mean 'small'?"),
        ("{}:number", "has no function 'number'"),
        ("{}:raises", "cannot be built: ValueError: no weights here"),
        ("{}:text", "gives 'a network', a str; it must give an nn.Module"),
        ("{}:maps", r"gives a tensor of \(2, 8, 30, 30\) for 2 images"),
        ("{}:breaks", "fails on 2 images of 32 px: RuntimeError"),
        ("{}:needs", "needs the argument depth;"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(module: str, source: str, words: Any) -> None:
    with pytest.raises(UserError, match=f"^--include {source.format(module)}: .*{words}"):
        count(source.format(module))
