"""Two implementations of one operation agree, and counters, compilers and hooks see the same network as without the faster one."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from archsearch import Arch, build, paper
from archsearch.blocks.common import from_groups, grouped_attention, to_groups
from archsearch.blocks.kernels import Depthwise, apply_gelu, apply_linear, attention

FAMILIES = (
    "davit_tiny",
    "crossformer_tiny",
    "van_b0",
    "twins_svt_small",
    "twins_pcpvt_small",
    "lit_s",
    "lit_ti",
    "litv2_s",
    "msg_transformer_tiny",
    "pvt_tiny",
    "swin_tiny",
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _assert_close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 56, 56, 96, 384), (3, 7, 7, 768, 192), (1, 2, 3, 8, 8)])
def test_linear_is_the_linear_layer_forward_and_backward(
    shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool
) -> None:
    layer = nn.Linear(shape[-2], shape[-1], bias=has_bias).to(dtype)
    x, grad = torch.randn(shape[:-1]).to(dtype), torch.randn(*shape[:-2], shape[-1]).to(dtype)
    oracle = copy.deepcopy(layer).double()
    wanted_x = x.double().requires_grad_()
    wanted = functional.linear(wanted_x, oracle.weight, oracle.bias)
    torch.autograd.backward(wanted, grad.double())
    with torch.inference_mode():
        _assert_close(apply_linear(layer, x), wanted, TOLERANCE[dtype])
        _assert_close(apply_linear(layer, x.transpose(1, 2)), wanted.transpose(1, 2), TOLERANCE[dtype])
    x.requires_grad_()
    out = apply_linear(layer, x)
    torch.autograd.backward(out, grad)
    _assert_close(out, wanted, TOLERANCE[dtype])
    for mine, theirs in zip([x, *layer.parameters()], [wanted_x, *oracle.parameters()], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        _assert_close(mine.grad, theirs.grad, TOLERANCE[dtype])


def test_linear_trains_with_frozen_parts_expanded_gradients_and_second_derivatives() -> None:
    layer, x = nn.Linear(96, 192), torch.randn(4, 28, 28, 96, requires_grad=True)
    layer.weight.requires_grad_(False)
    torch.autograd.backward(apply_linear(layer, x).sum())  # an expanded gradient
    assert layer.weight.grad is None
    assert x.grad is not None
    _assert_close(x.grad, layer.weight.sum(0).expand_as(x), 1e-5)
    layer.weight.requires_grad_(True)
    (first,) = torch.autograd.grad(apply_linear(layer, x).square().sum(), x, create_graph=True)
    torch.autograd.backward(first.square().sum())
    oracle = layer.weight.detach().double().requires_grad_()
    y = x.detach().double().requires_grad_()
    (again,) = torch.autograd.grad((y @ oracle.t() + layer.bias.double()).square().sum(), y, create_graph=True)
    torch.autograd.backward(again.square().sum())
    assert layer.weight.grad is not None
    assert oracle.grad is not None
    _assert_close(layer.weight.grad, oracle.grad, 1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own forward derivatives script themselves
def test_linear_under_autocast_vmap_and_forward_derivatives_is_torchs() -> None:
    layer, x = nn.Linear(96, 192).eval(), torch.randn(4, 784, 96)
    plain = functional.linear(x, layer.weight, layer.bias)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert apply_linear(layer, x).dtype == torch.bfloat16
    _assert_close(torch.vmap(partial(apply_linear, layer))(x), plain, 1e-5)
    tangent = torch.func.jvp(partial(apply_linear, layer), (x,), (x,))[1]
    _assert_close(tangent, x @ layer.weight.t(), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gelu_never_changes_what_a_hook_kept(dtype: torch.dtype) -> None:
    layer, x, kept = nn.Linear(96, 192).to(dtype), torch.randn(2, 196, 96).to(dtype), []
    with torch.inference_mode():
        wanted = functional.gelu(functional.linear(x, layer.weight, layer.bias))
        _assert_close(apply_gelu(layer, x), wanted, TOLERANCE[dtype])
        handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
        apply_gelu(layer, x)
        handle.remove()
        _assert_close(kept[0], functional.linear(x, layer.weight, layer.bias), TOLERANCE[dtype])
        before = x.clone()
        _assert_close(apply_gelu(nn.Identity(), x), functional.gelu(before), TOLERANCE[dtype])
        assert torch.equal(x, before)  # a layer that was taken out gives its input itself


@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 3), (3, 5), (4, 4), (2, 9)])
def test_depthwise_is_the_convolution_forward_and_backward(size: tuple[int, int], kernel: int) -> None:
    layer, oracle = Depthwise(6, kernel), nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=6).double()
    oracle.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6, *size).contiguous(memory_format=torch.channels_last)
    wanted_x, grad = x.double().requires_grad_(), torch.randn_like(x)
    wanted = oracle(wanted_x)
    torch.autograd.backward(wanted, grad.double())
    with torch.inference_mode():
        _assert_close(layer(x), wanted, TOLERANCE[torch.float32])
    x.requires_grad_()
    torch.autograd.backward(layer(x), grad)
    for mine, theirs in zip([x, *layer.parameters()], [wanted_x, *oracle.parameters()], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        _assert_close(mine.grad, theirs.grad, TOLERANCE[torch.float32])


def test_depthwise_trains_with_frozen_parts_expanded_gradients_and_second_derivatives() -> None:
    layer, x = Depthwise(4, 5), torch.randn(2, 4, 2, 2, requires_grad=True)
    layer.weight.requires_grad_(False)
    torch.autograd.backward(layer(x).sum())  # an expanded gradient
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [8.0] * 4
    layer.weight.requires_grad_(True)
    slopes = [
        torch.autograd.grad(out.square().sum(), layer.weight, create_graph=True)[0]
        for out in (layer(x), functional.conv2d(x, layer.weight, layer.bias, padding=2, groups=4))
    ]
    mine, theirs = (torch.autograd.grad(slope.square().sum(), x)[0] for slope in slopes)
    _assert_close(mine, theirs, TOLERANCE[torch.float32])


@pytest.mark.parametrize("is_learned", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(6, 2, 4, 4), (5, 2, 16, 16), (3, 3, 49, 49), (1, 2, 1100, 5)])
def test_attention_is_softmax_attention_forward_and_backward(
    shape: tuple[int, ...], dtype: torch.dtype, is_learned: bool
) -> None:
    batch, heads, queries, keys = shape
    bias = torch.randn(1, heads, queries, keys).to(dtype).requires_grad_(is_learned)
    query = torch.randn(batch, heads, queries, 32).to(dtype).requires_grad_()
    key, value = (torch.randn(batch, heads, keys, 32).to(dtype).requires_grad_() for _ in range(2))
    leaves = [query, key, value, *([bias] if is_learned else [])]
    oracle = [leaf.detach().double().requires_grad_() for leaf in (query, key, value, bias)]
    scores = oracle[0] @ oracle[1].transpose(-1, -2) / 32**0.5 + oracle[3]
    wanted = scores.softmax(-1) @ oracle[2]
    with torch.inference_mode():
        _assert_close(attention(query, key, value, bias), wanted, TOLERANCE[dtype])
    out = attention(query, key, value, bias)
    _assert_close(out, wanted, TOLERANCE[dtype])
    grad = torch.randn_like(out)
    torch.autograd.backward(out, grad)
    torch.autograd.backward(wanted, grad.double())
    for leaf, mine in zip(leaves, oracle, strict=False):
        assert leaf.grad is not None
        assert mine.grad is not None
        _assert_close(leaf.grad, mine.grad, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("interval", [1, 2])
def test_groups_are_neighbours_that_stand_an_interval_apart(interval: int) -> None:
    tokens = torch.arange(2 * 12 * 18).view(2, 12, 18, 1)
    groups = to_groups(tokens, 3, interval)
    step = 3 * interval
    corners = [
        (r + i, c + j)
        for r in range(0, 12, step)
        for c in range(0, 18, step)
        for i in range(interval)
        for j in range(interval)
    ]
    for group, (row, column) in zip(groups[1], corners, strict=True):
        wanted = tokens[1, row : row + step : interval, column : column + step : interval]
        assert torch.equal(group, wanted.reshape(9, 1))
    assert torch.equal(from_groups(groups, (12, 18), 3, interval), tokens)


def test_a_bias_for_each_group_is_that_of_its_own_group() -> None:
    qkv, bias = torch.randn(3, 4, 9, 3 * 64), torch.randn(4, 2, 9, 9)
    query, key, value = qkv.view(3, 4, 9, 3, 2, 32).permute(3, 0, 1, 4, 2, 5).unbind(0)
    wanted = ((query @ key.transpose(-1, -2)) / 32**0.5 + bias).softmax(-1) @ value
    out = grouped_attention(qkv, head_dim=32, bias=bias)
    _assert_close(out, wanted.transpose(2, 3).reshape(3, 4, 9, 64), 1e-5)


def _shallow(name: str) -> Arch:
    """The paper's architecture with at most two blocks a stage."""
    document = paper(name).to_dict()
    for stage in document["stages"]:
        stage["depth"] = min(2, stage["depth"])
    return Arch.from_dict(document)


