"""Which layer of a network an error came from, for the reason of a failed trial."""

import traceback
from types import FrameType

from torch import Tensor, nn

from archsearch.units import format_image


def failing_layer(error: BaseException) -> str | None:
    """`stages.2.blocks.1.attn at batch 128, 224 px`: the innermost layer at work, and the network's input; None where no network was.

    Of a backward pass only that it was one is known: autograd keeps no layers. Read from the frames of the error's traceback, so that
    nothing is paid where nothing fails.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [part for frame in frames if isinstance(part := frame.f_locals.get("self"), nn.Module)]
    if modules:
        names = {id(part): name for name, part in modules[0].named_modules()}
        innermost = next(names[id(part)] for part in reversed(modules) if id(part) in names)
        # `_orig_mod` is what torch.compile puts around a network.
        where = innermost.removeprefix("_orig_mod").removeprefix(".") or "the network"
    elif any(frame.f_code.co_name == "backward" for frame in frames):
        where = "the backward pass"
    else:
        return None
    images = next(filter(None, map(_images, frames)), None)
    return where if images is None else f"{where} at {images}"


def _images(frame: FrameType) -> str | None:
    """Batch and image size of the first (B, C, H, W) tensor among a frame's variables."""
    arguments = frame.f_locals.get("args")
    for value in (*frame.f_locals.values(), *(arguments if isinstance(arguments, tuple) else ())):
        if isinstance(value, Tensor) and value.ndim == 4:
            batch, _, *sides = value.shape
            return f"batch {batch}, {format_image((sides[0], sides[1]))}"
    return None
