"""Dense prediction: the stages' maps are the official code's, and run in what is written for timm's and torchvision's backbones."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from support.official import fill_official, official_input
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.transforms.functional import pil_to_tensor

from archsearch import Arch, UserError, build, load_space, paper, paper_names
from archsearch.models.features import FeatureNetwork, features
from archsearch.space import Placed, propose

TESTS = Path(__file__).parents[1]
STAGES = json.loads((TESTS / "data" / "stages.json").read_text())
PHOTOS = TESTS.parents[1] / "shared" / "data" / "clothing-mini" / "train"
HYBRIDS = tuple(f"hybrid-{index}" for index in range(10))
FAMILIES = tuple(sorted({case.split("@")[0] for case in STAGES}))
FREE = ("davit_tiny", "litv2_s", "twins_pcpvt_small", "van_b0")  # these take images of any size
TIED = ("lit_s", "lit_ti", "msg_transformer_tiny", "swin_tiny")
QUICK = ("van_b0", "hybrid-0")


def _cases(names: tuple[str, ...], quick: tuple[str, ...] = QUICK) -> list[Any]:
    """The names, all but the quick ones marked slow."""
    return [pytest.param(name, marks=[] if name.split("@")[0] in quick else [pytest.mark.slow]) for name in names]


def _arch(name: str) -> Arch:
    """A paper's, or a random hybrid's."""
    if name in paper_names():
        return paper(name)
    rng = random.Random(int(name.removeprefix("hybrid-")))
    return propose(load_space("hybrid"), {}, rng)[1]


def _stage_ends(arch: Arch) -> list[Placed]:
    """The last layer of each stage."""
    ends = {item.path.split(".")[1]: item for item in arch.layers() if item.path.startswith("stages.")}
    return list(ends.values())


def _outputs(network: nn.Module, paths: list[str], x: Tensor) -> list[Tensor]:
    """Outputs of these modules while the network runs."""
    seen: list[Tensor] = []
    hooks = [
        network.get_submodule(path).register_forward_hook(lambda module, inputs, out: seen.append(out))
        for path in paths
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", _cases((*paper_names(), *HYBRIDS), (*FAMILIES, *HYBRIDS[:4])))
def test_four_maps_have_the_widths_and_strides_of_feature_info(name: str) -> None:
    """On the meta device, for every paper and random hybrids; of the head only the norm after VAN's last stage is left."""
    arch = _arch(name)
    with torch.device("meta"):
        model = build(arch, features_only=True, in_chans=4).eval()
        with torch.no_grad():
            maps = model(torch.empty(2, *arch.image(in_chans=4).tensor))
        network = build(arch, in_chans=4)
    info = model.feature_info
    assert info.reduction() == [4, 8, 16, 32]
    assert info.channels() == [stage.width for stage in arch.stages]
    assert info.module_name() == [child for child, _ in model.named_children()]
    for out, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert out.shape == (2, channels, arch.image_size // stride, arch.image_size // stride)
    closing = 2 * arch.stages[3].width if arch.stages[3].block == "lka" else 0
    head = sum(parameter.numel() for child in (network.norm, network.head) for parameter in child.parameters())
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == whole - head + closing
    assert not [key for key in model.state_dict() if "head" in key or ".fc." in key]


def _without_tokens(stream: Tensor, height: int, width: int) -> Tensor:
    """(B, C, tokens, 1 + n) -> (B, C, H, W), position by position."""
    windows = stream.shape[2]
    side = (height, width) if windows == 1 else (int((height * width / windows) ** 0.5),) * 2
    out = torch.empty(*stream.shape[:2], height, width)
    for y in range(height):
        for x in range(width):
            window = y // side[0] * (width // side[1]) + x // side[1]
            out[:, :, y, x] = stream[:, :, window, 1 + y % side[0] * side[1] + x % side[1]]
    return out


@pytest.mark.parametrize("name", _cases((*FAMILIES, *HYBRIDS)))
def test_maps_equal_those_inside_the_classification_network(name: str) -> None:
    """Bit by bit; tokens beside a map are cut off, and the head's norm follows VAN's last stage."""
    arch, x = _arch(name), torch.randn(1, 3, 224, 224)
    network = build(arch).eval()
    model = features(network, arch)
    ends = _stage_ends(arch)
    with torch.inference_mode():
        maps = model(x)
        expected = _outputs(network, [end.module for end in ends], x)
        if arch.stages[3].block == "lka":
            expected[3] = network.norm(expected[3])
    for end, out, stream in zip(ends, maps, expected, strict=True):
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, _without_tokens(stream, end.out.height, end.out.width) if end.out.tokens else stream)


