"""Arch -> nn.Module: the second reader of the one walk."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from archsearch.arch import Arch, ImageSize


class Network(nn.Module):
    """The layers of an architecture in order, under their dotted paths (`stages.2.blocks.1.attn...`); (B, C, H, W) in, logits out."""

    def __init__(
        self, arch: Arch, *, image_size: ImageSize | None = None, in_chans: int = 3, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.arch_id, self.name = arch.arch_id, arch.name
        self._sequence: list[nn.Module] = []
        placed = list(arch.layers(image_size, in_chans))
        num_blocks = sum(item.layer.role == "block" for item in placed)
        block = 0
        for item in placed:
            rate = 0.0
            if item.layer.role == "block":
                rate = drop_path * block / max(num_blocks - 1, 1)  # linear from 0 at the first block, as in all papers
                block += 1
            self._add(item.path, item.layer.build(item.shape, rate))

    def _add(self, path: str, module: nn.Module) -> None:
        """Register a module under a dotted path."""
        parent: nn.Module = self
        *parents, last = path.split(".")
        for name in parents:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, module)
        self._sequence.append(module)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images in any memory format -> (B, num_classes) logits."""
        x = x.contiguous(memory_format=torch.channels_last)
        for module in self._sequence:
            x = module(x)
        return x


def build(
    arch: Arch,
    *,
    image_size: ImageSize | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
) -> Network:
    """The network of an architecture, initialised as its papers do, in channels_last memory.

    image_size: side or (height, width) in pixels, the architecture's own by default. drop_path: rate of the last block, rising linearly from 0.
    Raises UserError when a layer cannot stand at that size.
    """
    if num_classes is not None:
        arch = replace(arch, head=replace(arch.head, num_classes=num_classes))  # type: ignore[call-arg]  # every head has classes
    arch.check(image_size)
    network = Network(arch, image_size=image_size, in_chans=in_chans, drop_path=drop_path)
    return network.to(memory_format=torch.channels_last)
