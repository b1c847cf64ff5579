"""Exports are loaded by others as the network that was written, take their place as a whole, and say where their weights come from."""

import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.networks import arch_of
from support.own_blocks import CONVNEXT, forgetting, write_space

import archsearch
from archsearch import Arch, RunError, UserError, build, load, load_space, paper, paper_names, save, save_official
from archsearch.models import export_document, export_task, read_header
from archsearch.space import arch_toml, propose

TINY = load_space(str(Path(__file__).parents[2] / "data" / "tiny.toml")).sample(lambda name, choices: choices[0])


def export(arch: Arch, out: Path, format: str | None = None, **options: Any) -> dict[str, Any]:
    """The document of an export; the card of a folder is its JSON."""
    usual = dict.fromkeys(("weights", "image_size", "num_classes", "in_chans")) | {"force": False}
    return export_document(export_task(arch, out, format, **(usual | options)), json.dumps)


def trained(arch: Arch, file: Path, **options: Any) -> Any:
    """A network whose weights are no initial ones, saved, in eval mode."""
    torch.manual_seed(5)
    network = build(arch, **options).eval()
    save(network, file, provenance={"weights": "three epochs of a test", "top1": 0.5})
    return network


def same(found: Any, network: Any) -> bool:
    """Whether two networks give equal logits."""
    images = torch.randn(2, network.arch.in_chans, *network.size)
    with torch.inference_mode():
        return torch.allclose(found.eval()(images), network(images), rtol=1e-5, atol=1e-6)


