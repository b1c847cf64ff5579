"""What every change of one choice would have made of a trial's MACs, parameters and predicted speed, and whether it stays in the band."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from archsearch.errors import UserError
from archsearch.report.tables import Document, make_table, signed_percent, titled
from archsearch.results import SPACE_FILE, Row
from archsearch.space import (
    Arch,
    Band,
    Bounds,
    Change,
    Space,
    find_params,
    format_value,
    single_changes,
    stored_block_files,
)
from archsearch.system import read_text
from archsearch.throughput import Calibration, read_calibration
from archsearch.units import format_count, stored_size

_SHOWN = 20


def changes_document(folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row], arch: Arch) -> Document:
    """All changes, those that stay in the band first, of each kind the largest first; `reason` says why there are none.

    `calibration` is the one that predicts, None where the run has none that may be used, for which `no_speed` has the reason.
    """
    try:
        space = _space(folder, manifest)
    except UserError as error:  # all else about the trial can be said
        return _none(manifest["space"]["name"], str(error))
    params = find_params(space, arch)
    if params is None:
        reason = f"it is no architecture of the space {space.name}, so it has no choice of that space to change"
        return _none(space.name, reason)
    calibration, no_speed = _calibration(folder, manifest)
    own_img_s = calibration.predict(arch) if calibration else None
    trials = {row["arch_id"]: row["trial"] for row in reversed(rows) if row["reused_from"] is None}
    bounds = _bounds(manifest)
    found = [_change(each, arch, bounds, calibration, own_img_s, trials) for each in single_changes(space, params)]
    found.sort(key=lambda each: (bool(each["outside"]), -_size(each)))
    return {
        "space": space.name,
        "reason": None if found else f"the space {space.name} leaves nothing to choose",
        "number": len(found),
        "inside": sum(not each["outside"] for each in found),
        "has_bounds": bounds != Bounds(),
        "predicted_img_s": own_img_s,
        "calibration": calibration.source if calibration else None,
        "no_speed": no_speed,
        "changes": found,
    }


def _none(space: str, reason: str) -> Document:
    return {"space": space, "reason": reason, "number": 0, "inside": 0, "calibration": None, "changes": []}


def _space(folder: Path, manifest: Mapping[str, Any]) -> Space:
    """The run's space, for its images, with what it fixes."""
    text, name = read_text(folder / SPACE_FILE, "a run's copy of its space"), manifest["space"]["name"]
    space = Space(tomllib.loads(text), name, text, files=stored_block_files(folder, manifest))
    return space.resized(stored_size(manifest["settings"])).fixed(manifest.get("fix", {}))


def _bounds(manifest: Mapping[str, Any]) -> Bounds:
    least, most = manifest.get("limits", {}).get("params", (None, None))
    return Bounds(
        macs=Band(*manifest["band"]) if manifest["band"] else None,
        params=None if least is None or most is None else Band(int(least), int(most), unit="parameters"),
    )


def _calibration(folder: Path, manifest: Mapping[str, Any]) -> tuple[Calibration | None, str | None]:
    """The calibration that the run predicted with, or why there is none that may be used."""
    known = manifest.get("calibration")
    if not known:
        return (
            None,
            "this run has no calibration to predict speeds with (`archsearch calibrate` makes one for later runs)",
        )
    named = Path(known["file"])
    path = next((each for each in (named, folder.parent / named.parent.name / named.name) if each.is_file()), None)
    if path is None:
        return None, f"the run's calibration {named} is not there any more"
    try:
        calibration = read_calibration(path)
    except UserError as error:
        return None, str(error)
    return (calibration, None) if calibration.is_trusted else (None, f"{path} is not trusted any more")


