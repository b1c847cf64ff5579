"""`archsearch sample` and `archsearch space`: draws from a space, and its size, range and choices, as documents and as tables."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from archsearch.blocks import Scalar
from archsearch.report.tables import Document, make_table, titled
from archsearch.space import Arch, Band, InBand, Space, extremes, format_value, load_space
from archsearch.units import ImageSize, format_count, format_image

_PLAIN_COUNTS = 10**6  # up to here a number is shown whole


@dataclass(frozen=True, kw_only=True)
class SpaceQuery:
    """A space with fixed parameters, for images of its own or another size, and the bounds on its architectures: a band of MACs, a range of parameters."""

    space: str
    budget_macs: int | None = None
    tolerance: float = 0.05
    params: tuple[int, int] | None = None
    fix: Mapping[str, Scalar] = field(default_factory=dict)
    image_size: ImageSize | None = None

    def load(self) -> Space:
        """The space with its parameters fixed."""
        return load_space(self.space).resized(self.image_size).fixed(self.fix)

    @property
    def band(self) -> Band | None:
        """The MACs allowed."""
        return None if self.budget_macs is None else Band.around(self.budget_macs, self.tolerance)

    @property
    def params_band(self) -> Band | None:
        """The parameters allowed."""
        return None if self.params is None else Band(*self.params, unit="parameters")

    @property
    def has_bounds(self) -> bool:
        """Whether a band or a range was given."""
        return self.band is not None or self.params_band is not None

    @property
    def images_text(self) -> str:
        """` at 192x256 px` where a size was given, or nothing."""
        return "" if self.image_size is None else f" at {format_image(self.image_size)}"

    @property
    def bounds_text(self) -> str:
        """` with 4.28G to 4.72G MACs and ...`, or nothing."""
        bounds = " and ".join(str(bound) for bound in (self.band, self.params_band) if bound)
        return f" with {bounds}" if bounds else ""


def sample_archs(query: SpaceQuery, number: int, seed: int) -> tuple[InBand, list[Arch]]:
    """The architectures to draw from, and `number` uniform draws: a longer draw begins with a shorter one. Raises UserError when there are none."""
    inside = InBand(query.load(), query.band, query.params_band)
    return inside, [arch for _, arch in inside.draw_many(number, random.Random(seed))]


def arch_document(arch: Arch) -> dict[str, Any]:
    """One architecture of `sample --json`."""
    cost = arch.cost()
    return {"arch_id": arch.arch_id, "macs": cost.macs, "params": cost.params, "arch": arch.to_dict()}


def sample_table(archs: Sequence[Arch]) -> Table:
    """One row for each architecture."""
    rows = []
    for arch in archs:
        cost = arch.cost()
        rows.append([arch.arch_id, format_count(cost.macs), format_count(cost.params), arch.describe()])
    columns = ["arch_id", "MACs", "params", "architecture (block width x depth)"]
    return make_table(columns, rows, left=columns[-1:])


def sample_sentence(query: SpaceQuery, inside: InBand) -> str:
    """How many architectures the draws come from."""
    number = count_words(inside.count, is_exact=inside.is_exact)
    what = f"{inside.space.name}{query.images_text}{query.bounds_text}"
    return f"Drawn uniformly from the {number} distinct architectures of {what}."


def count_words(count: int, *, is_exact: bool = True) -> str:
    """`1234`, `6.97e+12`, or `about 6.97e+12` for an estimate."""
    words = str(count) if count < _PLAIN_COUNTS else f"{float(count):.3e}"
    return words if is_exact else f"about {words}"


def space_document(query: SpaceQuery) -> dict[str, Any]:
    """Numbers of parameter sets and distinct architectures, range of costs, shares of the blocks, parameters with their choices."""
    space = query.load()
    whole = InBand(space, None)
    inside = InBand(space, query.band, query.params_band) if query.has_bounds else whole
    return {
        "space": space.name,
        "source": space.source,
        "image_size": space.plan.image_size,
        "in_chans": space.plan.in_chans,
        "fixed": dict(space.fixed_names),
        "parameter_sets": space.size,
        "architectures": whole.count,
        "architectures_is_exact": whole.is_exact,
        "range": {quantity: _range(space, quantity) for quantity in ("macs", "params")},
        "band": _band_document(query, whole, inside) if query.has_bounds else None,
        "shares": [{"stage": number, "blocks": shares} for number, shares in enumerate(inside.shares(), start=1)],
        "parameters": {name: list(choices) for name, choices in space.parameters().items()},
    }


def _range(space: Space, quantity: Any) -> list[dict[str, Any]]:
    return [
        {"arch_id": arch.arch_id, "macs": cost.macs, "params": cost.params, "architecture": arch.describe()}
        for arch in extremes(space, quantity)
        for cost in [arch.cost()]
    ]


def _band_document(query: SpaceQuery, whole: InBand, inside: InBand) -> dict[str, Any]:
    return {
        "macs": [query.band.low, query.band.high] if query.band else None,
        "params": list(query.params) if query.params else None,
        "architectures": inside.count,
        "architectures_is_exact": inside.is_exact,
        "share": inside.count / whole.count,
        "share_of_budget": _share_of_budget(query, whole, inside),
    }


def _share_of_budget(query: SpaceQuery, whole: InBand, inside: InBand) -> float | None:
    """The share of the budget's band that the parameters allowed leave; None without both."""
    if query.band is None or query.params_band is None:
        return None
    return inside.count / InBand(whole.space, query.band).count


