"""An architecture as one of timm's models: the rest of timm's interface, and the configuration that timm keeps beside a model.

timm is imported inside functions: it takes seconds.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import Shape
from archsearch.blocks.kernels import apply_linear
from archsearch.blocks.without_weights import WithoutWeights
from archsearch.errors import UserError, shown
from archsearch.models.features import FeatureNetwork, features, map_beside_tokens
from archsearch.models.network import Network, adapted, checked_rate
from archsearch.models.validation.preprocessing import Preprocessing
from archsearch.space import Arch, ImageSize, paper_names, paper_space
from archsearch.units import sides

HYBRID = "archsearch_hybrid"
_IMAGENET = Preprocessing(
    crop_share=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


class TimmNetwork(Network):
    """A network with what timm's models have besides: pooling that can be left out, dropout before the classifier, intermediate maps.

    Its weights are in contiguous memory, as timm's functions that save them need it; `model.to(memory_format=torch.channels_last)` is faster.
    """

    def __init__(
        self, arch: Arch, *, image_size: ImageSize | None = None, drop_path_rate: float = 0.0, drop_rate: float = 0.0
    ) -> None:
        super().__init__(arch, image_size=image_size, drop_path_rate=drop_path_rate)
        self.global_pool, self.drop_rate = self.pooling, drop_rate

    @property
    def pooling(self) -> str:
        """The architecture's own: `avg`, the mean over positions, or `token`."""
        return "token" if self.arch.head.takes_tokens else "avg"

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.arch.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Features that the classifier gets."""
        return self.num_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, num_classes) logits, (B, num_features) without a classifier, the last map without pooling."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # timm's signature
        """As `Network.forward_head`; without pooling what `forward_features` gives is returned as it is."""
        if not self.global_pool:
            return x
        if pre_logits or not (self.drop_rate and self.training):
            return super().forward_head(x, pre_logits)
        head: Any = self.head
        return apply_linear(head.fc, functional.dropout(head.pool(x), self.drop_rate))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `Network.reset_classifier`; for 0 classes `global_pool` may also be empty, which leaves the pooling out. Raises UserError for another one."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("", self.pooling) or (num_classes and not pool):
            raise UserError(
                f"reset_classifier: global_pool is {shown(pool)} for {num_classes} classes; "
                f"allowed are {self.pooling!r}, the architecture's own, and '' for 0 classes"
            )
        super().reset_classifier(num_classes)
        self.global_pool = pool

    def forward_intermediates(  # timm's signature
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What `forward_features` gives, and a list of the maps (B, C_i, H_i, W_i) of the stages `indices`, without tokens; or that list alone.

        norm: the last stage's map is normed as the head's input is. stop_early: stages after the last of `indices` are left out. Raises UserError for
        another format than NCHW, and for a network with tokens and images that are not of the size that it was built for.
        """
        from timm.models._features import feature_take_indices

        if output_fmt != "NCHW":
            raise UserError(f"forward_intermediates: output_fmt is {shown(output_fmt)}; maps are (B, C, H, W): 'NCHW'")
        outs = self._stage_outs(x)
        taken, most = feature_take_indices(len(outs), indices)  # type: ignore[arg-type]  # any sequence will do
        maps: list[Tensor] = []
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        stages = list(self.stages)[: most + 1 if stop_early else None]
        for stage, out in zip(stages, outs, strict=False):
            x = stage(x)
            stream = self.norm(x) if norm and len(maps) + 1 == len(outs) else x
            maps.append(map_beside_tokens(stream, out, out.height, out.width) if out.tokens else stream)
        found = [maps[index] for index in taken]
        return found if intermediates_only else (self.norm(x) if len(maps) == len(outs) else x, found)

    def _stage_outs(self, images: Tensor) -> list[Shape]:
        """The shapes after the stages that there are. Raises UserError for a size at which tokens are not where they were."""
        height, width = images.shape[-2:]
        outs = {item.path.split(".")[1]: item.out for item in self.arch.layers(self.size) if item.path[:6] == "stages"}
        found = list(outs.values())[: len(self.stages)]
        if (height, width) != self.size and any(out.tokens for out in found):
            raise UserError(
                f"forward_intermediates: images of {height}x{width}; a network with tokens takes those of the "
                f"{self.size[0]}x{self.size[1]} that it was built for; img_size builds it for others"
            )
        return found

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:  # timm's signature
        """Drop the stages after the last of `indices`, and the norm and head where asked; returns the indices, counted from 0."""
        from timm.models._features import feature_take_indices

        taken, most = feature_take_indices(len(self.stages), indices)  # type: ignore[arg-type]  # any sequence will do
        self.stages = self.stages[: most + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)


