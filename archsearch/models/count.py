"""Counting of built models by two independent counters, and the recount of the papers' models beside their exact costs.

The counters are fvcore on CPU tensors, with handlers for operations that it misses, and torch's FlopCounterMode on meta tensors. fvcore traces, and a
traced convolution on meta tensors fails in torch 2.14 (its meta kernel checks sizes in Python, where a tracer has made them tensors); patched to pass
it counts 0 for the convolution. On the CPU FlopCounterMode in turn misses fused attention. So each counter gets the device on which it is right.
No operation counts 0 in silence: one without a formula that is not on the list of free ones fails the count, which names it.
"""

import contextlib
import copy
import math
import multiprocessing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from archsearch.cores import usable_cores
from archsearch.errors import RunError
from archsearch.models.network import build_without_weights
from archsearch.space import ImageSize, paper
from archsearch.system import Progress, ignore, without_interrupts
from archsearch.units import sides

# Each process that counts takes up to 2.3 GiB, for the largest model (van_b6).
_MOST_PROCESSES = 4

# Free by the convention of blocks/cost.py: elementwise arithmetic, activations, softmax, average pooling, and moving data.
_FREE_TRACED = frozenset(
    """abs add add_ arange avg_pool2d bias cat clone constant_pad_nd contiguous copy_ detach div div_ expand expand_as fill_ flatten
    floor_divide full gelu gelu_ gt index index_put_ index_select mean meshgrid mul mul_ neg new_zeros ones pad permute relu relu_ repeat
    reshape roll rsub select slice softmax split squeeze stack sub sub_ sum t to transpose type_as unbind unflatten unsqueeze view where zeros
    zeros_like""".split()
)
_FREE_DISPATCHED = _FREE_TRACED | frozenset(
    """_native_batch_norm_legit_no_training _reshape_alias _safe_softmax _softmax _to_copy _unsafe_view alias as_strided cudnn_batch_norm
    empty empty_like empty_strided lift_fresh native_batch_norm native_layer_norm new_empty new_full scalar_tensor split_with_sizes""".split()
)
# Free by the same convention, in networks that are not ours: further activations, elementwise arithmetic, comparisons, pooling, and moving data.
_FREE_ELSEWHERE = frozenset(
    """abs_ addcmul all amax amin any argmax argmin argsort avg_pool1d bitwise_and bitwise_not bitwise_or broadcast_to celu chunk clamp clamp_ clamp_max
    clamp_min col2im cos cumsum dropout dropout_ elu elu_ empty eq erf exp eye feature_dropout flip floor full_like gather ge hardsigmoid hardsigmoid_ hardswish
    hardswish_ hardtanh hardtanh_ im2col le leaky_relu leaky_relu_ linalg_vector_norm linspace log log_sigmoid log_softmax logical_and logical_not logical_or lt
    masked_fill masked_fill_ max max_pool1d max_pool2d max_pool3d maximum min minimum mish mish_ movedim narrow ne new_ones norm ones_like pixel_shuffle
    pixel_unshuffle pow prelu reciprocal relu6 relu6_ repeat_interleave reshape_as rot90 round rsqrt scatter selu selu_ sigmoid sigmoid_ sign silu silu_
    sin softplus sort sqrt square std sub_ swapaxes tanh tanh_ tile topk tril triu unsafe_chunk unsafe_split unsqueeze_ var view_as zero_""".split()
)


def count_fvcore(model: nn.Module, image_size: ImageSize, in_chans: int = 3) -> int:
    """MACs of one image in eval mode by fvcore, with handlers for fused attention and deformable convolution.

    Raises RunError naming any operation that has no handler and is not free.
    """
    macs, unsupported = _count_macs(model, image_size, in_chans)
    _refuse_unknown(unsupported - _FREE_TRACED, "fvcore")
    return macs


def count_known(model: nn.Module, image_size: ImageSize, in_chans: int = 3) -> tuple[int, tuple[str, ...]]:
    """MACs as `count_fvcore`, of a network that is not ours; with the operations, sorted, that have no formula and are not free: they count 0."""
    free = {"aten::adaptive_avg_pool2d": lambda inputs, outputs: 0}  # for which fvcore counts its input
    with _attention_in_parts():
        macs, unsupported = _count_macs(model, image_size, in_chans, free)
    return macs, tuple(sorted(unsupported - _FREE_TRACED - _FREE_ELSEWHERE))


def _count_macs(
    model: nn.Module, image_size: ImageSize, in_chans: int, more_handlers: Mapping[str, Any] = MappingProxyType({})
) -> tuple[int, set[str]]:
    """MACs by fvcore, and the names of the operations that it has no formula for."""
    handlers = {
        "aten::scaled_dot_product_attention": _attention_macs,
        "torchvision::deform_conv2d": _deform_conv_macs,
        **more_handlers,
    }
    macs, unsupported = _analyse("FlopCountAnalysis", model, image_size, in_chans, handlers)
    return macs, {name.removeprefix("aten::") for name in unsupported}


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Have `nn.MultiheadAttention` run its linear layers and its attention one by one: its single fast operation has no formula."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count_activations(model: nn.Module, image_size: ImageSize, in_chans: int = 3) -> int:
    """Elements that convolutions, linear layers and plain matrix products write for one image in eval mode, by fvcore with a handler for deformable ones.

    Any other operation counts 0, as in timm's `macts`: fused attention, norms, activation functions, and what moves data.
    """
    handlers = {"torchvision::deform_conv2d": lambda inputs, outputs: math.prod(_sizes(outputs[0]))}
    return _analyse("ActivationCountAnalysis", model, image_size, in_chans, handlers)[0]


