"""The registered models pass what timm's own tests ask of every model, written here after its list since timm's wheel has no tests.

Three networks in the quick tests, whose blocks are all there are; with `--whole` every paper's model and 50 hybrids, of two blocks a stage
at most where the test is a slow one. Not asked: torch.jit.script and torch.fx.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.networks import MIXED, arch_of, parametrize_names
from timm.data import Mixup  # type: ignore[attr-defined]  # public, but timm.data has no __all__
from timm.loss import SoftTargetCrossEntropy  # type: ignore[attr-defined]  # public, as Mixup
from timm.models import FeatureInfo, group_parameters, load_checkpoint, save_for_hf
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # public, as Mixup
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # public, as Mixup
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # public, as Mixup
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

import archsearch.timm
from archsearch import UserError, paper, paper_names
from archsearch.models import TimmNetwork, register_timm_models

SIDE = 224


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        names, is_quick = ["van_b0", *MIXED], metafunc.function in QUICK
        parametrize_names(metafunc, names, names if is_quick else [], all_short=not is_quick)


def create(name: str, **options: Any) -> Any:
    """A paper's model by its registered name, any other by its architecture; in eval mode."""
    torch.manual_seed(0)
    if name in paper_names():
        return timm.create_model(f"archsearch_{name}", **options).eval()
    return timm.create_model("archsearch_hybrid", arch=arch_of(name).to_dict(), **options).eval()


def images_of(model: Any, batch: int = 1) -> Tensor:
    return torch.randn(batch, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))


def test_every_paper_is_registered() -> None:
    names = ["archsearch_hybrid", *(f"archsearch_{name}" for name in paper_names())]
    assert timm.list_models("archsearch_*") == sorted(names)
    assert timm.list_models("archsearch_*", pretrained=True) == []


def test_importing_it_again_changes_nothing() -> None:
    before = timm.model_entrypoint("archsearch_van_b0")
    register_timm_models()
    assert timm.model_entrypoint("archsearch_van_b0") is before


def test_a_forward_pass_gives_numbers(name: str) -> None:
    model = create(name)
    with torch.inference_mode():
        outputs = model(images_of(model))
        own = archsearch.build(arch_of(name)).eval()
        own.load_state_dict(model.state_dict())
        torch.testing.assert_close(outputs, own(images_of(model)), rtol=1e-4, atol=1e-5)
    assert outputs.shape == (1, 1000)
    assert outputs.isfinite().all()


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = create(name, num_classes=42).train()
    outputs = model(images_of(model, 2))
    outputs.mean().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    assert outputs.shape == (2, 42)
    assert outputs.isfinite().all()


def test_the_default_configuration_is_what_the_model_does(name: str) -> None:
    model = create(name)
    config, state = model.default_cfg, model.state_dict()
    assert config["classifier"] + ".weight" in state
    assert config["first_conv"]
    assert all(state[f"{conv}.weight"].shape[1] == 3 for conv in config["first_conv"])
    has_tokens, pool = model.pooling == "token", config["pool_size"]
    with torch.inference_mode():
        images = images_of(model)
        features = model.forward_features(images)
        before_classifier = model.forward_head(features, pre_logits=True)
        assert features.shape[1] == model.num_features
        assert before_classifier.shape == (1, model.head_hidden_size)
        assert has_tokens or features.shape[2:] == pool
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert torch.equal(model(images), before_classifier)
        model.reset_classifier(0, "")
        assert torch.equal(model(images), features)
        unpooled = create(name, num_classes=0, global_pool="")
        assert unpooled(images).shape == features.shape
        model.reset_classifier(7, model.pooling)
        assert model(images).shape == (1, 7)
        assert model.get_classifier().out_features == model.num_classes == 7
    assert config["input_size"] == (3, SIDE, SIDE) or "384" in name


def test_the_maps_of_stages_are_as_their_information_says(name: str) -> None:
    model = create(name, features_only=True)
    info = model.feature_info
    assert len(info.channels()) == 4
    with torch.inference_mode():
        maps = model(images_of(model))
        assert len(maps) == 4
        side = model.default_cfg["input_size"][-1]
        for found, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
            assert found.shape[1] == channels
            assert found.shape[2:] == 2 * (math.ceil(side / stride),)
            assert found.isfinite().all()
        chosen = create(name, features_only=True, out_indices=(1, -1))
        assert [entry.shape for entry in chosen(images_of(model))] == [maps[1].shape, maps[3].shape]
        last = create(name, features_only=True, out_indices=2)
        assert [entry.shape for entry in last(images_of(model))] == [maps[2].shape, maps[3].shape]


def test_intermediate_maps_come_with_the_output(name: str) -> None:
    model = create(name)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.inference_mode():
        images = images_of(model)
        final, maps = model.forward_intermediates(images)
        assert [entry.shape[1] for entry in maps] == info.channels()
        torch.testing.assert_close(model.forward_head(final), model(images))
        (normed,) = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert normed.shape == maps[-1].shape
        early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
        assert all(torch.equal(*pair) for pair in zip(early, maps[:2], strict=True))
        getter = create(name, features_only=True, out_indices=(0, 2), feature_cls="getter")
        assert [entry.shape for entry in getter(images)] == [maps[0].shape, maps[2].shape]