@pytest.fixture
def swin() -> nn.Module:
    """Shallow, in eval mode, and evaluated once, so that it keeps its bias tables."""
    model = build(_shallow("swin_tiny")).eval()
    with torch.inference_mode():
        model(IMAGES)
    return model


IMAGES = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def _tables(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("bias_table")]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["optimiser's step", "load_state_dict", "moved data", "copy", "dtype", "trained"])
def test_kept_bias_tables_follow_their_weights(change: str, swin: nn.Module) -> None:
    changed = copy.deepcopy(swin) if change == "copy" else swin
    if change == "load_state_dict":
        other = {name: value + 1 if name.endswith("bias_table") else value for name, value in swin.state_dict().items()}
        changed.load_state_dict(other)
    elif change == "dtype":
        changed = swin.bfloat16().float()
    elif change == "trained":
        changed.train()(IMAGES).sum().backward()
        torch.optim.SGD(changed.parameters(), 1e-3).step()
        changed.eval()
    else:
        for table in _tables(changed):
            if change == "moved data":
                table.data = table.data.flip(0)
            else:
                with torch.no_grad():
                    table.mul_(torch.linspace(1, 30, len(table))[:, None])
    fresh = build(_shallow("swin_tiny")).eval()
    fresh.load_state_dict(changed.state_dict())
    with torch.inference_mode():
        before, after, wanted = swin(IMAGES), changed(IMAGES), fresh(IMAGES)
    assert torch.equal(after, wanted)
    if change == "copy":
        assert not torch.equal(before, after)


