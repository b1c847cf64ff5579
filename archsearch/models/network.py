"""An architecture built as a torch module: `Arch.layers()`, each layer built and registered under its path."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from archsearch.blocks.common import init_linears
from archsearch.blocks.without_weights import WithoutWeights
from archsearch.errors import UserError, shown
from archsearch.models.features import FeatureNetwork, features, stage_info
from archsearch.models.stage import NetworkStage, StagedNetwork, rename_earlier_keys
from archsearch.space import Arch, ImageSize, Space, paper, paper_names, paper_space

# Random numbers that fill all weights of a network for timing; odd, so that no row repeats the one before.
_NUM_DRAWN = 2**16 + 1


class Network(StagedNetwork):
    """An architecture as a module: children `stem`, `stages` (a Sequential of `NetworkStage`), `norm` and `head`, run in this order.

    (B, C, H, W) -> (B, num_classes) logits. State dicts of versions that counted stages and blocks from 1 load too.
    """

    def __init__(self, arch: Arch, *, image_size: ImageSize | None = None, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self._name_after(arch)
        placed = list(arch.layers(image_size))
        self.size = placed[0].shape[1:3]
        num_blocks = sum(item.layer.role == "block" for item in placed)
        stages: list[list[tuple[str, nn.Module]]] = [[] for _ in arch.stages]
        block = 0
        for item in placed:
            rate = 0.0
            if item.layer.role == "block":
                # Linear from 0 at the first block, as in all papers.
                rate = drop_path_rate * block / max(num_blocks - 1, 1)
                block += 1
            module = item.layer.build(item.shape, rate)
            if item.module == "stem":
                self.stem = module
            elif item.module == "head":
                norm, head = module.children()
            else:
                _, number, name = item.module.split(".", 2)
                stages[int(number)].append((name, module))
        self.stages = nn.Sequential(*map(NetworkStage, stages))
        self.norm, self.head = norm, head

    def _name_after(self, arch: Arch) -> None:
        self.arch, self.arch_id, self.name, self.num_classes = arch, arch.arch_id, arch.name, arch.num_classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images in any memory format -> (B, num_classes) logits."""
        logits: Tensor = self.head(self.forward_features(x))
        return logits

    # The rest is timm's interface of an image model.

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> the last map, (B, num_features, H, W), normed where the paper's norm precedes the mean; tokens are in it as they run."""
        self.fix_size(x)
        try:
            out: Tensor = self.norm(self.stages(self.stem(x.contiguous(memory_format=torch.channels_last))))
        except (UserError, RuntimeError) as error:
            self.refuse(x, error)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # timm's signature
        """What `forward_features` gives -> (B, num_classes) logits, or with `pre_logits` the (B, num_features) that the classifier gets."""
        head: Any = self.head
        out: Tensor = head.pool(x) if pre_logits else head(x)
        return out

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return self.arch.stages[-1].width

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """`num_chs`, `reduction` (the stride in pixels), `module` and `index` of each stage's map."""
        return [{**entry, "module": f"stages.{entry['index']}"} for entry in stage_info(self.arch)]

    def get_classifier(self) -> nn.Module:
        """The last Linear, or what stands in its place."""
        return self.head.get_submodule("fc")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new, untrained classifier in place of the old one; none, so that (B, num_features) come out, for 0 classes.

        Raises UserError for a negative number, for another pooling than the architecture's, and where another head took the place of ours.
        """
        if "fc" not in self.head._modules:
            raise UserError(
                f"reset_classifier: the head, {type(self.head).__name__}, is without a classifier `fc`; set `head` itself"
            )
        if num_classes < 0 or global_pool is not None:
            got = f"num_classes is {num_classes}" if num_classes < 0 else f"global_pool is {global_pool!r}"
            raise UserError(f"reset_classifier: {got}; allowed are 0 classes or more, pooled as the architecture does")
        if num_classes == 0:
            self.head.fc, self.num_classes = nn.Identity(), 0
            return
        like = next(self.parameters())
        self.head.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        init_linears(self.head.fc)
        head = replace(self.arch.head, num_classes=num_classes)  # type: ignore[call-arg]  # every head has classes
        self._name_after(replace(self.arch, head=head))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # timm's signature
        """Patterns that group parameters by depth, for timm's layer-wise learning rates; `coarse` has a group for each stage."""
        fine = [(r"^stages\.(\d+)\.(?!blocks\.)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Called by torch with a copy of the state dict, before the children's."""
        has_norm = next(self.norm.parameters(), None) is not None
        rename_earlier_keys(state_dict, prefix, {"head.norm.": "norm."} if has_norm else {})
        super()._load_from_state_dict(state_dict, prefix, *rest)


@overload
def build(
    arch: Arch | Space | str,
    *,
    image_size: ImageSize | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float | Literal["paper"] = 0.0,
    features_only: Literal[False] = False,
) -> Network: ...


@overload
def build(
    arch: Arch | Space | str,
    *,
    image_size: ImageSize | None = None,
    in_chans: int | None = None,
    drop_path_rate: float | Literal["paper"] = 0.0,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
) -> FeatureNetwork: ...


def build(
    arch: Arch | Space | str,
    *,
    image_size: ImageSize | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float | Literal["paper"] = 0.0,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> Network | FeatureNetwork:
    """The network of an architecture, a paper's model by name, or a space of size one, initialised as in its papers, in channels_last memory.

    image_size: side or (height, width) in pixels; in_chans: channels of the images; both and num_classes are the architecture's own by default.
    drop_path_rate: of the last block, rising linearly from 0; `paper` is the rate of the paper's own recipe. features_only: the stages without the head,
    which return the feature maps of `out_indices` (from 0, all by default; see `features.features`). Raises UserError where a layer does not allow the size,
    for num_classes with features_only, and for out_indices without it.
    """
    if not isinstance(arch, Arch):
        arch = paper(arch) if isinstance(arch, str) else arch.arch()
    if features_only and num_classes is not None:
        raise UserError(
            f"build: num_classes {num_classes} has no meaning with features_only=True: no head is built; leave it out"
        )
    if out_indices is not None and not features_only:
        raise UserError(
            "build: out_indices has no meaning without features_only=True: the network returns logits; leave it out"
        )
    arch = adapted(arch, image_size=image_size, num_classes=num_classes, in_chans=in_chans)
    network = Network(arch, image_size=image_size, drop_path_rate=checked_rate(arch, drop_path_rate))
    network.to(memory_format=torch.channels_last)
    return features(network, arch, image_size=image_size, out_indices=out_indices) if features_only else network


def adapted(
    arch: Arch, *, image_size: ImageSize | None = None, num_classes: int | None = None, in_chans: int | None = None
) -> Arch:
    """The architecture with other classes and channels, where they are given. Raises UserError where a layer does not allow the image size."""
    if num_classes is not None:
        arch = replace(arch, head=replace(arch.head, num_classes=num_classes))  # type: ignore[call-arg]  # every head has classes
    if in_chans is not None:
        arch = replace(arch, in_chans=in_chans)
    arch.check(image_size)
    return arch


def checked_rate(arch: Arch, given: float | str) -> float:
    """The number given, or the paper's. Raises UserError for a number outside [0, 1), other text, and where no paper states a rate."""
    published = paper_space(arch.name).paper if arch.name in paper_names() else {}
    if given == "paper" and "drop_path_rate" not in published:
        raise UserError(
            f"build: drop_path_rate 'paper': no paper states a rate for {arch.name or arch.arch_id}; give a number"
        )
    rate = published["drop_path_rate"] if given == "paper" else given
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise UserError(f"build: drop_path_rate is {shown(given)}; allowed are numbers from 0 to below 1, and 'paper'")
    return rate


def build_without_weights(arch: Arch, image_size: ImageSize | None = None, in_chans: int | None = None) -> Network:
    """The network with parameters on meta and ordinary buffers, to be given values for all of them: initialising can take longer than loading."""
    with WithoutWeights():
        return build(arch, image_size=image_size, in_chans=in_chans)


def build_for_timing(arch: Arch) -> Network:
    """The network with random numbers instead of initial weights, on the CPU and in eval mode: to be counted and timed, never trained.

    They are of about the usual size (normal with variance 1 / inputs; norms 1, biases 0), since zeros run faster and vanishing numbers slower. The same
    numbers every time; random states are left alone. Processor time for davit_tiny, van_b2 and crossformer_small 0.1 s, where `build` takes 0.6 s.
    """
    network = build_without_weights(arch)
    numbers = torch.randn(_NUM_DRAWN, generator=torch.Generator().manual_seed(0))
    values = {
        name: _fill_weight(name, tensor, numbers) if tensor.is_meta else tensor
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(values, assign=True)
    return network.eval()


def _fill_weight(name: str, meta: Tensor, numbers: Tensor) -> Tensor:
    """A weight that is on meta, in its memory format: the numbers again and again, one number each in vectors."""
    weight = torch.empty_like(meta, device="cpu")
    if weight.ndim < 2:
        return weight.fill_(float(name.endswith("weight")))
    scaled = numbers * math.sqrt(1 / weight[0].numel())
    repeats = -(-weight.numel() // len(numbers))
    return scaled.repeat(repeats)[: weight.numel()].as_strided(weight.size(), weight.stride())
