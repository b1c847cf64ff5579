"""What is chosen on CUDA, on fake CUDA tensors, which need no GPU; and that what is chosen there has the values of torch's own operation."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from archsearch.blocks.kernels import apply_norm, attention, is_sampled
from archsearch.blocks.kernels.cuda import is_large_patch, unshuffled_conv


class Calls(TorchFunctionMode):
    """Names of the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def _fakes(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    with FakeTensorMode():
        return [torch.empty(shape, device="cuda", dtype=dtype) for shape in shapes]


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "has_bias", "is_fused"),
    [
        ((8192, 3, 49, 32), 49, BFLOAT16, False, True),
        ((8192, 3, 49, 32), 49, BFLOAT16, True, False),
        ((8192, 3, 49, 32), 49, FLOAT32, True, True),
        ((8192, 3, 50, 32), 50, BFLOAT16, True, False),
        ((25088, 6, 4, 32), 4, BFLOAT16, False, False),
        ((25088, 6, 4, 32), 4, FLOAT32, False, False),
        ((128, 8, 196, 32), 196, BFLOAT16, True, True),
        ((128, 2, 3136, 32), 49, BFLOAT16, True, True),
    ],
)
def test_attention_is_the_faster_one_of_the_table(
    shape: tuple[int, ...], keys: int, dtype: torch.dtype, has_bias: bool, is_fused: bool
) -> None:
    pairs = (*shape[:2], keys, shape[3])
    query, key, value, bias = _fakes(shape, pairs, pairs, (1, shape[1], shape[2], keys), dtype=dtype)
    with torch.no_grad(), Calls() as calls:
        out = attention(query, key, value, bias if has_bias else None)
    assert ("scaled_dot_product_attention" in calls.names) == is_fused
    assert (out.shape, out.dtype) == (query.shape, dtype)


@pytest.mark.parametrize(
    ("kernel", "stride", "inputs", "is_faster"),
    [(4, 4, 3, False), (8, 4, 3, True), (16, 4, 3, True), (32, 4, 3, True), (8, 2, 3, False), (8, 4, 64, False)],
)
def test_large_patches_of_few_channels_are_convolved_by_cells(
    kernel: int, stride: int, inputs: int, is_faster: bool
) -> None:
    (x,), weight = _fakes((2, inputs, 64, 64)), torch.zeros(12, inputs, kernel, kernel)
    assert is_large_patch(x, weight, stride) == is_faster
    assert not is_large_patch(x.to("meta"), weight, stride)  # counted


@pytest.mark.parametrize("size", [(32, 32), (30, 41), (17, 8)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(8, 4, 2), (16, 4, 6), (8, 4, 0), (6, 3, 1)])
def test_a_convolution_by_cells_is_the_convolution_forward_and_backward(
    kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    """Also of sides that the stride does not divide."""
    if min(size) + 2 * padding < kernel:
        size = (32, 19)
    torch.manual_seed(0)
    shapes = [(2, 3, *size), (5, 3, kernel, kernel), (5,)]
    leaves = x, weight, bias = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    out = unshuffled_conv(x, weight, bias, stride, padding)
    wanted = functional.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12, check_stride=False)
    pattern = torch.randn_like(wanted)
    pairs = zip(torch.autograd.grad(out, leaves, pattern), torch.autograd.grad(wanted, leaves, pattern), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11, check_stride=False)


def test_deformable_merging_samples_on_cuda_in_training_alone() -> None:
    (x,) = _fakes((1, 3, 8, 8))
    assert is_sampled(x)
    with torch.no_grad():
        assert not is_sampled(x)
        assert is_sampled(torch.zeros(1))
    assert not is_sampled(torch.zeros(1, device="meta"))


def test_a_norm_that_is_hooked_replaced_or_without_weights_is_called() -> None:
    (x,), seen = _fakes((2, 3, 8), dtype=torch.float32), []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for norm in (nn.LayerNorm(8, device="cuda"), nn.LayerNorm(8, elementwise_affine=False), nn.Identity()):
            norm.register_forward_hook(lambda *_: seen.append(1))
            assert apply_norm(norm, x).shape == x.shape
    assert len(seen) == 3


def test_on_the_cpu_a_norm_is_torchs() -> None:
    norm, x = nn.LayerNorm(8), torch.randn(3, 8)
    with Calls() as calls:
        assert torch.equal(apply_norm(norm, x), norm(x))
    assert calls.names.count("layer_norm") == 2


def test_triton_is_not_imported_before_it_is_used_nor_needed() -> None:
    program = (
        "import sys; sys.modules['triton'] = None  # as where it is not installed\n"
        "import warnings; import torch; import archsearch.blocks.kernels as kernels\n"
        "from archsearch.blocks.kernels import cuda\n"
        "assert not [name for name in sys.modules if name.startswith('archsearch.blocks.kernels.triton')]\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert not cuda.has_triton()\n"
        "assert ['Triton does not work here' in str(each.message) for each in seen] == [True], seen\n"
        "kernels.depthwise(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3), None, 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