def _change(
    change: Change,
    arch: Arch,
    bounds: Bounds,
    calibration: Calibration | None,
    own_img_s: float | None,
    trials: Mapping[str, int],
) -> Document:
    cost, own = change.arch.cost(), arch.cost()
    predicted = calibration.predict(change.arch) if calibration and own_img_s else None
    pairs = {"macs": (bounds.macs, cost.macs), "params": (bounds.params, cost.params)}
    return {
        "name": change.name,
        "old": change.old,
        "new": change.new,
        "arch_id": change.arch.arch_id,
        "architecture": change.arch.describe(),
        "trial": trials.get(change.arch.arch_id),
        "macs": cost.macs,
        "macs_change": cost.macs / own.macs - 1,
        "params": cost.params,
        "params_change": cost.params / own.params - 1,
        "predicted_img_s": predicted,
        "speed_change": predicted / own_img_s - 1 if predicted and own_img_s else None,
        "outside": [name for name, (band, number) in pairs.items() if band and band.distance(number)],
    }


def _size(change: Document) -> float:
    """How much it changes: the largest of its changes, as a factor up or down."""
    parts = [change[name] for name in ("macs_change", "params_change", "speed_change") if change[name] is not None]
    return max(abs(math.log1p(part)) for part in parts)


def _telling(changes: Sequence[Document]) -> list[Document]:
    """The first change of every choice, then what there is room for, in the order of the document."""
    first: dict[str, Document] = {}
    for each in changes:
        first.setdefault(each["name"], each)
    chosen = list(first.values())[:_SHOWN]
    chosen += [each for each in changes if each not in chosen][: _SHOWN - len(chosen)]
    return [each for each in changes if each in chosen]


def change_table(document: Document) -> Group:
    """Some changes, each with what it does; `out` where the result leaves the band, and the trial that is this network."""
    shown = _telling(document["changes"])
    with_band = document["has_bounds"]
    with_speed, with_trials = document["calibration"] is not None, any(each["trial"] is not None for each in shown)
    columns = [
        "choice",
        "change",
        "MACs",
        "params",
        *(["speed"] if with_speed else []),
        *(["band"] if with_band else []),
    ]
    rows = [
        [
            each["name"],
            f"{format_value(each['old'])} to {format_value(each['new'])}",
            signed_percent(each["macs_change"]),
            signed_percent(each["params_change"]),
            *([signed_percent(each["speed_change"])] if with_speed else []),
            *(["out" if each["outside"] else "in"] if with_band else []),
            *([str(each["trial"]) if each["trial"] is not None else ""] if with_trials else []),
        ]
        for each in shown
    ]
    table = make_table([*columns, *(["trial"] if with_trials else [])], rows, left=["choice", "change"])
    inside = f", {document['inside']} of them inside the band" if with_band else ""
    return titled(f"One choice changed: {document['number']} ways{inside}", table)


def change_sentences(document: Document) -> str:
    """How many more there are, and how to read the table."""
    words = []
    if (left := document["number"] - _SHOWN) > 0:
        words.append(f"{left} more with --json.")
    which = "largest change that stays in the band, if there is one" if document["has_bounds"] else "largest change"
    words.append(f"Of each choice the {which}; fields that a change brings in take their first choice.")
    if document["calibration"]:
        own, source = document["predicted_img_s"], document["calibration"]
        here = f"{own:.1f} images/s predicted for this one" if own else "no speed can be predicted for this one"
        accuracy = f"tau {source['kendall_tau']:.2f}, mean error {source['mape']:.1%} on held-out networks"
        words.append(f"Speed is by the run's calibration: {here}; {accuracy}.")
    else:
        words.append(f"No speeds: {document['no_speed']}.")
    return " ".join(words)


def out_sentence(document: Document) -> str | None:
    """How many changes leave the band, and what the largest of them gives; None where all stay inside."""
    out = [each for each in document["changes"] if each["outside"]]
    if not out:
        return None
    most = max(out, key=_size)
    change = f"{most['name']} {format_value(most['old'])} to {format_value(most['new'])}"
    return f"{len(out)} leave the band, the largest {change}: {format_count(most['macs'])} MACs, {format_count(most['params'])} params."
