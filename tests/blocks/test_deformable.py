"""The deformable convolution by sampling is torchvision's operator: values and gradients, also far outside the map."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from archsearch.blocks.lit import deform_by_sampling


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8), (14, 10)])
@pytest.mark.parametrize("reach", [0.0, 0.7, 9.0])
def test_sampling_equals_torchvision(size: tuple[int, int], reach: float) -> None:
    generator = torch.Generator().manual_seed(7)
    height, width = size

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    operands = [draw(2, 5, height, width), reach * draw(2, 8, height // 2, width // 2), draw(6, 5, 2, 2), draw(6)]
    ours = [operand.clone().requires_grad_() for operand in operands]
    theirs = [operand.clone().requires_grad_() for operand in operands]
    out, expected = deform_by_sampling(*ours), deform_conv2d(*theirs, stride=2)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for result in (out, expected):
        result.square().sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        # At whole pixels the bilinear kernel has a kink: one-sided derivatives differ by convention.
        if reach or own.shape[1:2] != (8,):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-9)
