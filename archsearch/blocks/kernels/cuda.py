"""What is computed in another way on CUDA, and for which sizes; both ways give the same values up to rounding.

Milliseconds on one NVIDIA H100 (torch 2.11, CUDA 13.0, cuDNN 9.19, Triton 3.6), bfloat16, 128 images of 224 px, forward in eager mode unless noted.
The kernels' prototypes were timed; their backward passes, and all of it on other cards, were not.

    LayerNorm over C: torch / Triton           56x56x64 .441/.039, 56x56x96 .449/.056, 28x28x128 .111/.021, 28x28x192 .131/.030,
                                               14x14x320 .040/.020, 14x14x384 .041/.020, 7x7x512 .014/.020, 7x7x768 .016/.020
    depthwise 7x7, dilation 3: cuDNN / Triton  56x56x64 2.54/.40, 28x28x128 1.30/.22, 14x14x320 .85/.14, 7x7x512 .38/.06
    depthwise 5x5 likewise                     .17/.19, .09/.10, .06/.06, .03/.04; of 3x3 .131/.087, .063/.046, .039/.030, .019/.019
    RGB patches at stride 4: cuDNN /           kernel 4 .17/.24, 8 .40/.28, 16 1.81/.39, 32 6.52/.80
      by pixel_unshuffle
    deformable 2x2: torchvision / sampling     56 px .83/.99, 28 px .65/.79, 14 px .54/.60; with backward 4.2/3.6, 3.0/2.6, 3.2/1.9
    attention of 32 channels: fused / by hand  without a bias, with one
       8192 x 3 x   49 x  49                    .39/.59, 1.24/.76
       2048 x 6 x   49 x  49                    .20/.30,  .63/.39
      25088 x 6 x    4 x   4                   2.36/.40, 3.59/.41   (float32 3.7/.77; of the other rows within 15 %)
        128 x 8 x  196 x 196                    .06/.28,  .09/.40
        128 x 2 x 3136 x  49                    .11/.34,  .34/.46
        128 x 12 x 3136 x 32                    .61/1.11, .94/1.55
      65536 x 3 x   16 x  16, with backward     9.7/5.4,  8.8/5.5    (fused: in two parts)

So LayerNorm is Triton's where it takes longer than a launch, in eager mode; a compiler fuses it with its neighbours, which is faster still. Dilated
depthwise convolution is always Triton's, eager and compiled, ordinary one cuDNN's. Attention is by hand in windows of up to 16 pairs and, in bfloat16,
in windows with a bias; compiled too, where by hand the bias and softmax become one kernel (timm's Swin compiled is 1.14 times as fast as ours was fused).

Fused attention takes at most 65,535 in its first dimension where gradients are wanted: above, it is by hand for few keys and in parts for more.
Of the same kind, looked for in the sources of torch and torchvision, for 1,024 images of 224 px: our own grids have the large size first, where 2^31 - 1
blocks are allowed (65,535 in the others), and count rows in 64 bits. `roll` counts in 64 bits. Torchvision's deformable convolution takes at most 32
images at once, `grid_sample` a thread a position in one dimension. Batched products and softmax over 65,536 groups were run. PyTorch's own depthwise
kernel, which serves where cuDNN does not, counts in 32 bits: it refuses maps of more than 2^31 numbers, 8 GiB in float32, which stay refused.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.nn import functional

from archsearch.blocks.kernels.modes import is_eager_cuda, is_exported, is_plain, is_traced, runs_on_cuda

MOST_ROWS = 65_535  # of fused attention with gradients
_FEW_KEYS = 16  # by hand where fused attention is too long
_TINY = 16  # query-key pairs of a window
_WINDOW = 64  # queries and keys of a window that is by hand with a bias: 49, and 50 with a messenger
_LARGE_NORM = 6_000_000  # numbers, of which LayerNorm takes longer than a launch
_MOST_CHANNELS = 4096  # a row must fit into the registers of one program
_LARGE_PATCH, _SMALL_STRIDE, _FEW_CHANNELS = 8, 4, 8
_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_too_long(query: Tensor) -> bool:
    """Whether fused attention with gradients would fail for its first dimension; on meta tensors as on CUDA, and never asked in an export."""
    if query.device.type not in ("cuda", "meta") or not torch.is_grad_enabled() or is_exported():
        return False
    return query.shape[0] > MOST_ROWS


def is_unfused(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """Whether attention is computed by hand, as the table has it."""
    queries, keys = query.shape[-2], key.shape[-2]
    if runs_on_cuda(query):
        is_biased_window = bias is not None and max(queries, keys) <= _WINDOW and query.dtype == torch.bfloat16
        if queries * keys <= _TINY or is_biased_window:
            return True
    return keys <= _FEW_KEYS and is_too_long(query)


def is_large_patch(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether a strided convolution is faster over `pixel_unshuffle`: of few channels, with a kernel of several strides."""
    kernel = weight.shape[-1]
    is_large = kernel >= _LARGE_PATCH and stride >= _SMALL_STRIDE and kernel % stride == 0
    return is_large and weight.shape[1] < _FEW_CHANNELS and is_plain(weight) and runs_on_cuda(x)


