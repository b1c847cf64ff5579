"""The architectures of a run as the page draws them: stages, maps, and for the trials that matter the cost of each stage."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archsearch.blocks import Cost
from archsearch.errors import UserError
from archsearch.results import Row
from archsearch.space import Arch, register_files, stored_block_files

_MOST_PRICED = (
    600  # architectures that are read as a whole, a millisecond or two each; the others are drawn from their JSON
)
_ENTRY = ("stem", "downsample")


class _Numbers:
    """Values that occur often, kept once and named by their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.values: list[Any] = []

    def __call__(self, value: Any) -> int:
        key = json.dumps(value)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def networks(folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row], first: Iterable[int]) -> dict[str, Any]:
    """Stages, heads and maps, each once; for each row the numbers of its own, None without an architecture; costs by trial, of the trials `first` in turn.

    Files of blocks of the run are run, as by every command that reads one of its architectures; `note` says where one cannot be.
    """
    note = _register(folder, manifest)
    documents = [json.loads(row["arch"]) if row["arch"] else {} for row in rows]
    maps = _Maps()
    costs: dict[int, Any] = {}
    by_trial = {row["trial"]: document for row, document in zip(rows, documents, strict=True)}
    for trial in first:
        if len(costs) < _MOST_PRICED and (found := maps.learn(by_trial.get(trial, {}))):
            costs[trial] = found
    stages, heads, sides = _Numbers(), _Numbers(), _Numbers()
    archs: list[list[Any] | None] = []
    for document in documents:
        if "stages" not in document:
            archs.append(None)
            continue
        own = [stages(_stage(document, place)) for place in range(len(document["stages"]))]
        archs.append([own, sides(maps.of(document)), heads(document.get("head", {}).get("kind"))])
    drawn = {"stages": stages.values, "heads": heads.values, "sides": sides.values, "archs": archs}
    return {**drawn, "costs": costs, "note": note}


def _register(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Have the run's own blocks known here; returns why not where that fails."""
    try:
        register_files(stored_block_files(folder, manifest))
    except UserError as error:
        return str(error)
    return None


def _stage(document: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A stage with what draws it: width, depth, block, entry, and the fields of its blocks."""
    stage = document["stages"][place]
    kinds = str(stage["block"]).split("/")
    fields = {kind: stage[kind] for kind in dict.fromkeys(kinds) if isinstance(stage.get(kind), dict)}
    entry = document.get("stem", {}).get("kind") if place == 0 else stage.get("downsample")
    return {**{name: stage.get(name) for name in ("width", "depth", "block")}, "entry": entry, "fields": fields}


class _Maps:
    """The height and width of the map of each stage: an entry on a map of one size always gives the same one, so few architectures tell it for all."""

    def __init__(self) -> None:
        self._after: dict[tuple[str, tuple[int, int]], tuple[int, int]] = {}
        self._tries = 2 * _MOST_PRICED

    def learn(self, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """The costs of an architecture by stage, from which its maps are learned; None for what cannot be read."""
        if "stages" not in document or self._tries <= 0:
            return None
        self._tries -= 1
        try:
            arch = Arch.from_dict(document)
        except UserError:  # a block that is not known here, or a layer of another version
            return None
        found = costs_by_stage(arch)
        image = arch.image()
        side = (image.height, image.width)
        for key, stage in zip(_entries(document), found["stages"], strict=True):
            self._after[key, side] = side = (stage["map"][0], stage["map"][1])
        return found

    def of(self, document: Mapping[str, Any]) -> list[tuple[int, int]] | None:
        """The map of each stage; None where it is not known."""
        known = self._walk(document)
        if known is None and self.learn(document):
            known = self._walk(document)
        return known

    def _walk(self, document: Mapping[str, Any]) -> list[tuple[int, int]] | None:
        size = document.get("image_size", 224)
        side: tuple[int, int] | None = (size, size) if isinstance(size, int) else (size[0], size[1])
        sides = []
        for key in _entries(document):
            side = self._after.get((key, side)) if side else None
            if side is None:
                return None
            sides.append(side)
        return sides


def _entries(document: Mapping[str, Any]) -> list[str]:
    """The stem and the downsamples as texts."""
    stages = document["stages"]
    return [
        json.dumps(document["stem"]),
        *(json.dumps([each["downsample"], each.get(each["downsample"])]) for each in stages[1:]),
    ]


def costs_by_stage(arch: Arch) -> dict[str, Any]:
    """MACs and parameters of the stages, each with those of its stem or downsample, and of the head; `map` is a stage's height and width."""
    own: list[Cost] = [Cost() for _ in arch.stages]
    maps = [(0, 0) for _ in arch.stages]
    head = Cost()
    for placed in arch.layers():
        words = placed.path.split(".")
        if words[0] == "head":
            head += placed.cost
            continue
        place = 0 if words[0] == "stem" else int(words[1]) - 1
        own[place] += placed.cost
        if words[-1] in _ENTRY:
            maps[place] = (placed.out.height, placed.out.width)
    stages = [{"macs": cost.macs, "params": cost.params, "map": side} for cost, side in zip(own, maps, strict=True)]
    return {"stages": stages, "head": {"macs": head.macs, "params": head.params}}
