"""The Triton operations without a GPU: values in Triton's interpreter, shapes and the compiler's graph on fake tensors, and code for a card."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.nn import functional

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA")
CASES = Path(__file__).with_name("triton_cases.py")
LAYER_NORM, DEPTHWISE = (
    importlib.import_module(f"archsearch.blocks.kernels.triton_{name}") for name in ("layer_norm", "depthwise")
)


@pytest.mark.slow
def test_values_in_the_interpreter() -> None:
    """In a process of its own: Triton is interpreted, or not, from the first import of it on."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def _operands(name: str) -> tuple[Any, ...]:
    """The operation, torch's own, and how to make the operands."""
    if name == "layer_norm":
        return (
            lambda x, weight, bias: LAYER_NORM.layer_norm(x, weight, bias, 1e-5),
            lambda x, weight, bias: functional.layer_norm(x, (24,), weight, bias, 1e-5),
            [(2, 3, 5, 24), (24,), (24,)],
        )
    return (
        lambda x, weight, bias: DEPTHWISE.depthwise(x, weight, bias, 2),
        lambda x, weight, bias: functional.conv2d(
            x.permute(0, 3, 1, 2), weight, bias, padding=2, dilation=2, groups=6
        ).permute(0, 2, 3, 1),
        [(2, 3, 5, 6), (6, 1, 3, 3), (6,)],
    )


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    strides = [step for step, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]
    return tensor.shape, tensor.dtype, strides


@pytest.mark.parametrize("name", ["layer_norm", "depthwise"])
def test_shapes_types_and_layouts_are_those_of_torchs_operation(name: str) -> None:
    """On fake tensors, forward and backward."""
    own, standard, shapes = _operands(name)
    with FakeTensorMode():
        leaves = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        found, wanted = ([out, *torch.autograd.grad(out.sum(), leaves)] for out in (own(*leaves), standard(*leaves)))
    assert [_layout(tensor) for tensor in found] == [_layout(tensor) for tensor in wanted]


@pytest.mark.parametrize("name", ["layer_norm", "depthwise"])
def test_a_compiler_sees_the_kernels_in_one_graph(name: str) -> None:
    """Forward and backward; nothing is run, which would need a GPU."""
    own, _, shapes = _operands(name)
    targets: list[set[str]] = []

    def note(graph: torch.fx.GraphModule, examples: Any) -> Any:
        targets.append({str(node.target) for node in graph.graph.nodes})
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        values = [node and node.meta["val"] for node in output.args[0]]
        kinds = [None if value is None else (value.shape, value.dtype) for value in values]
        return make_boxed_func(lambda *args: [kind and torch.zeros(kind[0], dtype=kind[1]) for kind in kinds])

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    compiled: Any = torch.compile(own, fullgraph=True, backend=backend)
    leaves = [torch.ones(shape, requires_grad=True) for shape in shapes]
    torch.autograd.backward(compiled(*leaves).sum())
    assert len(targets) == 2
    assert all(any("triton_kernel_wrapper" in target for target in graph) for graph in targets)


@pytest.mark.slow
def test_the_kernels_compile_for_a_card() -> None:
    """The interpreter takes more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget

    data, sums = "*bf16", "*fp32"
    norm = {"channels": 96, "block": 128}
    sides = {"height": "i32", "width": "i32", "channels": "i32"}
    taps = {"kernel": 7, "dilation": 3, "block": 64}
    kernels = [
        (LAYER_NORM._forward, dict.fromkeys(("x", "weight", "bias", "out"), data), norm | {"tile": 32}),
        (
            LAYER_NORM._backward,
            dict.fromkeys(("grad", "x", "weight", "grad_x"), data) | {"sums": sums},
            norm | {"tile": 16},
        ),
        (
            DEPTHWISE._forward,
            dict.fromkeys(("x", "weight", "bias", "out"), data) | sides,
            taps | {"tile": 16, "has_bias": True},
        ),
        (
            DEPTHWISE._weight_gradient,
            dict.fromkeys(("grad", "x"), data) | {"sums": sums, "rows": "i32"} | sides,
            taps | {"taps": 8, "tile": 8},
        ),
    ]
    for kernel, arguments, constants in kernels:
        scalars = {"rows": "i32", "eps": "fp32"} if "eps" in kernel.arg_names else {}
        signature = arguments | scalars | dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert "ld.global" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
