"""Feature pyramids for detection and segmentation: a network's stages as modules from feature map to feature map, with timm's `features_only` interface.

The children `stage1`, `stage2`, ... run in order, each on the output of the one before, so torchvision's `IntermediateLayerGetter` (and with it
`BackboneWithFPN`), which runs the children that it needs in the same way, computes the same maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.blocks import Block, Layer, Shape
from archsearch.blocks.common import crop_tokens, to_map, to_tokens
from archsearch.blocks.positions import from_windows
from archsearch.errors import UserError
from archsearch.models.stage import NetworkStage, StagedNetwork, rename_earlier_keys
from archsearch.space import Arch, ImageSize, Placed

# Where tokens pass from stage to stage (MSG-Transformer's messengers) a map carries the stream that it was cut from as an attribute of this name, since
# the code that runs the stages passes on the map alone. The attribute is on the tensor, not in state that the stages share, so that copies, threads and
# interrupted runs leave nothing behind.
_STREAM = "archsearch_stream"
_PROBE_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """timm's `FeatureInfo` interface: `info` has a dict for every stage, `out_indices` numbers those that are returned.

    A class of our own because importing timm's takes about two seconds.
    """

    info: tuple[dict[str, Any], ...]
    out_indices: tuple[int, ...]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Dicts, with these keys or all, of the returned stages or of the stages `idx` (from 0); for a single number one dict."""
        if isinstance(idx, int):
            return self.info[idx] if keys is None else {key: self.info[idx][key] for key in keys}
        return [self.get_dicts(keys, index) for index in (self.out_indices if idx is None else idx)]

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Values of one key: a list for the returned stages or the stages `idx`; for a single number one value."""
        found = self.get_dicts([key], idx)
        return found[key] if isinstance(idx, int) else [entry[key] for entry in found]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Strides of the maps: pixels between two of their positions."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Names of the children whose outputs the maps are."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]

    def __len__(self) -> int:
        return len(self.info)


def map_beside_tokens(stream: Tensor, shape: Shape, height: int, width: int) -> Tensor:
    """The map (B, C, height, width) of a stream (B, C, tokens, 1 + n) in whose `shape` tokens head its windows."""
    patches = to_tokens(stream)[:, :, 1:]
    covered = shape.covered if shape.window else (height, width)
    return to_map(crop_tokens(from_windows(patches, *shape.grid, *covered), height, width))


class StageFeatures(NetworkStage):
    """One stage, the first one with its stem: from the previous stage's map (or the image) to this stage's map, without the tokens that may belong to it.

    Where the previous stage's tokens are needed too, they are read from an attribute of its map; such a stage raises UserError on any other tensor.
    """

    def __init__(self, number: int, layers: Sequence[tuple[str, nn.Module]], placed: Sequence[Placed]) -> None:
        """The modules of the layers `placed`, and their names; a further layer may follow."""
        super().__init__(layers)
        self.number, self.out = number, placed[-1].out
        self.takes_tokens = placed[0].shape.tokens > 0
        self.passes_tokens = False
        self._maker = next(
            (item.module.rpartition(".")[2] for item in placed if item.out.tokens > item.shape.tokens == 0), None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in any memory format -> (B, C_out, H_out, W_out) in channels_last memory."""
        stream = self._take_stream(x) if self.takes_tokens else x.contiguous(memory_format=torch.channels_last)
        height, width = self.out.height, self.out.width  # tokens of the previous stage allow this size alone
        for name, module in self.steps():
            if name == self._maker:
                height, width = stream.shape[-2:]
            stream = self.run(name, module, stream)
        if not self.out.tokens:
            return stream
        out = map_beside_tokens(stream, self.out, height, width)
        if self.passes_tokens:
            setattr(out, _STREAM, stream)
        return out

    def _take_stream(self, x: Tensor) -> Tensor:
        """The stream, tokens included, that the previous stage cut this map from."""
        stream = getattr(x, _STREAM, None)
        if stream is None:
            raise UserError(
                f"stage{self.number} takes the tokens that stage{self.number - 1} left with its map, and this tensor has none; "
                f"give it the tensor that stage{self.number - 1} returned, not a copy or a view"
            )
        assert isinstance(stream, Tensor)
        return stream


