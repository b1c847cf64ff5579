"""The dilated depthwise convolution by phases against the plain one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from archsearch.blocks.van import DilatedDepthwise, dilated_by_phases
from archsearch.models import count_fvcore

SIZES = [(side, side) for side in range(1, 21)] + [(1, 9), (13, 4), (2, 20)]


def plain(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """PyTorch's own dilated convolution, padded to keep the size."""
    return functional.conv2d(
        x, weight, bias, padding=dilation * (weight.shape[-1] // 2), dilation=dilation, groups=weight.shape[0]
    )


def output_and_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dilation: int
) -> tuple[Tensor, ...]:
    """Output, then gradients of a fixed weighted sum of it with respect to x, weight and bias."""
    out = function(*inputs, dilation)
    pattern = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return (out, *torch.autograd.grad(out, inputs, pattern))


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("kernel", [3, 7])
def test_phases_equal_the_plain_convolution(kernel: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(kernel * 10 + dilation)
    for height, width in SIZES:
        shapes = [(2, 3, height, width), (3, 1, kernel, kernel), (3,)]
        inputs = tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
        )
        pairs = zip(
            output_and_gradients(dilated_by_phases, inputs, dilation),
            output_and_gradients(plain, inputs, dilation),
            strict=True,
        )
        for ours, reference in pairs:
            torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12, check_stride=False)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_module_keeps_size_and_layout(dilation: int) -> None:
    module = DilatedDepthwise(5, 7, dilation).double()
    x = torch.randn(2, 5, 8, 11, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    out = module(x)
    assert module.bias is not None
    torch.testing.assert_close(
        out, plain(x, module.weight, module.bias, dilation), rtol=1e-12, atol=1e-12, check_stride=False
    )
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_counters_see_one_convolution_of_the_unpadded_map() -> None:
    assert count_fvcore(DilatedDepthwise(5, 7, 3), (8, 11), 5) == 49 * 5 * 8 * 11
    module = DilatedDepthwise(5, 7, 3).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 5, 8, 11, device="meta"))
    assert counter.get_total_flops() == 2 * 49 * 5 * 8 * 11