@pytest.mark.parametrize("case", _cases(tuple(case for case in STAGES if case.split("@")[0] in FAMILIES)))
def test_stages_equal_those_of_the_official_code(case: str) -> None:
    """Mean, standard deviation and first values, in float32.

    The official numbers of a stage with tokens include them, so the stream with tokens is compared; the test above shows that the map is that stream without.
    MSG-Transformer's windows have another order there, which changes none of these numbers.
    """
    name, size = case.split("@")
    height, width = map(int, size.split("x"))
    arch = paper(name)
    network = build(arch, image_size=(height, width)).eval()
    fill_official(network, name)
    model = features(network, arch, image_size=(height, width))
    ends = _stage_ends(arch)
    with torch.inference_mode():
        maps = model(official_input(height, width))
        streams = _outputs(network, [end.module for end in ends], official_input(height, width))
    for end, out, stream, expected in zip(ends, maps, streams, STAGES[case]["stages"], strict=True):
        tokens = (stream if end.out.tokens else out).permute(0, 2, 3, 1).flatten(0, 2)
        assert list(tokens.shape) == [torch.Size(expected["shape"][:-1]).numel(), expected["shape"][-1]]
        scale = expected["std"]
        assert abs(tokens.mean().item() - expected["mean"]) <= 1e-5 * scale
        correction = {"n-1": 1, "n": 0}[STAGES[case]["std_divisor"]]
        assert tokens.std(correction=correction).item() == pytest.approx(scale, rel=1e-5)
        first = torch.tensor(expected["first8"])
        assert (tokens[0, :8] - first).abs().max() <= 1e-5 * max(scale, first.abs().max().item())


@pytest.mark.parametrize("name", _cases((*FAMILIES, *HYBRIDS)))
def test_training_reaches_every_parameter(name: str) -> None:
    model = build(_arch(name), features_only=True, drop_path_rate=0.1).train()
    sum((out * torch.randn_like(out)).sum() for out in model(torch.randn(2, 3, 224, 224))).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


def test_weights_are_the_classification_networks_own() -> None:
    arch = paper("van_b0")
    network = build(arch)
    model = features(network, arch)
    own = dict(network.named_parameters())
    for key, parameter in model.named_parameters():
        stage, place = key.removeprefix("stage").split(".", 1)
        shared = (
            place
            if place.startswith("stem.") or (stage, place[:5]) == ("4", "norm.")
            else f"stages.{int(stage) - 1}.{place}"
        )
        assert parameter is own[shared]


def test_the_last_stage_has_a_norm_of_its_own_where_the_head_norms_the_mean() -> None:
    """DaViT's head behind VAN's blocks: the map is still normalised, as after every stage of VAN."""
    van = paper("van_b0")
    arch = replace(van, head=replace(van.head, norm="after"))  # type: ignore[call-arg]  # a pool head
    network = build(arch).double().eval()
    model = features(network, arch)
    with torch.inference_mode():
        out = model(torch.randn(1, 3, 64, 64, dtype=torch.float64))[3]
    assert model.get_parameter("stage4.norm.weight") is not network.get_parameter("head.norm.weight")
    assert out.mean(1).abs().max() < 1e-9
    torch.testing.assert_close(out.var(1, correction=0), torch.ones_like(out[:, 0]), rtol=1e-3, atol=0)


def test_feature_info_equals_timms() -> None:
    from timm.models._features import FeatureInfo  # late: slow to import

    model = build(paper("van_b0"), features_only=True, out_indices=(1, 3))
    ours, theirs = model.feature_info, FeatureInfo(copy.deepcopy(list(model.feature_info.info)), (1, 3))
    assert ours.channels() == [64, 256]
    assert ours.out_indices == theirs.out_indices
    assert len(ours) == len(theirs) == 4
    assert ours[2] == theirs[2]
    asked: tuple[int | list[int] | None, ...] = (None, 0, 2, [0, 3], [1])
    for idx in asked:
        for method in ("channels", "reduction", "module_name", "get_dicts"):
            arguments = {"idx": idx}
            assert getattr(ours, method)(**arguments) == getattr(theirs, method)(**arguments)
        assert ours.get("num_chs", idx) == theirs.get("num_chs", idx)
        assert ours.get_dicts(["reduction"], idx) == theirs.get_dicts(["reduction"], idx)


