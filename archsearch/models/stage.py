"""A stage of a built network, and the names of its parameters."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archsearch.errors import UserError
from archsearch.space import Arch


class NetworkStage(nn.Module):
    """The layers of a stage as children: `downsample`, `positions`, `messengers`, `blocks`, `peg`, `norm`, `patches`, those that it has.

    `blocks` is a Sequential. `forward` runs what the children are at that moment, so a child that is replaced or wrapped takes effect.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        """Names and modules in order of execution; blocks are named `blocks.0`, `blocks.1` and so on."""
        super().__init__()
        blocks = nn.Sequential()
        for name, module in layers:
            if name.startswith("blocks."):
                self.add_module("blocks", blocks)
                blocks.append(module)
            else:
                self.add_module(name, module)
        names = [name for name, _ in layers]
        numbers = [place for place, name in enumerate(names) if name.startswith("blocks.")]
        if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:  # nothing stands between the blocks
            names[numbers[0] : numbers[-1] + 1] = ["blocks"]
        self._order = tuple(names)
        self.grad_checkpointing = False

    def steps(self) -> list[tuple[str, nn.Module]]:
        """Names and children in order of execution; the blocks one by one where another layer stands between them."""
        return [(name, self.get_submodule(name)) for name in self._order]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H_out, W_out)."""
        for name, module in self.steps():
            x = self.run(name, module, x)
        return x

    def run(self, name: str, module: nn.Module, x: Tensor) -> Tensor:
        """One step; of blocks in training with `grad_checkpointing` only the inputs are kept for the gradients."""
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled() and name.startswith("blocks")):
            out: Tensor = module(x)
            return out
        for block in module if name == "blocks" and isinstance(module, nn.Sequential) else [module]:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class StagedNetwork(nn.Module):
    """What a network and its feature network share: built of stages, for images of `size` (height, width)."""

    arch: Arch
    size: tuple[int, int]

    def refuse(self, images: Tensor, error: Exception) -> NoReturn:
        """Raise the error of a pass over images: as the sentence of `Arch.check` where their size is the reason, which names sizes that work."""
        if images.ndim != 4:
            raise error
        height, width = images.shape[-2:]
        try:
            self.arch.check((height, width))
        except UserError as refusal:
            raise refusal from error
        if not isinstance(error, UserError):
            raise error
        built = f"{self.size[0]}x{self.size[1]}"
        raise UserError(f"{error} (images of {height}x{width} came, this one was built for {built})") from error

    def fix_size(self, images: Tensor) -> None:
        """In torch.compile, make the images' sides constants where they are `size`; with `dynamic=True` they are symbols as the batch is.

        Windows of a map of symbolic sides take torch minutes of algebra: davit_tiny 115 s with the eager backend on one core, so 12 s.
        """
        if (
            torch.compiler.is_dynamo_compiling()
            and not torch.compiler.is_exporting()
            and images.shape[-2:] == self.size
        ):
            return  # the comparison is what fixes them

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # timm's signature
        """Whether training keeps only the blocks' inputs and computes the rest again for the gradients: less memory, more time."""
        for module in self.modules():
            if isinstance(module, NetworkStage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the papers train without weight decay besides norms and biases: tables of positions, and tokens."""
        names = ("relative_position_bias_table", "rel_pos_msg", "table", "token")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in names}


_EARLIER = re.compile(r"(stages\.|stage)(\d+)\.(?:blocks\.(\d+)\.)?")


def rename_earlier_keys(
    state_dict: dict[str, Any], prefix: str, moved: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Rename, in place, the keys under `prefix` of versions that counted stages and blocks from 1; `moved` are further places, before and now."""
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    counts_from_1 = any(".blocks.1." in name for name in given) and not any(
        name.startswith("stages.0.") or ".blocks.0." in name for name in given
    )
    if not counts_from_1:
        return
    for name in given:
        del state_dict[prefix + name]
    for name, value in given.items():
        state_dict[prefix + _rename(name, moved)] = value


def _rename(name: str, moved: Mapping[str, str]) -> str:
    found = _EARLIER.match(name)
    if not found:
        return next((now + name.removeprefix(before) for before, now in moved.items() if name.startswith(before)), name)
    kind, stage, block = found.groups()
    # `stage1` of a feature network goes on counting from 1.
    number = int(stage) - 1 if kind == "stages." else stage
    place = f"{kind}{number}." + (f"blocks.{int(block) - 1}." if block else "")
    return place + name[found.end() :].replace("stage-norm.", "norm.")
