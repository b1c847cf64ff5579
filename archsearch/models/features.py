"""Feature pyramids for detection and segmentation: a classification network's stages as modules from map to map, under timm's `features_only` interface.

The children `stage1`, `stage2`, ... are run in order, each on the output of the one before, so torchvision's `IntermediateLayerGetter` (and with it
`BackboneWithFPN`), which does the same with the children that it needs, computes the same maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.blocks.base import Block, Layer, Shape
from archsearch.blocks.common import ChannelNorm, to_map, to_tokens
from archsearch.blocks.positions import from_windows, window_grid
from archsearch.errors import UserError
from archsearch.space.arch import Arch, ImageSize, Placed

# Where tokens travel from stage to stage (MSG-Transformer's messengers) a map carries the stream that it was cut from as an attribute of this name,
# for what runs the stages hands on the map alone. On the tensor, not in a cell that the stages share: copies, threads and runs cut short leave nothing.
_STREAM = "archsearch_stream"
_PROBE_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """What timm's `FeatureInfo` tells, in its words: `info` has a dict for every stage, `out_indices` says which of them are returned.

    Ours because importing timm's takes about two seconds.
    """

    info: tuple[dict[str, Any], ...]
    out_indices: tuple[int, ...]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Dicts of the returned stages, or of those numbered `idx` (from 0; one dict for one number), with these keys or all."""
        if isinstance(idx, int):
            return self.info[idx] if keys is None else {key: self.info[idx][key] for key in keys}
        return [self.get_dicts(keys, index) for index in (self.out_indices if idx is None else idx)]

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """One key of each: a list for the returned stages or the listed numbers, a value for one number."""
        found = self.get_dicts([key], idx)
        return found[key] if isinstance(idx, int) else [entry[key] for entry in found]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of the maps: pixels between two of their positions."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Names of the children that put the maps out."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]

    def __len__(self) -> int:
        return len(self.info)