def test_a_flop_counter_on_the_cpu_sees_every_linear_layer() -> None:
    model = build(_shallow("van_b0"), image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        model(images)
        with FlopCounterMode(display=False) as counter:
            model(images)
    counted = counter.get_flop_counts()["Global"]
    wanted = _linear_flops(model, images)
    assert counted[torch.ops.aten.addmm] == wanted


def _linear_flops(model: nn.Module, images: Tensor) -> int:
    """By hooks: two a multiply-add."""
    total = []

    def note(module: Any, inputs: Any, output: Tensor) -> None:
        total.append(2 * output.numel() * module.in_features)

    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return sum(total)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_compiles_into_one_graph(name: str) -> None:
    """Forward in eval mode and forward of training; the back end is eager, since graph breaks come before it."""
    torch._dynamo.reset()
    model = build(_shallow(name)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.inference_mode():
        _assert_close(compiled(IMAGES), model(IMAGES), 1e-4)
    model.train()
    trained = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    assert trained(IMAGES.expand(2, -1, -1, -1)).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_in_pure_bfloat16_and_under_autocast(name: str) -> None:
    model = build(_shallow(name)).eval()
    with torch.inference_mode():
        wanted = model(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(IMAGES)
        pure = copy.deepcopy(model).bfloat16()(IMAGES.bfloat16())
    assert pure.dtype == torch.bfloat16
    # Logits of an untrained network are sums of rounding-sized terms; a wrong branch changes them by their own size.
    _assert_close(cast, wanted, 0.1)
    _assert_close(pure, wanted, 0.1)