def test_chosen_stages_come_in_the_order_asked_for_and_later_ones_are_not_built() -> None:
    arch, x = paper("van_b0"), torch.randn(1, 3, 64, 64)
    network = build(arch).eval()
    with torch.inference_mode():
        maps = features(network, arch)(x)
        for indices, children in (((0, 2), 3), ((2, 0), 3), ((-1,), 4), ((1,), 2)):
            model = features(network, arch, out_indices=indices)
            assert len(list(model.children())) == children
            chosen = model(x)
            assert all(torch.equal(out, maps[index]) for out, index in zip(chosen, indices, strict=True))
            assert [out.shape[1] for out in chosen] == model.feature_info.channels()


def test_wrong_use_is_refused_in_one_sentence() -> None:
    arch = paper("van_b0")
    with torch.device("meta"):
        network = build(arch)
    with pytest.raises(UserError, match=r"build: num_classes 10 .* features_only=True"):
        build(arch, features_only=True, num_classes=10)  # type: ignore[call-overload]  # what a user may write
    with pytest.raises(UserError, match=r"build: out_indices .* without features_only=True"):
        build(arch, out_indices=(1,))  # type: ignore[call-overload]  # as above
    with pytest.raises(UserError, match="out_indices: got 4; at least one of -4 to 3 is allowed"):
        features(network, arch, out_indices=(0, 4))
    with pytest.raises(UserError, match="out_indices: got none"):
        features(network, arch, out_indices=())
    for other in ("van_b1", "davit_tiny"):
        with pytest.raises(UserError, match=f"the network's stages have 3843488 parameters, those of {other} "):
            features(network, paper(other))
    with pytest.raises(UserError, match=r"stages.2.downsample \(cross-scale\) on a map of 5x5: .* even sides"):
        build(paper("crossformer_tiny"), features_only=True, image_size=20)


def _getter(model: FeatureNetwork) -> nn.Module:
    """The wrapper in which BackboneWithFPN runs a backbone."""
    names = model.feature_info.module_name()
    getter: nn.Module = IntermediateLayerGetter(model, {name: str(index) for index, name in enumerate(names)})
    return getter


@pytest.mark.parametrize("name", _cases(FAMILIES))
def test_intermediate_layer_getter_and_copies_give_the_same_maps(name: str) -> None:
    """Also where tokens pass from stage to stage; a copy made after a run shares nothing with the original."""
    model = build(paper(name), features_only=True).eval()
    x, y = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 224, 224)
    assert all(out.requires_grad for out in model(x))
    twin = copy.deepcopy(model)
    with torch.no_grad():  # same values in both: some operations round otherwise when they record gradients
        maps = model(x)
        twin(y)
        for parameter in model.parameters():
            parameter.zero_()
        for getter in (_getter(twin), copy.deepcopy(_getter(twin))):
            assert all(torch.equal(out, want) for out, want in zip(getter(x).values(), maps, strict=True))


def test_a_stage_that_needs_tokens_refuses_a_map_without_them() -> None:
    model = build(paper("msg_transformer_tiny"), features_only=True)
    with pytest.raises(UserError, match="stage2 takes the tokens that stage1 left with its map"):
        model.get_submodule("stage2")(torch.randn(1, 64, 56, 56))


@pytest.mark.parametrize("name", _cases(FAMILIES))
def test_an_image_of_another_size_gives_maps_or_an_error(name: str) -> None:
    """A network built for 224 gives the maps of one built for the size, unless one of its layers allows only the size that it was built for."""
    arch, x = paper(name), torch.randn(1, 3, 192, 256)
    built = build(arch).eval()
    if name in TIED:
        with pytest.raises(UserError, match="build the model for this image size"):
            features(built, arch)(x)
        return
    other = build(arch, image_size=(192, 256)).eval()
    other.load_state_dict(built.state_dict())
    expected = features(other, arch, image_size=(192, 256))(x)
    assert all(torch.equal(out, want) for out, want in zip(features(built, arch)(x), expected, strict=True))


