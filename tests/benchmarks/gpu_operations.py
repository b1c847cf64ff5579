"""Sections of `gpu.py` on single operations: the device's peaks, and ours against torch's."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from clock import Work
from gpu_rows import Row
from gpu_setting import Setting
from torch import Tensor
from torch.nn import functional
from torchvision.ops import deform_conv2d

from archsearch.blocks import kernels, lit

# Channels and side of the maps that the fixed trials have, by stage.
MAPS = ((64, 56), (96, 56), (128, 28), (192, 28), (320, 14), (384, 14), (512, 7), (768, 7))
DEPTHWISE_MAPS = ((64, 56), (128, 28), (320, 14), (512, 7))
DEPTHWISE = ((7, 3), (5, 1), (3, 1))  # kernel and dilation
STEM = ((4, 48), (8, 24), (16, 12), (32, 12))  # CrossFormer's: kernel and channels, stride 4
MERGINGS = ((96, 56), (192, 28), (384, 14))
# Windows or images, heads, queries, keys; the first in units of a batch of 128. 32 channels.
ATTENTION = ((64, 3, 49, 49), (16, 6, 49, 49), (196, 6, 4, 4), (1, 2, 3136, 49), (1, 12, 3136, 32), (1, 8, 196, 196))
HEAD_DIM = 32


Ways = Mapping[str, Callable[..., Tensor]]


class Case(NamedTuple):
    """An operation at one shape, its tensors, and the ways to compute it by the side of a row."""

    what: str
    tensors: tuple[Tensor, ...]
    ways: Ways
    is_trained: bool = True


def peaks(setting: Setting) -> Iterator[Row]:
    """TFLOP/s of a large matrix product by dtype, and TB/s of a copy, read and written."""
    side = 256 if setting.smoke else 8192
    for name, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        row = {"section": "peaks", "what": "matrix product", "side": "torch", "dtype": name, "unit": "TFLOP/s"}
        if name == "tf32" and not setting.is_cuda:
            yield {**row, "note": "skipped: TF32 needs CUDA"}
            continue
        yield setting.figure(row, partial(_product_tflop_s, side, dtype, name == "tf32", setting))
    copied = {"section": "peaks", "what": "copy", "side": "torch", "unit": "TB/s"}
    yield setting.figure(copied, partial(_copy_tb_s, 2**20 if setting.smoke else 2**31, setting))


def _product_tflop_s(side: int, dtype: torch.dtype, is_tf32: bool, setting: Setting) -> float:
    a, b = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if is_tf32 else "ieee"
    try:
        return 2 * side**3 / setting.median_seconds(lambda: a @ b) / 1e12
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _copy_tb_s(size: int, setting: Setting) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * size / setting.median_seconds(lambda: target.copy_(source)) / 1e12


def kernels_section(setting: Setting) -> Iterator[Row]:
    """Milliseconds in bfloat16; sides: ours, torch's own operation, and other ways to the same values."""
    for cases in (_layer_norm, _depthwise, _patch_conv, _attention, _deformable):
        for case in cases(setting):
            for side, way in case.ways.items():
                for mode in PASSES if case.is_trained else ("forward",):
                    dtype = str(case.tensors[0].dtype).removeprefix("torch.")
                    row = {
                        "section": "kernels",
                        "what": case.what,
                        "side": side,
                        "dtype": dtype,
                        "mode": mode,
                        "unit": "ms",
                    }
                    yield setting.figure(row, partial(_milliseconds, PASSES[mode], way, case.tensors, setting))


def _milliseconds(
    make: Callable[..., Work], way: Callable[..., Tensor], tensors: tuple[Tensor, ...], setting: Setting
) -> float:
    return 1000 * setting.median_seconds(make(way, tensors))