def space_parts(query: SpaceQuery, document: Document) -> list[RenderableType]:
    """The document as sentences and tables."""
    rows = [[name, ", ".join(map(format_value, choices))] for name, choices in document["parameters"].items()]
    parameters = titled("Parameters that are open", make_table(["name", "choices"], rows, left=["name", "choices"]))
    return [*_sentences(query, document), _range_table(document), _share_table(query, document), parameters]


def _sentences(query: SpaceQuery, document: Document) -> list[str]:
    whole = count_words(document["architectures"], is_exact=document["architectures_is_exact"])
    fixed = ", ".join(f"{name}={value}" for name, value in document["fixed"].items())
    images = format_image(document["image_size"], document["in_chans"])
    words = [
        f"{document['space']}{f' with {fixed}' if fixed else ''} at {images}: {count_words(document['parameter_sets'])} "
        f"parameter sets, {whole} distinct architectures."
    ]
    band = document["band"]
    if band:
        count = count_words(band["architectures"], is_exact=band["architectures_is_exact"])
        left = band["share_of_budget"]
        of_band = "" if left is None else f", and {left:.3%} of those with {query.band}"
        words.append(f"{count} of them{query.bounds_text}: {band['share']:.3%}{of_band}.")
    return words


def _range_table(document: Document) -> RenderableType:
    names = {"macs": ("fewest MACs", "most MACs"), "params": ("fewest params", "most params")}
    rows = [
        [name, format_count(end["macs"]), format_count(end["params"]), end["arch_id"], end["architecture"]]
        for quantity, ends in document["range"].items()
        for name, end in zip(names[quantity], ends, strict=True)
    ]
    columns = ["", "MACs", "params", "arch_id", "architecture (block width x depth)"]
    return titled("Ends of the space", make_table(columns, rows, left=["", columns[-1]]))


def _share_table(query: SpaceQuery, document: Document) -> RenderableType:
    stages = document["shares"]
    blocks = list(dict.fromkeys(block for stage in stages for block in stage["blocks"]))
    rows = [
        [block, *(f"{stage['blocks'][block]:.1%}" if block in stage["blocks"] else "-" for stage in stages)]
        for block in blocks
    ]
    title = f"Share of the architectures{query.bounds_text} that have the block"
    return titled(title, make_table(["block", *(f"stage {stage['stage']}" for stage in stages)], rows, left=["block"]))
