"""Values of the Triton operations against float64, in Triton's interpreter on the CPU; test_triton.py runs this file in a process of its own."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional

from archsearch.blocks.kernels import triton_depthwise, triton_layer_norm

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}  # of the largest value

# (rows ..., C): channels no power of two, rows no multiple of a tile, one row, several programs.
NORMS = [(3, 5, 24), (1, 96), (90, 40), (2, 1, 3, 320)]
# (B, H, W, C), kernel, dilation: sides that differ, maps smaller than the kernel, channels above and below a tile.
CONVOLUTIONS = [((2, 2, 4, 6), 3, 1), ((1, 3, 2, 70), 3, 2), ((1, 2, 3, 5), 7, 3), ((1, 1, 17, 3), 5, 4)]


def _standard_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    out = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, dilation=dilation, groups=x.shape[-1])
    return out.permute(0, 2, 3, 1)


def _compare(mine: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for own, other in zip(mine, wanted, strict=True):
        assert own.shape == other.shape
        assert (own.double() - other).abs().max() <= TOLERANCE[dtype] * max(1.0, float(other.abs().max()))


def _differentiated(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of a fixed sum of it, which is no expanded tensor."""
    pattern = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, pattern)]


def _leaves(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Drawn tensors, and the same in float64."""
    torch.manual_seed(0)
    mine = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return mine, [leaf.detach().double().requires_grad_() for leaf in mine]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", NORMS)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    channels = shape[-1]
    mine, wanted = _leaves([shape, (channels,), (channels,)], dtype)
    out = triton_layer_norm.layer_norm(*mine, 1e-5)
    assert out.dtype == dtype
    oracle = functional.layer_norm(wanted[0], (channels,), wanted[1], wanted[2], 1e-5)
    _compare(_differentiated(out, mine), _differentiated(oracle, wanted), dtype)


def test_layer_norm_of_bfloat16_with_weights_in_float32_is_what_autocast_gives() -> None:
    x, weight, bias = torch.randn(7, 24).bfloat16(), torch.randn(24), torch.randn(24)
    out = triton_layer_norm.layer_norm(x, weight, bias, 1e-5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, functional.layer_norm(x.float(), (24,), weight, bias), rtol=1e-5, atol=1e-5)


def test_layer_norm_of_a_view_is_that_of_its_copy() -> None:
    x, weight, bias = torch.randn(24, 3, 5).permute(1, 2, 0), torch.randn(24), torch.randn(24)
    out = triton_layer_norm.layer_norm(x, weight, bias, 1e-5)
    assert torch.equal(out, triton_layer_norm.layer_norm(x.contiguous(), weight, bias, 1e-5))
    assert out.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "dtype"),
    [(*case, torch.float32) for case in CONVOLUTIONS] + [(*case, torch.bfloat16) for case in CONVOLUTIONS[::2]],
)
def test_depthwise(shape: tuple[int, ...], kernel: int, dilation: int, dtype: torch.dtype) -> None:
    channels = shape[-1]
    mine, wanted = _leaves([shape, (channels, 1, kernel, kernel), (channels,)], dtype)
    out = triton_depthwise.depthwise(*mine, dilation)
    assert out.dtype == dtype
    _compare(
        _differentiated(out, mine), _differentiated(_standard_depthwise(*wanted, dilation=dilation), wanted), dtype
    )


def test_depthwise_without_a_bias() -> None:
    mine, wanted = _leaves([(1, 2, 3, 4), (4, 1, 3, 3)], torch.float32)
    out, oracle = triton_depthwise.depthwise(*mine, None, 2), _standard_depthwise(*wanted, dilation=2)
    _compare(_differentiated(out, mine), _differentiated(oracle, wanted), torch.float32)


def _second(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of the squared first gradients."""
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    return list(torch.autograd.grad(torch.stack([slope.square().sum() for slope in first]).sum(), leaves[:2]))


def test_second_derivatives_are_those_of_standard_operations() -> None:
    mine, wanted = _leaves([(3, 24), (24,), (24,)], torch.float32)
    oracle = functional.layer_norm(wanted[0], (24,), wanted[1], wanted[2], 1e-5)
    for own, other in zip(
        _second(triton_layer_norm.layer_norm(*mine, 1e-5), mine), _second(oracle, wanted), strict=True
    ):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-3)
    mine, wanted = _leaves([(1, 2, 3, 4), (4, 1, 3, 3), (4,)], torch.float32)
    oracle = _standard_depthwise(*wanted, dilation=2)
    for own, other in zip(_second(triton_depthwise.depthwise(*mine, 2), mine), _second(oracle, wanted), strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["layer_norm", "depthwise"])
def test_it_keeps_the_rules_of_operations(name: str) -> None:
    """What it says of its arguments, and of gradients, is so. The checks of shapes alone need a kernel that is not interpreted: test_triton.py."""
    if name == "layer_norm":
        (leaves, _), last = _leaves([(3, 24), (24,), (24,)], torch.float32), 1e-5
        operation = torch.ops.archsearch.layer_norm.default
    else:
        (leaves, _), last = _leaves([(1, 2, 3, 4), (4, 1, 3, 3), (4,)], torch.float32), 2
        operation = torch.ops.archsearch.depthwise.default
    opcheck(operation, (*leaves, last), test_utils=("test_schema", "test_autograd_registration"))
