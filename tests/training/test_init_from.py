"""Initial weights from another network: what has the same kind and shape is copied, and what is said of it is so."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.official_keys import OFFICIAL
from support.trainings import make_request, tiny_folder
from torch import Tensor

import archsearch
from archsearch.blocks import Scalar
from archsearch.errors import UserError
from archsearch.models import Network, build
from archsearch.space import Arch, load_space, paper
from archsearch.training import copy_layers, initialise, train

KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys.json").read_text())


def random_checkpoint(name: str, file: Path) -> Path:
    """Random weights in the shapes of a paper's official key table."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, (shape, dtype, kind) in OFFICIAL[name]().items():
        if kind == "parameter" or key.endswith(("running_mean", "running_var")):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
    save_file(state, file)
    return file


def hybrids(number: int) -> list[Arch]:
    """Random architectures of the default space."""
    space = load_space("hybrid")
    generator = torch.Generator().manual_seed(0)
    return [
        space.sample(lambda name, choices: choices[int(torch.randint(len(choices), (), generator=generator))])
        for _ in range(number)
    ]


def parameters(network: Network, place: str) -> dict[str, Tensor]:
    return dict(network.get_submodule(place).named_parameters())


def test_a_network_copies_all_of_itself() -> None:
    source, target = build("twins_svt_small"), build("twins_svt_small")
    layers = copy_layers(source, target)
    assert [layer.copied_from for layer in layers] == [layer.layer for layer in layers]
    assert sum(layer.params for layer in layers) == sum(tensor.numel() for tensor in source.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_what_is_said_to_be_copied_is_and_the_rest_is_as_it_was() -> None:
    wanted: dict[str, Scalar] = {"block": "window/channel", "mlp_ratio": 4.0, "group_dim": 32}

    def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
        chosen = wanted.get(name.rpartition(".")[2], choices[-1])
        return chosen if chosen in choices else choices[-1]

    arch = load_space("hybrid").sample(pick)
    source, target = build("davit_tiny"), build(arch, num_classes=10)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    layers = copy_layers(source, target)
    blocks = [layer for layer in layers if ".blocks." in layer.layer]
    assert 0 < sum(layer.copied_from is not None for layer in blocks) < len(blocks)
    for layer in layers:
        now = parameters(target, layer.layer)
        there = (
            parameters(source, layer.copied_from)
            if layer.copied_from
            else {key: before[f"{layer.layer}.{key}"] for key in now}
        )
        assert all(torch.equal(now[key], there[key]) for key in now), layer
    used = [layer.copied_from for layer in layers if layer.copied_from]
    assert len(used) == len(set(used))
    assert "head" not in used  # of 1,000 classes there and 10 here


def test_heads_of_other_channels_are_another_shape() -> None:
    """Though every tensor has the same."""

    def arch(head_dim: int) -> Arch:
        text = paper("twins_svt_small").to_dict()
        for stage in text["stages"]:
            for kind in ("lsa", "gsa"):
                stage[kind]["head_dim"] = head_dim
        return Arch.from_dict(text)

    layers = copy_layers(build(arch(32)), build(arch(16)))
    assert {layer.kind for layer in layers if layer.copied_from is None} == {"lsa", "gsa"}


@pytest.mark.slow
def test_an_official_checkpoint_is_known_by_its_keys(tmp_path: Path) -> None:
    file = random_checkpoint("van_b0", tmp_path / "any.safetensors")
    network = build("van_b0", num_classes=7, image_size=64)
    found = initialise(network, file)
    assert found.source == "van_b0"
    left = [layer.layer for layer in found.layers if layer.copied_from is None]
    assert left == ["head"]
    assert found.copied_params == sum(tensor.numel() for tensor in network.parameters()) - 7 * 257
    assert found.describe().startswith("99.9 % of the parameters, 21 of 22 layers, start from van_b0")


@pytest.mark.slow
def test_another_file_is_refused_with_the_nearest_paper(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="neither a checkpoint of archsearch nor a paper's official one; nearest is"):
        initialise(build("van_b0"), tmp_path / "other.safetensors")


def test_fine_tuning_is_training_from_a_checkpoint_with_other_classes(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "images")
    train(make_request(folder, tmp_path / "first", num_classes=12, epochs=1))
    given = tmp_path / "first" / "model.safetensors"
    said: list[str] = []
    document = train(make_request(folder, tmp_path / "second", init_from=given, epochs=1), say=said.append)
    assert document["num_classes"] == 3
    assert [layer["layer"] for layer in document["init_from"]["layers"] if layer["copied_from"] is None] == ["head"]
    assert any("of the parameters" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_hybrids_copy_what_they_share_with_a_paper(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 hybrids with --whole, else 2: an independent count by kind and tensor shapes is what can be copied at most, and is copied."""
    source, _ = _source(name, tmp_path)
    shares = []
    for arch in hybrids(20 if request.config.getoption("whole") else 2):
        target = build(arch)
        layers = copy_layers(source, target)
        copied = sum(layer.params for layer in layers if layer.copied_from)
        assert copied == _count_by_hand(source, target)
        shares.append(copied / sum(layer.params for layer in layers))
    with capsys.disabled():
        if len(shares) == 20:
            print(
                f"\n{name}: copied {min(shares):.1%} to {max(shares):.1%}, mean {sum(shares) / 20:.1%}, none in {shares.count(0.0)} of 20"
            )


def _source(name: str, folder: Path) -> tuple[Network, str]:
    from archsearch.training import read_source

    return read_source(random_checkpoint(name, folder / "official.safetensors"), (224, 224))


LAYER = re.compile(r"stem|norm|head|stages\.\d+\.(blocks\.\d+|(?!blocks)\w+)")


def _count_by_hand(source: Network, target: Network) -> int:
    """Parameters of the target's layers that have a partner: layers alike are counted on both sides, and the fewer taken."""
    theirs, ours = _alike(source), _alike(target)
    return sum(sizes[0] * min(len(sizes), len(theirs.get(key, []))) for key, sizes in ours.items())


def _alike(network: Network) -> dict[Any, list[int]]:
    """Sizes of the layers with parameters, by what makes two alike."""
    layers, found = {item.module: item.layer for item in network.arch.layers()}, dict[Any, list[int]]()
    for name, module in network.named_modules():
        size = sum(tensor.numel() for tensor in module.parameters())
        if LAYER.fullmatch(name) and size:
            layer = layers.get(name) if name != "head" else None
            cuts = [getattr(layer, key, None) for key in ("head_dim", "group_dim")]
            kind = (layer.role, layer.kind, *cuts) if layer else name
            key = (kind, tuple((key, tuple(value.shape)) for key, value in module.state_dict().items()))
            found.setdefault(key, []).append(size)
    return found


def test_the_public_door_lists_layers_by_place(tmp_path: Path) -> None:
    network = build("van_b0", num_classes=3)
    archsearch.save(network, tmp_path / "own.safetensors")
    found = initialise(build("van_b0", num_classes=3), tmp_path / "own.safetensors")
    assert found.copied_params == found.params
    assert found.source == "van_b0"
    places = [name for name, module in network.named_modules() if LAYER.fullmatch(name) and list(module.parameters())]
    assert {layer.layer: layer.copied_from for layer in found.layers} == {place: place for place in places}
