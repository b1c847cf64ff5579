"""Profiles: how an architecture is made small enough to train for its proxy score. The figures of record (MACs, params, throughput) stay the full one's.

A profile scales the image, the stem's stride, the widths (the number of heads stays) and the windows (with the map, so that a window covers the same share of
the image: 7 of 56 positions become 4 of 32; messenger windows keep their number, for the sake of their regions). Tables of positions are the small map's own.
Depths, kinds, ratios and kernels stay. Everything a profile does is written into the proxy id.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from archsearch.blocks.base import Layer, LayerError, Shape, field_scale, own_choices
from archsearch.blocks.positions import LearnedPositions
from archsearch.errors import UserError
from archsearch.space.arch import Arch
from archsearch.space.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Image side in pixels, stem stride, divisor of the widths, and the factor of windows as numerator and denominator."""

    image_size: int
    stem_stride: int
    width_divisor: int
    window_numerator: int = 4
    window_denominator: int = 7

    @property
    def grids(self) -> tuple[int, int, int, int]:
        """Sides of the four maps."""
        first = self.image_size // self.stem_stride
        return first, first // 2, first // 4, first // 8

    def __str__(self) -> str:
        grids = "-".join(map(str, self.grids))
        return f"{self.image_size}px/stem{self.stem_stride}/grids{grids}/windows{self.window_numerator}of{self.window_denominator}/width1of{self.width_divisor}"


def shrink(arch: Arch, profile: Profile, num_classes: int) -> Arch:
    """The proxy's architecture. Raises UserError naming the stage when no scaled width fits it."""
    shape = Shape(3, profile.image_size, profile.image_size)
    full = Shape(3, arch.image_size, arch.image_size)
    stages: list[Stage] = []
    for number, stage in enumerate(arch.stages, start=1):
        full = stage.entry.out(full)
        small = _shrink_stage(stage, shape, full, profile, number)
        shape = small.entry.out(shape)
        stages.append(small)
    head = replace(arch.head, num_classes=num_classes)  # type: ignore[call-arg]  # every head has classes
    return replace(arch, stages=tuple(stages), head=head, image_size=profile.image_size)


def _shrink_stage(stage: Stage, shape: Shape, full: Shape, profile: Profile, number: int) -> Stage:
    """The stage at the nearest scaled width at which every layer can stand; `full` is its map in the architecture of record."""
    positions = _shrink_positions(stage.positions)
    stride: dict[str, Any] = {"stem_stride": profile.stem_stride} if number == 1 else {}
    for width in _widths_near(stage.width / profile.width_divisor, limit=stage.width * 2):
        entry = _shrink_entry(stage.entry, width, stride.get("stem_stride"))
        try:
            entry.check(shape)
            inside = entry.out(shape)
            blocks = tuple(replace(block, **_scaled_fields(block, inside, full, profile)) for block in stage.blocks)
            for block in blocks:
                block.check_at(positions.out(inside) if positions else inside)
        except LayerError as error:
            if error.field == "image_size":
                raise UserError(f"stages.{number} cannot be trained at {profile.image_size} px: {error}") from error
            continue
        return Stage(entry=entry, blocks=blocks, depth=stage.depth, positions=positions)
    raise UserError(
        f"stages.{number} ({stage.block}, width {stage.width}) has no proxy at 1/{profile.width_divisor} of its width"
    )


def _shrink_positions(positions: Layer | None) -> Layer | None:
    """The same positions in a table of the small map's own size."""
    if isinstance(positions, LearnedPositions):
        return replace(positions, side=0, unresized=0)
    return positions


def _widths_near(target: float, limit: int) -> Iterator[int]:
    """Whole widths by distance from the target."""
    yield from sorted(range(1, limit + 1), key=lambda width: (abs(width - target), width))


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


def _scaled_fields(layer: Layer, shape: Shape, full: Shape, profile: Profile) -> dict[str, int]:
    """The values of a block's fields that scale with width or map."""
    side, full_side = min(shape.height, shape.width), min(full.height, full.width)
    scaled: dict[str, int] = {}
    for item in fields(layer):
        value = getattr(layer, item.name)
        scale = field_scale(type(layer), item.name) if "scale" in item.metadata else None
        if scale == "width":
            scaled[item.name] = max(1, value // profile.width_divisor)
        elif scale == "window":
            scaled[item.name] = nearest_divisor(
                side, value * profile.window_numerator / profile.window_denominator, at_least=min(2, value)
            )
        elif scale == "tiles":
            scaled[item.name] = nearest_divisor(side, value * side / full_side, at_least=min(2, value))
        elif scale == "interval":
            scaled[item.name] = min(value, max(1, side // scaled.get("window", 1)))
    return scaled


def nearest_divisor(side: int, target: float, at_least: int) -> int:
    """The divisor of a map's side nearest to `target` by ratio, not below `at_least` where the side allows."""
    divisors = [number for number in range(1, side + 1) if side % number == 0 and number >= min(at_least, side)]
    return min(divisors, key=lambda number: (max(number / target, target / number), number))