def test_tokens_of_hybrids_pass_on_or_end() -> None:
    """Messengers that the next stage uses or drops, class tokens: every stage has a map, the same inside torchvision's getter."""
    space, rng = load_space(TESTS / "data" / "everything.toml"), random.Random(3)
    x = torch.randn(2, 3, 128, 128)
    for _ in range(5):
        network = build(propose(space, {}, rng)[1], features_only=True).eval()
        getter = IntermediateLayerGetter(network, {f"stage{number}": str(number) for number in range(1, 5)})
        with torch.no_grad():
            maps, got = network(x), list(getter(x).values())
        assert [tuple(item.shape[2:]) for item in maps] == [(32, 32), (16, 16), (8, 8), (4, 4)]
        assert all(torch.equal(one, other) for one, other in zip(maps, got, strict=True))


@pytest.mark.parametrize("name", _cases(FREE))
def test_free_models_take_odd_sizes(name: str) -> None:
    """The sides are the paper's own: rounded up (DaViT, VAN) or down."""
    model = build(paper(name), features_only=True).eval()
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 161, 203))
    for out, stride in zip(maps, model.feature_info.reduction(), strict=True):
        assert out.shape[2] in (161 // stride, -(-161 // stride))
        assert out.shape[3] in (203 // stride, -(-203 // stride))


def _retinanet(model: FeatureNetwork, **transform: Any) -> nn.Module:
    """RetinaNet with a narrow pyramid on all four maps; the pooled fifth makes the five levels of its anchors."""
    info = model.feature_info
    layers = {name: str(index) for index, name in enumerate(info.module_name())}
    detector: nn.Module = RetinaNet(BackboneWithFPN(model, layers, info.channels(), 32), num_classes=5, **transform)
    return detector


def _check_detector(detector: nn.Module, stem: nn.Module, image: Tensor) -> None:
    """Losses are finite and their gradients reach the stem; the trained one finds boxes inside the image."""
    box = torch.tensor([[10.0, 20.0, 90.0, 120.0]])
    losses = detector.train()([image], [{"boxes": box, "labels": torch.tensor([1])}])
    assert set(losses) == {"classification", "bbox_regression"}
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in stem.parameters())
    with torch.inference_mode():
        (found,) = detector.eval()([image])
    assert set(found) == {"boxes", "scores", "labels"}
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= max(image.shape[1:])).all()


def _jpeg(folder: Path) -> Tensor:
    """A photo-like picture that went through a JPEG file, (3, 197, 251) in [0, 1]."""
    picture = Image.linear_gradient("L").resize((251, 197)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((10, 20, 90, 120), fill=(200, 30, 60))
    picture.save(folder / "picture.jpg", quality=80)
    with Image.open(folder / "picture.jpg") as opened:
        image: Tensor = pil_to_tensor(opened) / 255
    return image


@pytest.mark.parametrize("name", _cases(FAMILIES))
def test_retinanet_trains_and_detects(name: str, tmp_path: Path) -> None:
    model = build(paper(name), features_only=True)
    _check_detector(_retinanet(model, fixed_size=(224, 224)), model.get_submodule("stage1.stem"), _jpeg(tmp_path))


@pytest.mark.parametrize("name", _cases(FREE))
def test_retinanet_with_its_own_resizing(name: str, tmp_path: Path) -> None:
    """Torchvision's default transform with a smaller side than its 800: a batch padded to a multiple of `size_divisible`, here an odd size."""
    model = build(paper(name), features_only=True)
    detector = _retinanet(model, min_size=161, max_size=333, size_divisible=1)
    _check_detector(detector, model.get_submodule("stage1.stem"), _jpeg(tmp_path))


def test_retinanet_on_a_photo() -> None:
    photos = sorted(PHOTOS.rglob("*.jpg"))
    if not photos:
        pytest.skip("needs the photos of ../shared/data/clothing-mini")
    with Image.open(photos[0]) as photo:
        image = pil_to_tensor(photo.convert("RGB")) / 255
    model = build(paper("van_b0"), features_only=True)
    _check_detector(_retinanet(model, fixed_size=(224, 224)), model.get_submodule("stage1.stem"), image)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ("van_b0", "msg_transformer_tiny") if name in paper_names()])
def test_compiled_in_one_graph(name: str) -> None:
    model = build(paper(name), features_only=True).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        for out, want in zip(compiled, model(x), strict=True):
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
