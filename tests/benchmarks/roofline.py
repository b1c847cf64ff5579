"""This machine's roofs, measured: GEMM by dtype, memory bandwidth; and the bytes that a pass over a module moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from clock import DTYPES, Work, seconds_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# (rows, inputs, outputs): large cubes, and the Linear layers of a usual model at batch 4, stage by stage.
GEMMS = ((2048, 2048, 2048), (1024, 1024, 1024), (12544, 96, 384), (3136, 192, 768), (784, 384, 1536), (196, 768, 3072))
SMOKE_GEMMS = ((256, 256, 256),)
PROBE = (768, 768, 768)

# Far beyond any cache: three arrays of this many float32.
ARRAY = 48 * 2**20
SMOKE_ARRAY = 2**20
REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """GFLOP/s by dtype and GB/s of memory, each the best that was seen."""

    gemm_gflop_s: dict[str, float]
    memory_gb_s: float

    @classmethod
    def measure(cls, *, smoke: bool = False) -> Self:
        """About three seconds on one core."""
        sizes = SMOKE_GEMMS if smoke else GEMMS
        gemm = {name: max(gemm_gflop_s(size, dtype) for size in sizes) for name, dtype in DTYPES.items()}
        return cls(gemm_gflop_s=gemm, memory_gb_s=memory_gb_s(SMOKE_ARRAY if smoke else ARRAY))

    def best_of(self, other: Self) -> Self:
        """The higher of each."""
        gemm = {name: max(value, other.gemm_gflop_s[name]) for name, value in self.gemm_gflop_s.items()}
        return type(self)(gemm_gflop_s=gemm, memory_gb_s=max(self.memory_gb_s, other.memory_gb_s))

    def __str__(self) -> str:
        gemm = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in self.gemm_gflop_s.items())
        return f"GEMM {gemm}, memory {self.memory_gb_s:.1f} GB/s"


def gemm_gflop_s(size: Sequence[int], dtype: torch.dtype, repeats: int = REPEATS) -> float:
    """The fastest of some products (rows, inputs) x (outputs, inputs)^T, as a Linear layer has them."""
    rows, inputs, outputs = size
    left, right = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    out = torch.empty(rows, outputs, dtype=dtype)
    fastest = _fastest(lambda: torch.mm(left, right.t(), out=out), repeats)
    return 2 * rows * inputs * outputs / fastest / 1e9


def memory_gb_s(length: int) -> float:
    """The better of a copy (two arrays' bytes) and a triad a = b + 2c (three); lines read to be overwritten are not counted."""
    a, b, c = torch.empty(length), torch.randn(length), torch.randn(length)
    copy = 2 * b.nbytes / _fastest(lambda: a.copy_(b), REPEATS)
    triad = 3 * b.nbytes / _fastest(lambda: torch.add(b, c, alpha=2.0, out=a), REPEATS)
    return max(copy, triad) / 1e9


def _fastest(work: Work, repeats: int) -> float:
    work()
    return min(seconds_of(work) for _ in range(repeats))


class MovedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
    """Sums the bytes of inputs and outputs of every operation inside; views and bare allocations move none.

    Not for inference mode, where composite operations arrive whole.
    """

    total: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        ins = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not func.overloadpacket.__name__.startswith(("empty", "new_empty")) and not _is_view(func, ins, outs):
            self.total += sum(map(_bytes, ins)) + sum(map(_bytes, outs))
        return out


def _is_view(func: Any, ins: Sequence[Tensor], outs: Sequence[Tensor]) -> bool:
    """Whether nothing was computed: every output lies in an input's memory, and none was written to."""
    if func._schema.is_mutable:
        return False
    memory = {tensor.untyped_storage().data_ptr() for tensor in ins}
    return all(tensor.untyped_storage().data_ptr() in memory for tensor in outs)


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded dimension is one."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()
