"""The operations that blocks are made of, each computed in the faster of several ways; choices and their figures stand in `cpu` and `cuda`."""

from archsearch.blocks.kernels.attention import attention
from archsearch.blocks.kernels.cpu import cached_tensor
from archsearch.blocks.kernels.cuda import is_sampled
from archsearch.blocks.kernels.layers import (
    Depthwise,
    apply_gelu,
    apply_linear,
    apply_norm,
    depthwise,
    layer_norm,
    linear,
    patch_conv,
)
from archsearch.blocks.kernels.modes import is_counted, is_eager_cpu, is_traced

__all__ = [
    "Depthwise",
    "apply_gelu",
    "apply_linear",
    "apply_norm",
    "attention",
    "cached_tensor",
    "depthwise",
    "is_counted",
    "is_eager_cpu",
    "is_sampled",
    "is_traced",
    "layer_norm",
    "linear",
    "patch_conv",
]
