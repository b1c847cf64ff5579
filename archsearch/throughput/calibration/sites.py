"""Sites: layers at the shapes that a space gives them, and the choice of those that a calibration times."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from archsearch.blocks import Layer, Scalar, Shape, registered_layers
from archsearch.errors import UserError
from archsearch.space import Arch, Space, propose

# Finds 95 % of the default space's 700 sites in a second; the others are interpolated like those not chosen.
_DRAWS = 4000


class Site(NamedTuple):
    """A layer and the shape of its input."""

    layer: Layer
    shape: Shape

    @property
    def kind(self) -> tuple[str, str]:
        """Role and kind: the kind alone is ambiguous, as a stem and a downsample are called patch."""
        return self.layer.role, self.layer.kind

    @property
    def out(self) -> Shape:
        """Shape after the layer."""
        return self.layer.out(self.shape)

    def values(self) -> dict[str, Scalar]:
        """The layer's fields by name."""
        return {item.name: getattr(self.layer, item.name) for item in fields(self.layer)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        return {"role": self.layer.role, "kind": self.layer.kind, "fields": asdict(self.layer), "shape": [*self.shape]}

    @staticmethod
    def from_dict(document: dict[str, Any]) -> "Site":
        """The site that `to_dict` wrote; UserError for a layer that is not registered."""
        try:
            layer = registered_layers(document["role"])[document["kind"]](**document["fields"])
            return Site(layer, Shape(*map(int, document["shape"])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"no registered layer, where one of your own needs its space's file of blocks: {document!r:.120}"
            ) from error


def arch_sites(arch: Arch) -> Iterator[Site]:
    """The site of every layer of the architecture in order, repeats included."""
    for placed in arch.layers():
        yield Site(placed.layer, placed.shape)


def space_sites(space: Space, rng: random.Random, draws: int = _DRAWS) -> Counter[Site]:
    """The sites of `draws` random architectures of the space, each with the number of architectures that have it."""
    return Counter(site for _ in range(draws) for site in set(arch_sites(propose(space, {}, rng)[1])))


def choose_sites(sites: Sequence[Site], count: int) -> list[Site]:
    """About `count` sites: the same number of every layer kind at every shape, at least one; all sites where they are no more than `count`.

    Chosen greedily: next comes the site whose field values were chosen least so far on its map, the earlier one in `sites` among equals.
    """
    groups: dict[Any, list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.kind, site.shape, site.out].append(site)
    sizes = [len(group) for group in groups.values()]
    each = max([1, *(limit for limit in range(1, max(sizes) + 1) if sum(min(size, limit) for size in sizes) <= count)])
    chosen: list[Site] = []
    times_chosen: Counter[Any] = Counter()
    for group in sorted(groups, key=repr):
        candidates = groups[group]
        for _ in range(min(each, len(candidates))):
            best = min(candidates, key=lambda site: sum(times_chosen[value] for value in _values(site)))
            candidates.remove(best)
            chosen.append(best)
            times_chosen.update(_values(best))
    return chosen


def _values(site: Site) -> list[Any]:
    """The site's field values and pairs of them on this map, and its field values at this width."""
    place = (site.kind, site.shape[1:])
    single = list(site.values().items())
    pairs = [(place, one, other) for number, one in enumerate(single) for other in single[number + 1 :]]
    return [*pairs, *((place, value) for value in single), *((place, site.shape.channels, value) for value in single)]


def unique_sites(archs: Iterable[Arch]) -> list[Site]:
    """The sites of several architectures, each once, in order of appearance."""
    return list(dict.fromkeys(site for arch in archs for site in arch_sites(arch)))
