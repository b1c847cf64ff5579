"""archsearch.save and archsearch.load: the same network again, and one sentence for every file that is not one of ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.networks import MIXED, arch_of
from support.own_blocks import forgetting, write_space
from torch import nn

import archsearch
from archsearch import UserError, build, load, save
from archsearch.models import read_header
from archsearch.version import __version__

TINY = archsearch.load_space(str(Path(__file__).parents[1] / "data" / "tiny.toml"))


def make(name: str = "tiny", **options: Any) -> Any:
    """A network in eval mode whose weights are no initial ones."""
    torch.manual_seed(3)
    arch = TINY.sample(lambda name, choices: choices[0]) if name == "tiny" else arch_of(name)
    network = build(arch, **options).eval()
    with torch.no_grad():
        [parameter.add_(0.01 * torch.randn_like(parameter)) for parameter in network.parameters()]
    return network


def rewritten(file: Path, change: Any) -> Path:
    """The file with its description of the network, and its tensors, changed in place."""
    with safe_open(file, framework="pt") as opened:
        document = json.loads(opened.metadata()["archsearch"])
    state = load_file(file)
    text = change(document, state)
    save_file(state, file, metadata={"archsearch": text if isinstance(text, str) else json.dumps(document)})
    return file


@pytest.mark.parametrize("name", MIXED)
def test_a_saved_network_is_loaded_as_it_was(name: str, tmp_path: Path) -> None:
    network, file = make(name, num_classes=7, in_chans=4), tmp_path / "network.safetensors"
    save(network, file, provenance={"weights": "drawn by a test", "epochs": 3})
    found = load(file)
    assert found.arch == network.arch
    assert found.size == network.size
    assert found.training
    wanted = network.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
    assert all(
        value.stride() == wanted[key].stride() or value.numel() == max(value.shape)
        for key, value in found.state_dict().items()
    )
    images = torch.randn(2, *network.arch.image().tensor)
    with torch.inference_mode():
        assert torch.equal(found.eval()(images), network(images))
    header = read_header(file)
    assert header.provenance == {"weights": "drawn by a test", "epochs": 3}
    assert (header.arch.arch_id, header.version, header.num_classes) == (network.arch_id, __version__, 7)


def test_the_image_size_and_a_missing_classifier_are_kept(tmp_path: Path) -> None:
    network, file = make("pvt_tiny-short", image_size=(64, 96)), tmp_path / "network.safetensors"
    network.reset_classifier(0)
    save(network, file)
    found = load(file).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(found(images), network(images))
    assert (found.size, found.num_classes) == ((64, 96), 0)
    assert read_header(file).provenance == {"weights": "not stated"}


def test_weights_keep_their_number_format(tmp_path: Path) -> None:
    network, file = make().to(torch.bfloat16), tmp_path / "network.safetensors"
    save(network, file)
    found = load(file).eval()
    assert {tensor.dtype for tensor in found.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    images = torch.randn(2, *network.arch.image().tensor, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(found(images), network(images))


def test_a_file_that_is_not_one_of_ours_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    with pytest.raises(UserError, match="no such checkpoint file"):
        load(file)
    with pytest.raises(UserError, match="no file"):
        load(tmp_path)
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"weights without an architecture.*load_official"):
        load(file)
    save(make(), file)
    whole = file.read_bytes()
    for length in (0, 7, 500, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a readable safetensors file"):
            load(file)


def _lack(key: str) -> Any:
    return lambda document, state: document.pop(key) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document, state: document.update(format=2, version="9.1"), "by archsearch 9.1 in format 2.*upgrade"),
        (lambda document, state: "no JSON", "damaged: its description of the network is no JSON"),
        (lambda document, state: "[" * 100_000, "damaged: its description of the network is no JSON"),
        (lambda document, state: "[]", "damaged: its description of the network is \\[\\], no object"),
        *[
            (_lack(key), f"damaged: .*{key}")
            for key in ("format", "version", "arch", "image_size", "blocks", "provenance")
        ],
        (lambda document, state: document.update(arch=[]), "damaged|must be a table"),
        (lambda document, state: document.update(image_size=[224]), "damaged"),
        (lambda document, state: document.update(blocks=[1]), "damaged"),
        (lambda document, state: document.update(image_size=[1, 1]), "on a map of"),
        (lambda document, state: document["arch"]["stages"][0].update(block="hilow"), "unknown block 'hilow'"),
        (lambda document, state: document["arch"]["stages"][0].update(depth=3), "not those of its arch.* missing"),
        (lambda document, state: document["arch"].update(num_classes=3), "head.fc.bias is .* and should be \\(3,\\)"),
        (lambda document, state: state.update(more=torch.zeros(1)), "1 unexpected: more"),
        (lambda document, state: state.update({"head.fc.bias": state["head.fc.bias"].int()}), "is integer"),
    ],
)
def test_a_damaged_or_newer_file_is_one_sentence(change: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    save(make(), file)
    with pytest.raises(UserError, match=words):
        load(rewritten(file, change))


def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file, network = tmp_path / "network.safetensors", make()
    with pytest.raises(UserError, match="got a Linear; give the network that build or load made"):
        save(nn.Linear(2, 2), file)
    with pytest.raises(UserError, match=r"writes .safetensors files, not '.pth'"):
        save(network, tmp_path / "network.pth")
    with pytest.raises(UserError, match=r"provenance: .*allowed"):
        save(network, file, provenance={"top1": float("nan")})
    with pytest.raises(UserError, match="cannot be written"):
        save(network, tmp_path / "none" / "network.safetensors")
    network.head.fc = nn.Sequential(network.head.fc)
    with pytest.raises(UserError, match=r"the network was changed; .*missing: head.fc"):
        save(network, file)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_of_ones_own_is_named_until_its_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    with forgetting():
        arch = archsearch.load_space(write_space(tmp_path)).sample(lambda name, choices: choices[0])
        network = build(arch).eval()
        save(network, file)
        images = torch.randn(2, *arch.image().tensor)
        with torch.inference_mode():
            assert torch.equal(load(file).eval()(images), network(images))
    with forgetting():
        with pytest.raises(UserError, match=r"block 'convnext' is of convnext.py.*load_blocks\('convnext.py'\) first"):
            load(file)
        archsearch.blocks.load_blocks(tmp_path / "convnext.py")
        assert load(file).arch_id == network.arch_id


def test_a_file_is_readable_by_all_who_read_new_files_here(tmp_path: Path) -> None:
    file, usual = tmp_path / "network.safetensors", tmp_path / "usual"
    usual.touch()
    save(make(), file)
    assert file.stat().st_mode == usual.stat().st_mode
