"""A built network is an ordinary module: what others put into it, hook, wrap or quantise is what runs.

`--whole` takes every paper's model and 50 hybrids, of two blocks a stage at most, instead of two networks of blocks of every family.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.networks import FAMILIES, MIXED, arch_of, parametrize_names
from support.quirks_base import specified
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.prune import l1_unstructured, remove
from torch.utils.checkpoint import checkpoint

from archsearch import UserError, build, load_space, paper
from archsearch.models.stage import NetworkStage
from archsearch.space import paper_space

IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames and metafunc.function is not test_kept_tables_follow_their_weights:
        names = FAMILIES if metafunc.function is test_timm_groups_its_parameters else MIXED
        parametrize_names(metafunc, names, names, all_short=True)


def make(name: str, **options: Any) -> Any:
    """The network in eval mode."""
    torch.manual_seed(0)
    return build(arch_of(name), **{"image_size": 224, **options}).eval()


class Wrapper(nn.Module):
    """Counts the calls of the module that it wraps, as LoRA, checkpointing or sharding would see them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return out


def test_the_children_are_the_four_parts_and_what_replaces_them_runs(name: str) -> None:
    model = make(name)
    assert [child for child, _ in model.named_children()] == ["stem", "stages", "norm", "head"]
    with torch.inference_mode():
        wanted, width = model(IMAGES[:1]), model.head.fc.in_features
        features = nn.Sequential(model.stem, *model.stages, model.norm)(IMAGES[:1])
        assert torch.equal(model.head(features), wanted)
        model.head = nn.Identity()
        assert torch.equal(model(IMAGES[:1]), features)
        assert model(IMAGES[:1]).shape[1] == width
        model.stages[-1].blocks[-1] = nn.Identity()
        assert not torch.equal(model(IMAGES[:1]), features)
        model.stem = nn.Sequential(nn.Conv2d(8, 3, 1), model.stem)
        assert model(torch.zeros(1, 8, 224, 224)).shape == features.shape


def _wrap_all(model: Any) -> list[Wrapper]:
    """Wrap the first block and the downsample of each stage, every Linear layer, and the head."""
    places = [(stage.blocks, "0") for stage in model.stages] + [(stage, "downsample") for stage in model.stages[1:]]
    modules = list(model.modules())
    places += [
        (module, name) for module in modules for name, child in module.named_children() if type(child) is nn.Linear
    ]
    wrappers = []
    for parent, name in [*places, (model, "head")]:
        wrappers.append(Wrapper(parent.get_submodule(name)))
        parent.add_module(name, wrappers[-1])
    return wrappers


def test_wrapped_layers_are_called_and_train_to_the_same_gradients(name: str) -> None:
    plain, model = make(name).train(), make(name).train()
    wrappers = _wrap_all(model)
    for network in (plain, model):
        torch.manual_seed(1)
        torch.autograd.backward(network(IMAGES).square().mean())
    assert all(wrapper.calls for wrapper in wrappers)
    unwrapped = {key.replace("inner.", ""): value for key, value in model.named_parameters()}
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(unwrapped[key].grad, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("features_only", [False, True])
def test_a_hook_sees_every_linear_layer_in_each_pass(name: str, features_only: bool) -> None:
    model = make(name, features_only=features_only)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.inference_mode():
        model(IMAGES[:1])  # what is kept is kept by now
        for _ in range(2):
            seen: set[nn.Module] = set()
            handles = [each.register_forward_hook(lambda module, given, out: seen.add(module)) for each in linears]  # noqa: B023  # called before the next
            model(IMAGES[:1])
            for handle in handles:
                handle.remove()
            assert seen == set(linears)


def test_what_a_global_hook_kept_is_not_overwritten(name: str) -> None:
    model, kept = make(name), []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            kept.append((out, out.clone()))

    handle = register_module_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(IMAGES[:1])
    finally:
        handle.remove()
    assert len(kept) > 50
    assert all(torch.equal(out, copied) for out, copied in kept)


def _by_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5).add_(0.02)


def _by_copy(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.02)