def test_timms_folder_is_loaded_by_timm_and_its_weights_by_us(tmp_path: Path) -> None:
    network, out = trained(TINY, tmp_path / "w.safetensors", in_chans=4, num_classes=7), tmp_path / "with a space"
    document = export(TINY, out, weights=tmp_path / "w.safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert same(timm.create_model(f"local-dir:{out}", pretrained=True), network)
    assert same(load(out / "model.safetensors"), network)
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "archsearch_hybrid"
    assert Arch.from_dict(config["model_args"]["arch"]).arch_id == network.arch_id == document["arch_id"]
    assert (config["num_classes"], config["pretrained_cfg"]["input_size"]) == (7, [4, 64, 64])
    (file,) = document["files"]
    assert file["bytes"] == sum((out / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert (file["relative_difference"], file["images"], file["equal_top1"]) == (0.0, 8, 8)


def test_weights_go_into_the_file_with_where_they_come_from(tmp_path: Path) -> None:
    network = trained(TINY, tmp_path / "w.safetensors")
    export(TINY, tmp_path / "again", "safetensors", weights=tmp_path / "w.safetensors")
    assert same(load(tmp_path / "again.safetensors"), network)
    provenance = read_header(tmp_path / "again.safetensors").provenance
    assert provenance == {"weights": "three epochs of a test", "top1": 0.5, "file": "w.safetensors"}


def test_initial_weights_are_the_same_every_time_and_said_to_be_initial(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    document = export(TINY, tmp_path / "one.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    export(TINY, tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert document["weights_kind"] == "initial"
    assert document["weights"]["weights"] == "initial weights, not trained"


def test_options_change_the_size_and_the_classifier(tmp_path: Path) -> None:
    network = trained(TINY, tmp_path / "w.safetensors")
    document = export(
        TINY, tmp_path / "a.safetensors", weights=tmp_path / "w.safetensors", num_classes=3, image_size=96
    )
    found: Any = load(tmp_path / "a.safetensors").eval()
    assert (found.size, found.num_classes) == ((96, 96), 3)
    assert torch.equal(found.stem.proj.weight, network.stem.proj.weight)
    (note,) = document["notes"]
    assert "the one for 3 is new and untrained" in note
    with pytest.raises(UserError, match=r"--in-chans: 1, and the weights of .* are for 3 channels"):
        export(TINY, tmp_path / "b.safetensors", weights=tmp_path / "w.safetensors", in_chans=1)
    export(TINY, tmp_path / "c.toml", in_chans=2, num_classes=5, image_size=(96, 64))
    arch = load_space(tmp_path / "c.toml").arch()
    assert (arch.in_chans, arch.num_classes, arch.image_size) == (2, 5, (96, 64))


def test_an_official_checkpoint_is_taken_for_its_paper_alone(tmp_path: Path) -> None:
    network = build("van_b0", num_classes=12).eval()
    save_official(network, tmp_path / "van_b0.pth")
    document = export(paper("van_b0"), tmp_path / "v.safetensors", weights=tmp_path / "van_b0.pth", image_size=64)
    found = load(tmp_path / "v.safetensors").eval()
    assert same(found, build("van_b0", num_classes=12, image_size=64).eval()) is False
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in found.state_dict().items())
    assert document["weights_kind"] == "official"
    assert "12 classes" in document["notes"][0]
    assert len(document["weights"]["sha256"]) == 64
    again = export(paper("van_b0"), tmp_path / "u.safetensors", weights=tmp_path / "v.safetensors")
    assert (again["weights_kind"], again["weights"]["sha256"]) == ("official", document["weights"]["sha256"])
    with pytest.raises(UserError, match="could only be the official checkpoint of a paper's model"):
        export(TINY, tmp_path / "x.safetensors", weights=tmp_path / "van_b0.pth")


def test_weights_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    trained(TINY, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"holds .* and this is van_b0 .*same architecture"):
        export(paper("van_b0"), tmp_path / "x.safetensors", weights=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no such file; allowed are"):
        export(TINY, tmp_path / "x.safetensors", weights=tmp_path / "none.pth")
    trained(arch_of("lit_ti-short"), tmp_path / "p.safetensors", image_size=64)
    with pytest.raises(UserError, match=r"its weights are for 64 px; .*stages.0.positions.table"):
        export(arch_of("lit_ti-short"), tmp_path / "x.safetensors", weights=tmp_path / "p.safetensors", image_size=96)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("there.toml", {}, "exists; give another name, or --force"),
        ("none/a.toml", {}, "there is no folder"),
        ("a.onnx", {"format": "pt2"}, "ends in .onnx, and what --format pt2 writes ends in .pt2"),
        ("a.pth", {"format": "safetensors"}, "writes ends in .safetensors"),
        ("a.toml", {"format": "timm"}, "is a folder, without such an ending"),
        ("folder", {"format": "timm", "force": True}, "holds what no export wrote, mine.txt"),
        ("there.toml", {"format": "toml", "force": True, "batch": 2}, "--batch: has no meaning for --format toml"),
        ("b.toml", {"weights": Path("w.safetensors")}, "--weights: has no meaning for --format toml"),
        ("file", {"format": "timm", "force": True}, "is a file, and --format timm writes a folder"),
        ("dir.toml", {"force": True}, "is a folder, and --format toml writes a file"),
    ],
)
def test_a_wrong_out_is_one_sentence_and_nothing_is_touched(
    out: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "there.toml").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dir.toml").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words):
        export(TINY, tmp_path / out, **options)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_force_replaces_and_an_ending_is_added(tmp_path: Path) -> None:
    export(TINY, tmp_path / "x-4.5G", "toml")
    assert [path.name for path in tmp_path.iterdir()] == ["x-4.5G.toml"]
    (tmp_path / "x-4.5G.toml").write_text("old")
    export(TINY, tmp_path / "x-4.5G.toml", force=True)
    assert load_space(tmp_path / "x-4.5G.toml").arch() == TINY
    export(TINY, tmp_path / "folder")
    trained(TINY, tmp_path / "w.safetensors")
    export(TINY, tmp_path / "folder", weights=tmp_path / "w.safetensors", force=True)
    assert read_header(tmp_path / "folder" / "model.safetensors").provenance["top1"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "w.safetensors", "x-4.5G.toml"]


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (["README.md", "train.py"], "holds what no export wrote, README.md, train.py"),
        (["README.md", "model.safetensors", "config.json"], "README.md, config.json"),
        (
            ["an export", "notes.py"],
            "holds what no export wrote, notes.py; --force replaces the folder of an export alone",
        ),
        (["a link"], "is a link, and --format timm writes a folder"),
    ],
)
def test_force_replaces_no_file_that_no_export_wrote(kept: list[str], words: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(TINY, tmp_path / "exported")
    if "a link" in kept:
        out.symlink_to(tmp_path / "exported")
    elif "an export" in kept:
        (tmp_path / "exported").rename(out)
    else:
        out.mkdir()
    for name in kept:
        if "." in name:
            (out / name).write_text('{"architecture": "resnet18"}')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=words):
        export(TINY, out, "timm", force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7], "crop_share": 1.0, "crop": "squash", "interpolation": "bilinear"},
            ([0.2, 0.3, 0.4], [0.5, 0.6, 0.7], 1.0, "squash", "bilinear"),
        ),
        ("as usual", ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.875, "center", "bicubic")),
    ],
)  # fmt: skip
def test_the_preprocessing_is_that_of_the_weights(said: Any, expected: tuple[Any, ...], tmp_path: Path) -> None:
    save(build(TINY), tmp_path / "w.safetensors", provenance={"weights": "of a test", "preprocessing": said})
    export(TINY, tmp_path / "out", weights=tmp_path / "w.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert tuple(config[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")) == expected