def _analyse(
    name: Literal["FlopCountAnalysis", "ActivationCountAnalysis"],
    model: nn.Module,
    image_size: ImageSize,
    in_chans: int,
    handlers: Mapping[str, Any],
) -> tuple[int, set[str]]:
    """The total of an analysis of fvcore on one image, and the operations that it has no handler for."""
    cpu = model if _is_ready(model) else copy.deepcopy(model).cpu().eval()
    with warnings.catch_warnings():
        # fvcore's import and torch.jit.trace both warn that TorchScript is deprecated; a user cannot change that.
        warnings.simplefilter("ignore")
        import fvcore.nn  # late: importing it runs torch.jit.script

        analysis = getattr(fvcore.nn, name)(cpu, _image(image_size, in_chans, "cpu"))
        analysis.set_op_handle(**handlers)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with torch.no_grad():
            return int(analysis.total()), set(analysis.unsupported_ops())


def count_flop_counter(model: nn.Module, image_size: ImageSize, in_chans: int = 3) -> int:
    """MACs of one image in eval mode by FlopCounterMode, without norms; its count of two FLOPs a multiply-add is halved.

    Raises RunError naming any operation that has no formula and is not free.
    """
    import torchvision  # noqa: F401  # late, it is slow to import; registers torchvision::deform_conv2d with torch.ops

    formulas: dict[Any, Any] = {
        torch.ops.torchvision.deform_conv2d: lambda x, weight, *_, out_shape, **__: (
            2 * math.prod((*out_shape, *weight[1:]))
        ),
        # Four multiply-adds an element of the resized map, as fvcore counts it.
        torch.ops.aten.upsample_bilinear2d: lambda *_, out_shape, **__: 2 * 4 * math.prod(out_shape),
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    seen = _SeenOps()
    with torch.no_grad(), seen, counter:
        _on_meta(model)(_image(image_size, in_chans, "meta"))
    counted = {op.__name__ for op in counter.flop_registry}
    _refuse_unknown(seen.names - counted - _FREE_DISPATCHED, "FlopCounterMode")
    return int(counter.get_total_flops()) // 2


def _is_ready(model: nn.Module) -> bool:
    """Whether the model lies on the CPU and in eval mode: tracing it as it is changes nothing, and a copy takes a tenth of the count."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    return on_cpu and not any(module.training for module in model.modules())


class _SeenOps(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped
    """Records the name of every dispatched operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _refuse_unknown(unknown: set[str], counter: str) -> None:
    """Raise RunError naming operations without a formula."""
    if unknown:
        raise RunError(f"{counter} has no formula for {', '.join(sorted(unknown))}; nothing may count 0 in silence")


def _image(image_size: ImageSize, in_chans: int, device: str) -> torch.Tensor:
    return torch.zeros(1, in_chans, *sides(image_size), device=device)


def _on_meta(model: nn.Module) -> nn.Module:
    """The model in eval mode on the meta device: itself where it is there already, else a copy of its structure without the weights."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return model.eval()
    memo = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in (*model.parameters(), *model.buffers())}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=parameter.requires_grad)
    with torch.device("meta"):
        return copy.deepcopy(model, memo).eval()


def _sizes(value: Any) -> list[int]:
    """Shape of a traced tensor."""
    sizes: list[int] = value.type().sizes()
    return sizes


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Query-key and weight-value products of softmax attention."""
    query, key, value = (_sizes(item) for item in inputs[:3])
    pairs = math.prod(query[:-1]) * key[-2]
    return pairs * (query[-1] + value[-1])


def _deform_conv_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """A deformable convolution counts as the convolution after sampling; the bilinear sampling is not counted."""
    weight, out = _sizes(inputs[1]), _sizes(outputs[0])
    return math.prod(out) * math.prod(weight[1:])


def recount(name: str) -> dict[str, Any]:
    """Build a paper's model and count it: `macs_fvcore`, `params_built`, and as `is_equal` whether both equal the exact costs."""
    arch = paper(name)
    model = build_without_weights(arch)
    zeros = {key: torch.zeros_like(tensor, device="cpu") for key, tensor in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    cost, macs = arch.cost(), count_fvcore(model, arch.image_size, arch.in_chans)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"macs_fvcore": macs, "params_built": params, "is_equal": (cost.macs, cost.params) == (macs, params)}


def recount_all(names: Sequence[str], progress: Progress = ignore) -> dict[str, dict[str, Any]]:
    """`recount` for each name, the largest models first, in up to four processes at once.

    Raises RunError when a process is killed, for example for lack of memory.
    """
    largest_first = sorted(names, key=lambda name: -paper(name).cost().macs)
    processes = min(usable_cores() or 1, _MOST_PROCESSES, len(names))
    context = multiprocessing.get_context("spawn")
    with without_interrupts():  # submitting starts the processes
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
        tasks = {pool.submit(recount, name): name for name in largest_first}
    try:
        found: dict[str, dict[str, Any]] = {}
        for task in as_completed(tasks):
            found[tasks[task]] = task.result()
            progress(len(found), len(names), f"counted {tasks[task]}")
        return found
    except BrokenProcessPool as error:
        raise RunError(
            f"a process that counted models was killed; each takes up to 2.3 GiB, and {processes} run at once"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