def _by_an_optimizer_in_inference_mode(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.inference_mode():
        torch.optim.SGD(model.parameters(), lr=0.01).step()


@pytest.mark.parametrize("change", [_by_data, _by_copy, _by_an_optimizer_in_inference_mode])
@pytest.mark.parametrize("name", ["crossformer_tiny", "lit_s", "msg_transformer_tiny", "swin_tiny"])
def test_kept_tables_follow_their_weights(name: str, change: Callable[[nn.Module], None]) -> None:
    model = make(name)
    with torch.no_grad():
        model(IMAGES[:1])
    change(model)
    with torch.no_grad():
        assert torch.equal(model(IMAGES[:1]), copy.deepcopy(model)(IMAGES[:1]))


def test_dynamic_quantisation_takes_every_linear_layer(name: str) -> None:
    from torch.ao.nn.quantized.dynamic import Linear as Quantised

    model = make(name)
    count = sum(isinstance(module, nn.Linear) for module in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this way of quantising will go
        quantise: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
        quantised = quantise(model, {nn.Linear}, dtype=torch.qint8)
    assert sum(isinstance(module, Quantised) for module in quantised.modules()) == count
    with torch.inference_mode():
        wanted, got = model(IMAGES[:1]), quantised(IMAGES[:1])
    assert nn.functional.cosine_similarity(wanted, got) > 0.9


class Marked(Tensor):
    """As a quantiser's tensors, which say by their class how a Linear layer is to be computed."""

    count = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Marked.count += func is nn.functional.linear
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch leaves it untyped


def test_weights_of_another_class_are_used_by_their_own_rules(name: str) -> None:
    model, plain = make(name), make(name)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.inference_mode():
        wanted = plain(IMAGES)
    for linear in linears:
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Marked))
    Marked.count = 0
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES).as_subclass(Tensor), wanted, rtol=1e-3, atol=1e-4)
    assert Marked.count >= len(linears)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("features_only", [False, True])
def test_state_dicts_that_count_from_1_load(name: str, features_only: bool, wrapped: bool) -> None:
    """As versions before this one wrote them: `stages.1.blocks.1`, `head.norm`, and `stage1.blocks.1`, `stage1.stage-norm` of features."""
    options: dict[str, Any] = {"image_size": 224, "features_only": features_only}
    model, other = make(name, **options), build(arch_of(name), **options)
    prefix = "module." if wrapped else ""
    target = nn.DataParallel(other) if wrapped else other
    earlier = {}
    for key, tensor in model.state_dict().items():
        if features_only:
            stage, _, place = key.partition(".")
            counted = specified(f"stages.{int(stage.removeprefix('stage')) - 1}.{place}")
            earlier[f"{prefix}{stage}.{counted.split('.', 2)[2]}"] = tensor
        else:
            earlier[prefix + specified(key)] = tensor
    earlier = dict(sorted(earlier.items()))  # as safetensors has them
    target.load_state_dict(earlier)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key
    now = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    target.load_state_dict(now)


def test_it_has_timms_interface(name: str) -> None:
    model, pyramid = make(name), make(name, features_only=True)
    with torch.inference_mode():
        features = model.forward_features(IMAGES)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.get_classifier()(pooled), model(IMAGES))
        assert torch.equal(model.forward_head(features), model(IMAGES))
        model.reset_classifier(0)
        assert torch.equal(model(IMAGES), pooled)
        model.reset_classifier(7)
        assert model(IMAGES).shape == (2, model.num_classes) == (2, 7)
    assert model.arch_id == build(arch_of(name), num_classes=7).arch_id == model.arch.arch_id
    info = model.feature_info
    assert [entry["num_chs"] for entry in info] == pyramid.feature_info.channels()
    assert [entry["reduction"] for entry in info] == pyramid.feature_info.reduction()
    assert [model.get_submodule(entry["module"]) for entry in info] == list(model.stages)
    for wrong in ({"num_classes": -1}, {"num_classes": 5, "global_pool": "max"}):
        with pytest.raises(UserError, match="allowed are 0 classes or more"):
            model.reset_classifier(**wrong)
    model.head = nn.Identity()
    with pytest.raises(UserError, match="the head, Identity, is without a classifier"):
        model.reset_classifier(5)


