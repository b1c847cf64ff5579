"""The small copy of an architecture that is trained for its proxy score; MACs, params and throughput of a run are those of the full one.

The copy takes square images of three channels, as proxies have them, whatever images the architecture is for.
The image, the stem's stride, the widths (the number of heads stays) and the windows are scaled (windows with the map, so that a window covers the same
share of the image: 7 of 56 positions become 4 of 32; messenger windows keep their number, so that their regions stay). Tables of positions have the size of
the small map. Depths, kinds, ratios and kernels stay. The whole scale is part of the proxy id.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from archsearch.blocks import Layer, LayerError, LearnedPositions, Shape, field_scale, own_choices
from archsearch.errors import UserError, shown
from archsearch.proxy.training.recipe import MOST_SIDE
from archsearch.space import Arch, Stage

_MOST_FACTOR = 1024  # of divisors, numerators and denominators
_CHANNELS = 3  # of the images that proxies are trained on


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How small a copy is: image side in pixels, stem stride, divisor of the widths, and the factor of windows as numerator and denominator."""

    image_size: int
    stem_stride: int
    width_divisor: int
    window_numerator: int = 4
    window_denominator: int = 7

    def __post_init__(self) -> None:
        most = {"image_size": MOST_SIDE, "stem_stride": self.image_size}
        for item in fields(self):
            value, allowed = getattr(self, item.name), most.get(item.name, _MOST_FACTOR)
            if not 1 <= value <= allowed:
                raise UserError(f"profile.{item.name} is {shown(value)}; allowed is 1 to {shown(allowed)}")

    @property
    def grids(self) -> tuple[int, int, int, int]:
        """Sides of the four maps."""
        first = self.image_size // self.stem_stride
        return first, first // 2, first // 4, first // 8

    def __str__(self) -> str:
        grids = "-".join(map(str, self.grids))
        return f"{self.image_size}px/stem{self.stem_stride}/grids{grids}/windows{self.window_numerator}of{self.window_denominator}/width1of{self.width_divisor}"


def shrink(arch: Arch, scale: Scale, num_classes: int) -> Arch:
    """The small copy of an architecture. Raises UserError naming the stage when no scaled width fits it."""
    shape, full = Shape(_CHANNELS, scale.image_size, scale.image_size), arch.image()
    stages: list[Stage] = []
    for number, stage in enumerate(arch.stages, start=1):
        full = stage.entry.out(full)
        small = _shrink_stage(stage, shape, full, scale, number)
        shape = small.entry.out(shape)
        stages.append(small)
    head = replace(arch.head, num_classes=num_classes)  # type: ignore[call-arg]  # every head has classes
    return replace(arch, stages=tuple(stages), head=head, image_size=scale.image_size, in_chans=_CHANNELS)


def _shrink_stage(stage: Stage, shape: Shape, full: Shape, scale: Scale, number: int) -> Stage:
    """The stage at the nearest scaled width that every layer allows; `full` is its map in the full architecture."""
    positions = stage.positions
    if isinstance(positions, LearnedPositions):
        positions = replace(positions, side=0, unresized=0)  # a table of the small map's own size
    target, stride = stage.width / scale.width_divisor, scale.stem_stride if number == 1 else None
    for width in sorted(range(1, 2 * stage.width + 1), key=lambda width: (abs(width - target), width)):
        entry = _shrink_entry(stage.entry, width, stride)
        try:
            entry.check_at(shape)
            inside = entry.out(shape)
            blocks = tuple(replace(block, **_scaled_fields(block, inside, full, scale)) for block in stage.blocks)
            for block in blocks:
                block.check_at(positions.out(inside) if positions else inside)
        except LayerError as error:
            if error.field == "image_size":
                raise UserError(f"stages.{number} cannot be trained at {scale.image_size} px: {error}") from error
            continue
        return Stage(entry=entry, blocks=blocks, depth=stage.depth, positions=positions)
    raise UserError(
        f"stages.{number} ({stage.block}, width {stage.width}) has no proxy at 1/{scale.width_divisor} of its width"
    )


def _shrink_entry(entry: Layer, width: int, stride: int | None) -> Layer:
    """A stem of the profile's stride with its kernel scaled along, or the same downsample, at the new width."""
    changes: dict[str, Any] = {"width": width}
    own_stride = getattr(entry, "stride", None)
    if stride is not None and own_stride is not None and own_stride != stride:
        changes["stride"] = stride
        if "kernel" in own_choices(type(entry)):
            kernel: int = entry.kernel  # type: ignore[attr-defined]  # own_choices says so
            changes["kernel"] = stride if kernel == own_stride else max(stride, kernel * stride // own_stride | 1)
    return replace(entry, **changes)


def _scaled_fields(layer: Layer, shape: Shape, full: Shape, scale: Scale) -> dict[str, int]:
    """The values of a block's fields that scale with width or map."""
    side, full_side = min(shape.height, shape.width), min(full.height, full.width)
    scaled: dict[str, int] = {}
    for item in fields(layer):
        value = getattr(layer, item.name)
        kind = field_scale(type(layer), item.name) if "scale" in item.metadata else None
        if kind == "width":
            scaled[item.name] = max(1, value // scale.width_divisor)
        elif kind == "window":
            scaled[item.name] = nearest_divisor(
                side, value * scale.window_numerator / scale.window_denominator, at_least=min(2, value)
            )
        elif kind == "tiles":
            scaled[item.name] = nearest_divisor(side, value * side / full_side, at_least=min(2, value))
        elif kind == "interval":
            scaled[item.name] = min(value, max(1, side // scaled.get("window", 1)))
    return scaled


def nearest_divisor(side: int, target: float, at_least: int) -> int:
    """The divisor of a map's side nearest to `target` by ratio, not below `at_least` where the side allows."""
    divisors = [number for number in range(1, side + 1) if side % number == 0 and number >= min(at_least, side)]
    return min(divisors, key=lambda number: (max(number / target, target / number), number))