def create_timm_network(
    variant: str,
    arch: Arch,
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, Any] | str | None = None,
    **options: Any,
) -> Any:
    """The architecture as a model of timm, called `variant`, by timm's `build_model_with_cfg`, whose options it takes; with `features_only` a FeatureNetwork.

    Further options: num_classes, in_chans, img_size, drop_path_rate, drop_rate, global_pool. Raises UserError for values that the architecture does not allow.
    """
    from timm.models import build_model_with_cfg

    def make(**given: Any) -> TimmNetwork:
        return _make(arch, **given)

    return build_model_with_cfg(
        make,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg or timm_config(arch),  # type: ignore[arg-type]  # a tag, as timm allows too
        feature_cfg={"out_indices": tuple(range(len(arch.stages))), "feature_cls": _pyramid},
        **options,
    )


def _make(
    arch: Arch,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: ImageSize | None = None,
    drop_path_rate: float = 0.0,
    drop_rate: float = 0.0,
    global_pool: str | None = None,
) -> TimmNetwork:
    """The network, without a classifier for 0 classes."""
    size = None if img_size is None else sides(img_size)  # JSON has a list
    fitted = adapted(arch, image_size=size, num_classes=num_classes or None, in_chans=in_chans)
    rate = checked_rate(fitted, drop_path_rate)
    network = TimmNetwork(fitted, image_size=size, drop_path_rate=rate, drop_rate=drop_rate)
    if num_classes == 0 or global_pool is not None:
        network.reset_classifier(fitted.num_classes if num_classes is None else num_classes, global_pool)
    return network


def _pyramid(network: TimmNetwork, out_indices: int | Sequence[int]) -> FeatureNetwork:
    """The feature network of a model; for a number the last so many stages."""
    indices = tuple(range(-out_indices, 0)) if isinstance(out_indices, int) else out_indices
    return features(network, network.arch, image_size=network.size, out_indices=indices)


def timm_config(
    arch: Arch, image_size: ImageSize | None = None, provenance: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """timm's `pretrained_cfg` of an architecture: sizes, names of layers, and the preprocessing that a training wrote into the weights' provenance.

    Where there is none it is the paper's, for others ImageNet's usual one.
    For other channels than three, the mean of the three channels' figures stands for each.
    """
    *_, head = arch.layers(image_size)
    image, table = arch.image(image_size), paper_space(arch.name).paper if arch.name in paper_names() else {}
    usual = Preprocessing.of_weights(arch.name, provenance) or _IMAGENET
    three = image.channels == 3
    return {
        "num_classes": arch.num_classes,
        "input_size": (image.channels, image.height, image.width),
        "fixed_input_size": True,
        "pool_size": head.shape[1:3],
        "crop_pct": usual.crop_share,
        "crop_mode": "squash" if usual.crop == "squash" else "center",
        "interpolation": usual.interpolation,
        "mean": usual.mean if three else (sum(usual.mean) / 3,) * image.channels,
        "std": usual.std if three else (sum(usual.std) / 3,) * image.channels,
        "first_conv": _first_convs(arch),
        "classifier": "head.fc",
        **({"paper_name": table["title"], "paper_ids": f"arXiv:{table['arxiv']}"} if "arxiv" in table else {}),
        **({"origin_url": table["repository"]} if "repository" in table else {}),
    }


def _first_convs(arch: Arch) -> tuple[str, ...]:
    """The names of the convolutions on the image, whose weights timm fits to other channels."""
    stem = next(arch.layers())
    with WithoutWeights():
        state = stem.layer.build(stem.shape).state_dict()
    own = arch.in_chans
    return tuple(f"stem.{key.removesuffix('.weight')}" for key, weight in state.items() if weight.shape[1:2] == (own,))
