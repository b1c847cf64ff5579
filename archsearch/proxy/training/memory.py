"""How much memory a training step takes, found without computing one, and the parts of a batch that fit into a GPU's."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from archsearch.proxy.training.recipe import Recipe
from archsearch.units import DType

_CUDA = torch.device("cuda")
# Of the estimate that has to be free: what is not saved for the backward pass but lives beside it (workspaces, gradients of activations,
# images before their augmentation), and what the allocator cannot use between its blocks.
_MARGIN = 1.1
# Pixels of a batch up to which nothing is estimated, which takes a second or two: 128 images of 128 px, under 5 GiB for the largest of the fixed trials.
_CERTAIN_PIXELS = 2**21


def choose_micro_batch(model: nn.Module, recipe: Recipe, device: torch.device) -> int | None:
    """Images of a batch whose gradients are computed at once: halved until they fit into what the GPU has free; None where the whole batch does.

    The recipe's own number comes first. Nothing is estimated on other devices and for small batches. The model lies on the device already.
    """
    if recipe.micro_batch or device.type != "cuda" or recipe.batch_size * recipe.image_size**2 <= _CERTAIN_PIXELS:
        return recipe.micro_batch
    try:
        return fitting_part(model, recipe, _free_bytes(device))
    except RuntimeError as error:  # an operation that needs values, in a block of the user's
        warnings.warn(f"the memory of a training step could not be estimated ({error})", stacklevel=2)
        return None


def fitting_part(model: nn.Module, recipe: Recipe, free_bytes: int) -> int | None:
    """As `choose_micro_batch`, for so many free bytes beside the weights and a batch of two images or more."""
    whole, half = recipe.batch_size, recipe.batch_size // 2
    one, is_autocast = (3, recipe.image_size, recipe.image_size), recipe.dtype == "bfloat16"
    at_whole = activation_bytes(model, (whole, *one), is_autocast=is_autocast)
    # Linear in the images: what does not grow with them (weights in bfloat16, tables) is in both.
    an_image = (at_whole - activation_bytes(model, (half, *one), is_autocast=is_autocast)) / (whole - half)
    part = whole
    while part > 1 and _MARGIN * (state_bytes(model) + at_whole - an_image * (whole - part)) > free_bytes:
        part = (part + 1) // 2
    return None if part == whole else part


def state_bytes(model: nn.Module) -> int:
    """Bytes of gradients and of AdamW's two averages."""
    return 3 * sum(weight.nbytes for weight in model.parameters())


def train_step_bytes(model: nn.Module, shape: tuple[int, int, int, int], dtype: DType) -> int:
    """Bytes that a training step of images (B, C, H, W) needs on CUDA: weights, gradients, AdamW's two averages, and what the forward pass saves.

    Weights are float32, activations bfloat16 by autocast unless `dtype` is float32. Measured steps needed up to a tenth more or less.
    """
    saved = activation_bytes(model, shape, is_autocast=dtype != "float32")
    return sum(weight.nbytes for weight in model.parameters()) + state_bytes(model) + saved


def activation_bytes(model: nn.Module, shape: tuple[int, int, int, int], *, is_autocast: bool) -> int:
    """Bytes that a forward pass of images (B, C, H, W) saves for the backward pass on CUDA, each storage once, with the casts to bfloat16 of autocast.

    Exact for the operations that run: they run on tensors without values. Attention counts as memory-efficient wherever PyTorch may fuse it.
    """
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        fake = _without_values(model).train()
        batch = torch.empty(shape, device=_CUDA).to(memory_format=torch.channels_last)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, _FusedAttention(), _cuda_autocast(is_autocast):
            logits = fake(batch)  # kept to the end: what is saved lives as long
        for weight in fake.parameters():
            saved.pop(weight.untyped_storage()._cdata, None)
        del logits
        return sum(storage.nbytes() for storage in saved.values())


def _free_bytes(device: torch.device) -> int:
    """What the GPU has free, and what PyTorch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on CUDA whose tensors have no values; for an open FakeTensorMode, which needs no GPU."""
    memo: dict[int, Any] = {
        id(tensor): torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_CUDA)
        for tensor in (*model.parameters(), *model.buffers())
    }
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(memo[id(weight)], requires_grad=weight.requires_grad)
    return copy.deepcopy(model, memo)


class _FusedAttention(TorchFunctionMode):
    """Attention as the memory-efficient kernel saves it: without a GPU, PyTorch would choose the one by hand, which saves the probabilities."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(*args, named.get("attn_mask"), compute_log_sumexp=True)[0]


@contextmanager
def _cuda_autocast(is_enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16 on CUDA; torch.autocast refuses where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", is_enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()