class FeatureNetwork(StagedNetwork):
    """The stages of a network as children `stage1`, `stage2`, ...: (B, C, H, W) -> list of the feature maps of `feature_info.out_indices`."""

    def __init__(
        self, stages: Sequence[StageFeatures], feature_info: FeatureInfo, arch: Arch, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.feature_info, self.arch, self.size = feature_info, arch, size
        for stage in stages:
            self.add_module(f"stage{stage.number}", stage)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Called by torch with a copy of the state dict, before the children's."""
        rename_earlier_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) images in any memory format -> maps (B, C_i, H_i, W_i) in channels_last memory."""
        self.fix_size(x)
        maps: list[Tensor] = []
        out = x
        try:
            for stage in self.children():
                out = stage(out)
                maps.append(out)
        except (UserError, RuntimeError) as error:
            self.refuse(x, error)
        return [maps[index] for index in self.feature_info.out_indices]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # timm's signature
        """Patterns that group parameters by depth, for timm's layer-wise learning rates; `coarse` has a group for each stage."""
        fine = [
            (r"^stage(\d+)\.(?!blocks\.|norm)", (0,)),
            (r"^stage(\d+)\.blocks\.(\d+)", None),
            (r"^stage(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^stage1\.stem", "blocks": r"^stage(\d+)" if coarse else fine}


def features(
    network: nn.Module, arch: Arch, *, image_size: ImageSize | None = None, out_indices: Sequence[int] | None = None
) -> FeatureNetwork:
    """The feature pyramid of a network that was built from `arch`. Both share their modules, so weights loaded into one are the other's too.

    image_size: the size that the network was built for, the architecture's own by default. out_indices: stages to return, from 0 (-1 is the last one), all
    by default; stages after the last of them are dropped. A stage whose last block is VAN's ends with a LayerNorm; at the last stage it is the head's, with
    the head's weights. Raises UserError when the network is not of this architecture or a stage does not exist.
    """
    placed = list(arch.layers(image_size))
    _check_same(network, placed, arch)
    groups = _by_stage(placed)
    indices = _resolve_indices(out_indices, len(groups))
    stages: list[StageFeatures] = []
    for number, group in enumerate(groups[: max(indices) + 1], start=1):
        layers = [(item.module.split(".", 2)[-1], network.get_submodule(item.module)) for item in group]
        norm = _closing_norm(network, group, arch.head) if number == len(groups) else None
        stages.append(StageFeatures(number, [*layers, *([("norm", norm)] if norm else [])], group))
    for stage, following in pairwise(stages):
        stage.passes_tokens = following.takes_tokens
    return FeatureNetwork(stages, FeatureInfo(info=_make_info(groups), out_indices=indices), arch, placed[0].shape[1:3])


def _by_stage(placed: Sequence[Placed]) -> list[list[Placed]]:
    """The layers of each stage, without the head; the stem belongs to the first."""
    groups: dict[int, list[Placed]] = {}
    for item in placed:
        if item.path != "head":
            groups.setdefault(0 if item.path == "stem" else int(item.module.split(".")[1]), []).append(item)
    return [groups[number] for number in sorted(groups)]


def stage_info(arch: Arch) -> tuple[dict[str, Any], ...]:
    """timm's entries for the stages of an architecture, as in `FeatureInfo.info`."""
    return _make_info(_by_stage(list(arch.layers())))


def _check_same(network: nn.Module, placed: Sequence[Placed], arch: Arch) -> None:
    """Raise UserError unless the stages have as many parameters as the architecture's; the stem's depend on the image's channels and do not count."""
    expected = sum(item.layer.cost(item.shape).params for item in placed if item.path.startswith("stages."))
    got = sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith("stages."))
    if got != expected:
        raise UserError(
            f"features: the network's stages have {got} parameters, those of {arch.name or arch.arch_id} {expected}; "
            "give the architecture and image size that the network was built from"
        )


def _resolve_indices(out_indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The indices counted from 0, in the order given; all by default."""
    if out_indices is None:
        return tuple(range(count))
    wrong = [index for index in out_indices if not -count <= index < count]
    if wrong or not out_indices:
        got = wrong[0] if wrong else "none"
        raise UserError(f"features: out_indices: got {got}; at least one of {-count} to {count - 1} is allowed")
    return tuple(index % count for index in out_indices)


def _closing_norm(network: nn.Module, last: Sequence[Placed], head: Layer) -> nn.Module | None:
    """The norm after the last stage's last block, if it needs one: the head's own where that normalises positions, else a new one."""
    block = next(item.layer for item in reversed(last) if isinstance(item.layer, Block))
    end = block.stage_end()
    if end is None:
        return None
    if getattr(head, "norm", "before") == "after":  # it normalises the mean
        return end.build(last[-1].out).to(next(network.parameters()))
    return network.get_submodule("norm")


def _make_info(groups: Sequence[Sequence[Placed]]) -> tuple[dict[str, Any], ...]:
    """timm's entries: channels, stride and name of each stage's output. Strides are measured on a map that every stride divides."""
    info: list[dict[str, Any]] = []
    reduction = 1
    for index, group in enumerate(groups):
        probe = Shape(group[0].shape.channels, _PROBE_SIDE, _PROBE_SIDE)
        reduction *= _PROBE_SIDE // group[0].layer.out(probe).height
        channels, module = group[-1].out.channels, f"stage{index + 1}"
        info.append({"num_chs": channels, "reduction": reduction, "module": module, "index": index})
    return tuple(info)