def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    model = create(name).train()
    images = images_of(model, 2)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_it_is_exported_by_torch(name: str) -> None:
    model = create(name)
    with torch.no_grad():
        program = torch.export.export(model, (images_of(model),)).run_decompositions()
        torch.testing.assert_close(program.module()(images_of(model)), model(images_of(model)), rtol=1e-4, atol=1e-5)


def test_other_channels_and_a_saved_folder_are_loaded_by_timm(name: str, tmp_path: Path) -> None:
    model = create(name, num_classes=5, in_chans=4)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    images = torch.randn(2, 4, *model.size)
    with torch.inference_mode():
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(again(images), model(images))
        fitted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1).eval()
        assert fitted(images[:, :1]).shape == (2, 3)
        pyramid = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
        wanted = model.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(pyramid(images)[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_one_step_of_training_with_timms_parts(name: str) -> None:
    """Layer-wise learning rates, a schedule, Mixup, soft targets, an average of the weights."""
    model = create(name, num_classes=10, drop_path_rate=0.1, drop_rate=0.1).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) == len(group_parameters(model, model.group_matcher()))
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=10, warmup_epochs=1, warmup_lr=1e-5)
    average = ModelEmaV3(model, decay=0.5)
    mixup: Any = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=10)  # type: ignore[no-untyped-call]  # timm leaves it untyped
    images, targets = mixup(images_of(model, 4), torch.tensor([0, 1, 2, 3]))
    before = {key: value.clone() for key, value in model.named_parameters()}
    loss = SoftTargetCrossEntropy()(model(images), targets)  # type: ignore[no-untyped-call]  # as above
    loss.backward()
    optimizer.step()
    average.update(model, step=2)  # the first ones copy
    scheduler.step(1)
    assert loss.isfinite()
    assert epochs == 10
    # MSG-Transformer's head reads the messengers alone, on which the last block's table of positions among patches has no influence.
    moved = {key for key, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key]) == (key in moved)] == []
    assert len(before) - len(moved) <= 1
    halfway = average.module.get_classifier().weight
    assert not torch.equal(halfway, model.get_classifier().weight)


def test_its_maps_go_into_a_feature_pyramid(name: str) -> None:
    model = create(name, features_only=True)
    neck = FeaturePyramidNetwork(model.feature_info.channels(), 32)
    maps = model(images_of(model))
    out = neck({str(index): each for index, each in enumerate(maps)})
    assert [tuple(each.shape) for each in out.values()] == [(1, 32, *each.shape[2:]) for each in maps]
    sum(each.mean() for each in out.values()).backward()
    wanted = [key for key, value in model.named_parameters() if value.grad is None]
    assert wanted == []


def test_the_preprocessing_is_the_papers() -> None:
    for name in paper_names():
        config = timm.get_pretrained_cfg(f"archsearch_{name}")
        assert config
        table = archsearch.space.paper_space(name).paper["eval"]
        assert config.crop_pct == table["crop_share"]
        assert (list(config.mean), list(config.std)) == (list(table["mean"]), list(table["std"]))
        assert config.interpolation == table["interpolation"]
        assert not config.has_weights


QUICK = (
    test_a_forward_pass_gives_numbers,
    test_the_default_configuration_is_what_the_model_does,
    test_the_maps_of_stages_are_as_their_information_says,
    test_intermediate_maps_come_with_the_output,
)


def test_dropout_before_the_classifier_is_in_training_alone() -> None:
    model = create("mixed-a", drop_rate=0.9)
    images = images_of(model)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        features = model.forward_features(images)
        assert not torch.equal(model.forward_head(features), model.forward_head(features))


def test_what_a_model_cannot_do_is_one_sentence() -> None:
    with pytest.raises(UserError, match="archsearch_hybrid: no arch; give the dict of an architecture"):
        timm.create_model("archsearch_hybrid")
    document = paper("van_b0").to_dict()
    document["stages"][0]["block"] = "lkaa"
    with pytest.raises(UserError, match=r"archsearch_hybrid: .*unknown block 'lkaa'"):
        timm.create_model("archsearch_hybrid", arch=document)
    with pytest.raises(UserError, match="global_pool is 'max'"):
        create("mixed-a", global_pool="max")
    with pytest.raises(UserError, match="global_pool is '' for 1000 classes"):
        create("mixed-a", global_pool="")
    model = create("mixed-b")
    with pytest.raises(UserError, match="'NCHW'"):
        model.forward_intermediates(images_of(model), output_fmt="NLC")
    assert isinstance(model, TimmNetwork)
    assert isinstance(model, nn.Module)


def test_load_checkpoint_of_timm_reads_our_file(tmp_path: Path) -> None:
    network = archsearch.build(arch_of("mixed-a")).eval()
    archsearch.save(network, tmp_path / "mixed.safetensors")
    model = create("mixed-a", img_size=SIDE)
    load_checkpoint(model, str(tmp_path / "mixed.safetensors"))
    with torch.inference_mode():
        torch.testing.assert_close(model(images_of(model)), network(images_of(model)), rtol=1e-4, atol=1e-5)