def unshuffled_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution of stride s whose kernel is a multiple of s, as one of kernel k / s over cells of s x s pixels; (B, C, H, W) -> (B, O, h, w)."""
    outputs, inputs, kernel, _ = weight.shape
    taps = kernel // stride
    # What lies behind the last whole cell is in no patch.
    bottom, right = (padding - (side + 2 * padding) % stride for side in x.shape[-2:])
    cells = functional.pixel_unshuffle(functional.pad(x, (padding, right, padding, bottom)), stride)
    split = weight.view(outputs, inputs, taps, stride, taps, stride).permute(0, 1, 3, 5, 2, 4)
    of_cells = split.reshape(outputs, inputs * stride**2, taps, taps)
    return functional.conv2d(cells.contiguous(memory_format=torch.channels_last), of_cells, bias)


def is_sampled(x: Tensor) -> bool:
    """Whether a deformable convolution samples by `grid_sample`: on the CPU, and on CUDA in training; never where it is traced or counted."""
    if x.device.type == "cpu":
        return not is_traced()
    return torch.is_grad_enabled() and runs_on_cuda(x)


def is_norm_triton(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether LayerNorm is Triton's; its values and type are torch's, under autocast float32."""
    if not is_eager_cuda(x) or x.numel() < _LARGE_NORM or not is_plain(weight, bias):
        return False
    wanted = torch.float32 if torch.is_autocast_enabled("cuda") else x.dtype
    is_typed = x.dtype in _TRITON_TYPES and weight.dtype == bias.dtype == wanted
    return is_typed and x.shape[-1] <= _MOST_CHANNELS and has_triton()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension by Triton."""
    out: Tensor = torch.ops.archsearch.layer_norm(x, weight, bias, eps)
    return out


def is_depthwise_triton(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether a size-keeping depthwise convolution is Triton's: where it is dilated."""
    if dilation == 1 or not runs_on_cuda(x) or not is_plain(weight):
        return False
    is_typed = x.dtype in _TRITON_TYPES and (x.dtype == weight.dtype or torch.is_autocast_enabled("cuda"))
    return is_typed and has_triton()


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """The same by Triton, (B, C, H, W) -> the same in channels_last memory; under autocast of its type, as torch's convolution."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    tokens, shift = x.permute(0, 2, 3, 1).to(dtype), None if bias is None else bias.to(dtype)
    out: Tensor = torch.ops.archsearch.depthwise(tokens, weight.to(dtype), shift, dilation)
    return out.permute(0, 3, 1, 2)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it untyped
def has_triton() -> bool:
    """Whether our Triton operations work here, which are registered by the first call; a compiler takes the answer as a constant."""
    return _has_triton()


@functools.cache
def _has_triton() -> bool:
    """By running one of them, since Triton's package alone does not do: it needs a C compiler and a card that it knows."""
    if torch.version.hip is not None:
        return False
    try:
        from archsearch.blocks.kernels import triton_depthwise, triton_layer_norm  # noqa: F401  # their import registers the operations

        few = torch.ones(1, 16, device="cuda")
        torch.ops.archsearch.layer_norm(few, few[0], few[0], 1e-5)
    except Exception as error:  # of many kinds: an import, a compiler that is missing, a driver
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"Triton does not work here ({first_line}); slower operations of PyTorch are used", stacklevel=2)
        return False
    return True