@pytest.mark.parametrize("features_only", [False, True])
def test_gradients_are_the_same_with_checkpointing_and_blocks_run_twice(name: str, features_only: bool) -> None:
    model = make(name, features_only=features_only).train()
    stages = [module for module in model.modules() if isinstance(module, NetworkStage)]
    blocks = [block for stage in stages for block in stage.get_submodule("blocks").children()]
    found: list[dict[str, Tensor]] = []
    for enable, runs in ((False, 1), (True, 2)):
        model.set_grad_checkpointing(enable)
        calls: list[nn.Module] = []
        handles = [block.register_forward_pre_hook(lambda block, given: calls.append(block)) for block in blocks]  # noqa: B023  # called before the next
        model.zero_grad()
        maps = model(IMAGES)
        torch.autograd.backward(sum(out.square().mean() for out in maps) if features_only else maps.square().mean())
        for handle in handles:
            handle.remove()
        assert sorted(map(id, calls)) == sorted(map(id, blocks * runs))
        found.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-6)


def test_timm_groups_its_parameters(name: str) -> None:
    from timm.models import group_parameters  # late: slow to import
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # timm has no __all__ there

    with torch.device("meta"):
        model = build(arch_of(name))
    depths: dict[int, list[str]] = group_parameters(model, model.group_matcher())
    order = [place for names in (depths[depth] for depth in sorted(depths)) for place in names]
    assert sorted(order) == sorted(key for key, _ in model.named_parameters())
    assert (order[0].split(".")[0], order[-1].split(".")[0]) == ("stem", "head")
    stages = [int(place.split(".")[1]) for place in order if place.startswith("stages.")]
    assert stages == sorted(stages)
    assert len(depths) == 2 + sum(stage.depth for stage in model.arch.stages)
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 2 + len(model.arch.stages)
    groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay())
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    maps = build(arch_of(name), features_only=True)
    assert set(maps.no_weight_decay()) == {
        key for key, _ in maps.named_parameters() if "table" in key or key.endswith(("token", "rel_pos_msg"))
    }
    for coarse, count in ((False, 1 + sum(stage.depth for stage in model.arch.stages)), (True, 0)):
        depths = group_parameters(maps, maps.group_matcher(coarse=coarse))
        order = [place for names in (depths[depth] for depth in sorted(depths)) for place in names]
        assert sorted(order) == sorted(key for key, _ in maps.named_parameters())
        assert order[0].startswith("stage1.stem")
        assert len(depths) >= (count or len(model.arch.stages))
    tables = {key for key, _ in model.named_parameters() if "table" in key or key.endswith(("token", "rel_pos_msg"))}
    assert model.no_weight_decay() == tables


def test_a_network_is_built_by_name_and_of_a_space_of_one() -> None:
    torch.manual_seed(0)
    wanted = build(paper("van_b0"))
    for given in ("van_b0", paper_space("van_b0")):
        torch.manual_seed(0)
        found = build(given, num_classes=None)
        assert found.arch_id == wanted.arch_id
        assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in wanted.state_dict().items())
    with pytest.raises(UserError, match="davit_tiny"):
        build("davit_tny")
    with pytest.raises(UserError, match="choices; an architecture fixes every value"):
        build(load_space("hybrid"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # blocks return views, on which nothing here works in place
def test_sharded_blocks_train_to_the_same_gradients() -> None:
    """By FSDP's fully_shard, with one process on the CPU; it asks for weights in contiguous memory."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in MIXED:
            model = make(name).to(memory_format=torch.contiguous_format).train()
            plain = copy.deepcopy(model)
            for stage in model.stages:
                for block in stage.blocks:
                    fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            for network in (plain, model):
                torch.manual_seed(1)
                torch.autograd.backward(network(IMAGES).square().mean())
            for sharded, parameter in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(sharded.grad.full_tensor(), parameter.grad)
    finally:
        dist.destroy_process_group()


def test_pruned_weights_are_used(name: str) -> None:
    model = make(name)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        plain = model(IMAGES[:1])
        for linear in linears:
            l1_unstructured(linear, "weight", 0.5)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        pruned = model(IMAGES[:1])
        for linear in linears:
            assert (linear.weight == 0).float().mean() >= 0.49
            remove(linear, "weight")  # type: ignore[no-untyped-call]  # as above
        torch.testing.assert_close(model(IMAGES[:1]), pruned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, pruned, rtol=1e-3)