def test_what_fails_at_the_end_leaves_everything_as_it_was(tmp_path: Path) -> None:
    export(TINY, tmp_path / "folder")
    before = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    usual: dict[str, Any] = dict.fromkeys(("weights", "image_size", "num_classes", "in_chans"))

    def failing(document: dict[str, Any]) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_document(export_task(TINY, tmp_path / "folder", "timm", force=True, **usual), failing)
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_weights_that_diverged_are_not_exported(tmp_path: Path) -> None:
    network = build(TINY)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    save(network, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match="not finite numbers: its training diverged"):
        export(TINY, tmp_path / "x", weights=tmp_path / "w.safetensors")
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        export(TINY, tmp_path / "x.toml")


def test_every_architecture_is_read_from_its_toml_as_it_was() -> None:
    space, rng = load_space("hybrid"), random.Random(0)
    everything = load_space(str(Path(__file__).parents[2] / "data" / "everything.toml"))
    archs = [paper(name) for name in paper_names()]
    archs += [propose(found, {}, rng)[1] for found in 25 * [space, everything]]
    for arch in archs:
        text = arch_toml(arch)
        assert archsearch.Space(tomllib.loads(text), "x.toml").arch() == arch


def test_a_network_of_ones_own_blocks_brings_their_file(tmp_path: Path) -> None:
    with forgetting():
        arch = load_space(write_space(tmp_path)).sample(lambda name, choices: choices[0])
        network = trained(arch, tmp_path / "w.safetensors")
        document = export(arch, tmp_path / "out", weights=tmp_path / "w.safetensors")
        assert document["blocks"] == ["convnext.py"]
        assert (tmp_path / "out" / "convnext.py").read_text() == CONVNEXT.read_text()
        export(arch, tmp_path / "out.toml")
    with forgetting():
        assert load_space(tmp_path / "out.toml").arch().arch_id == arch.arch_id
    with forgetting():
        with pytest.raises(UserError, match="unknown block 'convnext'"):
            timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        archsearch.blocks.load_blocks(tmp_path / "out" / "convnext.py")
        assert same(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), network)


@pytest.mark.slow
def test_all_formats_come_in_one_folder(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    arch = Arch.from_dict(TINY.to_dict() | {"stages": TINY.to_dict()["stages"][:1], "image_size": 32})
    network = trained(arch, tmp_path / "w.safetensors")
    document = export(arch, tmp_path / "out", "all", weights=tmp_path / "w.safetensors", batch="dynamic")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "architecture.toml", "config.json", "model.onnx", "model.pt2", "model.safetensors"}
    assert [file["format"] for file in document["files"]] == ["timm", "onnx", "pt2", "safetensors", "toml"]
    onnx = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        wanted = network(images)
        (logits,) = onnx.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(program.module()(images), wanted, rtol=1e-4, atol=1e-4)
    assert load_space(tmp_path / "out" / "architecture.toml").arch() == arch
