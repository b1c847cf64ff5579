"""The forward and backward pass of a training compiled, the whole network or block by block, by the recipe's `mode`."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler import cause_of, is_compile_error, with_own_code
from archsearch.device import is_out_of_memory
from archsearch.errors import RunError, UserError, first_line
from archsearch.proxy.training.recipe import Recipe

# Graphs of one function: of each kind of block, for each size of the parts of a batch. Torch's 8 are few where memory halves the parts.
_MOST_GRAPHS = 64

Forwards = Mapping[nn.Module, Callable[..., Tensor]]


def compiled_forwards(model: nn.Module, recipe: Recipe) -> Forwards:
    """What takes the place of `forward` while training: of the network, of each of its blocks, or of nothing where the mode is eager.

    Nothing is compiled before the first call. Raises UserError for blocks of a network that is not built of stages.
    """
    if recipe.mode == "eager":
        return {}
    if recipe.mode == "compile":
        return {model: partial(_compiled(), model)}
    blocks = compiled_blocks(model)
    if not blocks:
        raise UserError(
            f"proxy recipe: mode is 'compile-blocks', and {type(model).__name__} has no stages of blocks; use 'compile'"
        )
    return blocks


def compiled_blocks(model: nn.Module, **options: Any) -> Forwards:
    """The forward of each block; those of one class in one stage share their code, and so a graph where they are alike.

    `options` are further ones of torch.compile.
    """
    stages = getattr(model, "stages", ())
    stage_of = {block: number for number, stage in enumerate(stages) for block in getattr(stage, "blocks", ())}
    kinds = {(number, type(block)) for block, number in stage_of.items()}
    compiled = {kind: _compiled(**options) for kind in kinds}
    return {block: partial(compiled[number, type(block)], block) for block, number in stage_of.items()}


def _compiled(**options: Any) -> Callable[..., Tensor]:
    """The forward pass of a module given first, as a compiled function with code of its own."""

    def forward(module: nn.Module, *inputs: Tensor) -> Tensor:
        output: Tensor = type(module).forward(module, *inputs)
        return output

    # In one graph: what is left out of it would be eager, and limited by what all networks share.
    return torch.compile(with_own_code(forward), dynamic=False, fullgraph=True, **options)


@contextmanager
def in_place(forwards: Forwards) -> Iterator[None]:
    """Inside, these modules run these functions. Raises RunError, with the reason, where one cannot be compiled."""
    if not forwards:  # the compiler's import takes a second
        yield
        return
    for module, forward in forwards.items():
        module.forward = forward
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS), warnings.catch_warnings():
            # The compiler asks every input whether it has gradients, of a block also those that are results of the block before.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    except Exception as error:
        if not is_compile_error(error) or is_out_of_memory(error):
            raise
        raise RunError(f"proxy training: the network cannot be compiled: {first_line(cause_of(error))}") from error
    finally:
        for module in forwards:
            del module.forward