def _inference(way: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Work:
    def forward() -> None:
        with torch.inference_mode():
            way(*tensors)

    return forward


def _training(way: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Work:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    gradient = torch.randn_like(way(*leaves))

    def step() -> None:
        torch.autograd.grad(way(*leaves), leaves, gradient)

    return step


# In inference mode, and with the gradients of all tensors.
PASSES: dict[str, Callable[..., Work]] = {"forward": _inference, "forward+backward": _training}


def _random(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device, dtype=torch.bfloat16)


def _map(setting: Setting, channels: int, side: int) -> Tensor:
    """(B, C, H, W) in channels_last memory."""
    return _random(setting, setting.batch_size, channels, side, side).contiguous(memory_format=torch.channels_last)


def _own(name: str, **constants: Any) -> Callable[..., Tensor]:
    """A kernel of ours by its name, looked up when it is called: one that this version lacks costs its own row."""
    return lambda *tensors: getattr(kernels, name)(*tensors, **constants)


def _few(cases: tuple[Any, ...], setting: Setting) -> tuple[Any, ...]:
    return cases[-1:] if setting.smoke else cases


def _layer_norm(setting: Setting) -> Iterator[Case]:
    """Over the channels of a map."""
    for channels, side in _few(MAPS, setting):
        x, weight, bias = _map(setting, channels, side).permute(0, 2, 3, 1), *_random(setting, 2, channels)
        ways: Ways = {
            "ours": _own("layer_norm", eps=1e-6),
            "torch": lambda x, weight, bias: functional.layer_norm(x, weight.shape, weight, bias, 1e-6),
        }
        yield Case(f"layer norm {side}x{side}x{channels}", (x, weight, bias), ways)


def _depthwise(setting: Setting) -> Iterator[Case]:
    for kernel, dilation in DEPTHWISE:
        for channels, side in _few(DEPTHWISE_MAPS, setting):
            x, weight, bias = _map(setting, channels, side), _random(setting, channels, 1, kernel, kernel), _random(setting, channels)  # fmt: skip
            plain = partial(functional.conv2d, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)
            ways: Ways = {
                "ours": _own("depthwise", **({"dilation": dilation} if dilation > 1 else {})),
                "torch": plain,
                "torch, contiguous": lambda x, weight, bias, plain=plain: plain(x.contiguous(), weight, bias),
            }
            name = f"depthwise {kernel}x{kernel}" + f" dilation {dilation}" * (dilation > 1)
            yield Case(f"{name} {side}x{side}x{channels}", (x, weight, bias), ways)


def _patch_conv(setting: Setting) -> Iterator[Case]:
    """The branches of CrossFormer's stem."""
    for kernel, channels in _few(STEM, setting):
        tensors = (
            _map(setting, 3, setting.image_size),
            _random(setting, channels, 3, kernel, kernel).contiguous(memory_format=torch.channels_last),
            _random(setting, channels),
        )
        sizes = {"stride": 4, "padding": (kernel - 4) // 2}
        ways: Ways = {"ours": _own("patch_conv", **sizes), "torch": partial(functional.conv2d, **sizes)}
        yield Case(f"patch {kernel}x{kernel} stride 4", tensors, ways, is_trained=False)  # images take no gradient


def _attention(setting: Setting) -> Iterator[Case]:
    for groups, heads, queries, keys in _few(ATTENTION, setting):
        batch = groups * setting.batch_size
        query, key, value = (_random(setting, batch, heads, length, HEAD_DIM) for length in (queries, keys, keys))
        shape = f"{batch}x{heads}x{queries}x{keys}"
        ways: Ways = {"ours": _own("attention"), "torch": _fused, "by hand": _by_hand}
        yield Case(f"attention {shape}", (query, key, value), ways)
        yield Case(f"attention with bias {shape}", (query, key, value, _random(setting, 1, heads, queries, keys)), ways)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = (query * HEAD_DIM**-0.5) @ key.transpose(-1, -2)
    out: Tensor = (scores if bias is None else scores + bias).softmax(-1) @ value
    return out


def _deformable(setting: Setting) -> Iterator[Case]:
    """LIT's merging with its offsets given; in float32, as it is computed."""
    for channels, side in _few(MERGINGS, setting):
        x, offsets = _map(setting, channels, side), 0.5 * _random(setting, setting.batch_size, 8, side // 2, side // 2)
        weight, bias = _random(setting, 2 * channels, channels, 2, 2), _random(setting, 2 * channels)
        ways: Ways = {"torch": partial(deform_conv2d, stride=2), "by sampling": lit.deform_by_sampling}
        yield Case(
            f"deformable merging {side}x{side}x{channels}",
            (x.float(), offsets.float(), weight.float(), bias.float()),
            ways,
        )
