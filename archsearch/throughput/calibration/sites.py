"""Layers at the shapes at which a space puts them, and the few of them that stand for all: what a calibration times."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from archsearch.blocks.base import Layer, Scalar, Shape, layers_of
from archsearch.errors import UserError
from archsearch.space.arch import Arch
from archsearch.space.budget import propose
from archsearch.space.space import Space

_DRAWS = 4000  # of the default space's 700 settings 95 % come up, in a second; the rest is interpolated like those not chosen


class Site(NamedTuple):
    """A layer and the shape that enters it."""

    layer: Layer
    shape: Shape

    @property
    def kind(self) -> tuple[str, str]:
        """Role and kind: patch is the name of a stem and of a downsample."""
        return self.layer.role, self.layer.kind

    @property
    def out(self) -> Shape:
        """Shape after the layer."""
        return self.layer.out(self.shape)

    def values(self) -> dict[str, Scalar]:
        """The layer's fields."""
        return {item.name: getattr(self.layer, item.name) for item in fields(self.layer)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` takes them back."""
        return {"role": self.layer.role, "kind": self.layer.kind, "fields": asdict(self.layer), "shape": [*self.shape]}

    @staticmethod
    def from_dict(document: dict[str, Any]) -> "Site":
        """Read a site; raises UserError for a layer that this version does not know."""
        try:
            layer = layers_of(document["role"])[document["kind"]](**document["fields"])
            return Site(layer, Shape(*map(int, document["shape"])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"no layer of this version: {document!r:.120}") from error


def sites_of(arch: Arch) -> Iterator[Site]:
    """Every layer of the architecture where it stands, repeats included."""
    shape = Shape(3, arch.image_size, arch.image_size)
    for placed in arch.layers():
        yield Site(placed.layer, shape)
        shape = placed.out


def space_sites(space: Space, rng: random.Random, draws: int = _DRAWS) -> Counter[Site]:
    """The sites that random architectures of the space use, and by how many architectures."""
    return Counter(site for _ in range(draws) for site in set(sites_of(propose(space, {}, rng)[1])))


def covering(sites: Sequence[Site], count: int) -> list[Site]:
    """As many settings of every layer kind at every shape as `count` in all allow, one at least; all where they are no more than that.

    In each, those with field values least chosen on this map come first, in the order of `sites` among equals.
    """
    groups: dict[Any, list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.kind, site.shape, site.out].append(site)
    sizes = [len(group) for group in groups.values()]
    each = max([1, *(limit for limit in range(1, max(sizes) + 1) if sum(min(size, limit) for size in sizes) <= count)])
    chosen: list[Site] = []
    seen: Counter[Any] = Counter()
    for group in sorted(groups, key=repr):
        chosen += _pick(groups[group], each, seen)
    return chosen


def _pick(candidates: list[Site], count: int, seen: Counter[Any]) -> list[Site]:
    """Greedily the settings whose field values have been chosen least on maps of this size, in other widths too."""
    left, picked = list(candidates), list[Site]()
    while left and len(picked) < count:
        best = min(left, key=lambda site: _familiarity(site, seen))
        left.remove(best)
        picked.append(best)
        seen.update(_values(best))
    return picked


def _values(site: Site) -> list[Any]:
    """Field values and pairs of them on this map, and single values at this width."""
    place = (site.kind, site.shape[1:])
    single = list(site.values().items())
    pairs = [(place, one, other) for number, one in enumerate(single) for other in single[number + 1 :]]
    return [*pairs, *((place, value) for value in single), *((place, site.shape.channels, value) for value in single)]


def _familiarity(site: Site, seen: Counter[Any]) -> float:
    return sum(seen[value] for value in _values(site))


def unique_sites(archs: Iterable[Arch]) -> list[Site]:
    """The sites of several architectures, each once, in order of appearance."""
    return list(dict.fromkeys(site for arch in archs for site in sites_of(arch)))