class StageFeatures(nn.Module):
    """One stage: the previous stage's map (or the image) in, this stage's map out, without the tokens that may stand beside it.

    Where the previous stage's tokens go on, they are taken from its map, which carries them unseen: such a stage raises UserError on any other tensor.
    """

    def __init__(self, network: nn.Module, number: int, placed: Sequence[Placed]) -> None:
        super().__init__()
        self.number, self.out = number, placed[-1].out
        self.takes_tokens = placed[0].shape.tokens > 0
        self.hands_on_tokens = False
        modules = [network.get_submodule(item.path) for item in placed]
        makes_tokens = [item.out.tokens > item.shape.tokens == 0 for item in placed]
        self._sequence = list(zip(modules, makes_tokens, strict=True))
        if number == 1:
            self.add_module("stem", modules[0])
        for name, child in network.get_submodule(f"stages.{number}").named_children():
            self.add_module(name, child)

    def close(self, norm: nn.Module) -> None:
        """End on this norm, as `stage-norm`."""
        self.add_module("stage-norm", norm)
        self._sequence.append((norm, False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in any memory format -> (B, C_out, H_out, W_out) in channels_last memory."""
        stream = self._stream_of(x) if self.takes_tokens else x.contiguous(memory_format=torch.channels_last)
        height, width = self.out.height, self.out.width  # tokens that came along came for this size alone
        for module, makes_tokens in self._sequence:
            if makes_tokens:
                height, width = stream.shape[-2:]
            stream = module(stream)
        if not self.out.tokens:
            return stream
        patches = to_tokens(stream)[:, :, 1:]
        out = to_map(from_windows(patches, *window_grid(self.out), height, width))
        if self.hands_on_tokens:
            setattr(out, _STREAM, stream)
        return out

    def _stream_of(self, x: Tensor) -> Tensor:
        """What the previous stage cut this map from."""
        stream = getattr(x, _STREAM, None)
        if stream is None:
            raise UserError(
                f"stage{self.number} takes the tokens that stage{self.number - 1} left with its map, and this tensor has none; "
                f"give it the tensor that stage{self.number - 1} returned, not a copy or a view"
            )
        assert isinstance(stream, Tensor)
        return stream


class FeatureNetwork(nn.Module):
    """The stages of a network as children `stage1`, `stage2`, ...; (B, C, H, W) in, a list of the maps of `feature_info.out_indices` out."""

    def __init__(self, stages: Sequence[StageFeatures], feature_info: FeatureInfo) -> None:
        super().__init__()
        self.feature_info = feature_info
        for stage in stages:
            self.add_module(f"stage{stage.number}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) images in any memory format -> maps (B, C_i, H_i, W_i) in channels_last memory."""
        maps: list[Tensor] = []
        for stage in self.children():
            x = stage(x)
            maps.append(x)
        return [maps[index] for index in self.feature_info.out_indices]


def features(
    network: nn.Module, arch: Arch, *, image_size: ImageSize | None = None, out_indices: Sequence[int] | None = None
) -> FeatureNetwork:
    """The stages of a network that was built from `arch`, sharing its modules: weights loaded into the one are the other's, before or after.

    image_size: what the network was built for, the architecture's own by default. out_indices: stages to return, from 0 (-1: the last one), all by
    default; none after the last of them is kept. A stage that ends on a VAN block ends on its LayerNorm; the last stage's is the head's, with the head's
    weights. Raises UserError when the network is not of this architecture or a stage does not exist.
    """
    placed = list(arch.layers(image_size))
    _check_same(network, placed, arch)
    groups = _by_stage(placed, len(arch.stages))
    indices = _indices(out_indices, len(groups))
    stages = [StageFeatures(network, number, group) for number, group in enumerate(groups[: max(indices) + 1], start=1)]
    for stage, following in pairwise(stages):
        stage.hands_on_tokens = following.takes_tokens
    norm = _closing_norm(network, groups[-1], arch.head) if len(stages) == len(groups) else None
    if norm is not None:
        stages[-1].close(norm)
    return FeatureNetwork(stages, FeatureInfo(info=_info(groups), out_indices=indices))


def _by_stage(placed: Sequence[Placed], count: int) -> list[list[Placed]]:
    """The walk without the head, stage by stage."""
    groups: list[list[Placed]] = [[] for _ in range(count)]
    for item in placed:
        if item.path != "head":
            groups[0 if item.path == "stem" else int(item.path.split(".")[1]) - 1].append(item)
    return groups


def _check_same(network: nn.Module, placed: Sequence[Placed], arch: Arch) -> None:
    """The stages have as many parameters as the architecture's; the stem's are left out, they follow the image's channels."""
    expected = sum(item.layer.cost(item.shape).params for item in placed if item.path.startswith("stages."))
    got = sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith("stages."))
    if got != expected:
        raise UserError(
            f"features: the network's stages have {got} parameters, those of {arch.name or arch.arch_id} {expected}; "
            "give the architecture and image size that the network was built from"
        )


def _indices(out_indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Indices from 0, in the order asked for."""
    if out_indices is None:
        return tuple(range(count))
    wrong = [index for index in out_indices if not -count <= index < count]
    if wrong or not out_indices:
        got = wrong[0] if wrong else "none"
        raise UserError(f"features: out_indices: got {got}; at least one of {-count} to {count - 1} is allowed")
    return tuple(index % count for index in out_indices)


def _closing_norm(network: nn.Module, last: Sequence[Placed], head: Layer) -> nn.Module | None:
    """The norm that a stage with this last block ends on, before the head: the head's own where that normalises positions, a new one where it does not."""
    block = next(item.layer for item in reversed(last) if isinstance(item.layer, Block))
    end = block.stage_end()
    if end is None:
        return None
    head_norm = network.get_submodule("head.norm")
    assert isinstance(head_norm, nn.LayerNorm)
    if getattr(head, "norm", "before") == "after":  # it normalises the mean
        return end.build(last[-1].out).to(head_norm.weight)
    norm = ChannelNorm(last[-1].out.channels, eps=head_norm.eps)
    norm.weight, norm.bias = head_norm.weight, head_norm.bias
    return norm


def _info(groups: Sequence[Sequence[Placed]]) -> tuple[dict[str, Any], ...]:
    """timm's entries: channels, stride (by what the entries make of a map that every stride divides) and name of each stage's output."""
    info: list[dict[str, Any]] = []
    reduction = 1
    for index, group in enumerate(groups):
        entry = group[0].layer
        reduction *= _PROBE_SIDE // entry.out(Shape(group[0].shape.channels, _PROBE_SIDE, _PROBE_SIDE)).height
        info.append(
            {"num_chs": group[-1].out.channels, "reduction": reduction, "module": f"stage{index + 1}", "index": index}
        )
    return tuple(info)
