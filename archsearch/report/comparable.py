"""Which figures of several runs may be compared, and what was asked or measured otherwise."""

import hashlib
import json
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.identity import Identity, identity_differences, row_identity
from archsearch.report.run import ranked_identity
from archsearch.report.tables import Document
from archsearch.results import (
    DEVICE_OBJECTIVES,
    OBJECTIVES,
    SPACE_FILE,
    Row,
    damage_is_an_error,
    num_fixed,
    read_manifest,
    read_rows,
    run_state,
)
from archsearch.system import read_text

SCORE = "proxy_score"
_UNREAD = ("arch", "learning_curve", "macs_fvcore", "started_at", "finished_at", "python_version", "archsearch_version")
# Of what a run was asked for: keys that follow from others.
_FOLLOWING = ("settings.proxy_id", "settings.weights_dtype", "settings.proxy.rungs", "settings.proxy_num_train")
_DIGITS = 6  # of a digest


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run beside others: `label` is its letter, `rows` are its trials, speeds at one rate of the reference for all runs."""

    label: str
    folder: Path
    manifest: Mapping[str, Any]
    objectives: Sequence[str]
    asked: int  # trials, fixed ones included
    request: Mapping[str, Any]  # dotted key -> what was asked for; name and folder are not among it
    training_seed: int | None  # which the proxy_id leaves out
    rows: Sequence[Row]
    throughput_id: str | None  # of the speeds that it ranks
    rate: float | None = None  # images/s of the reference by which its ratios were multiplied

    def complete(self, objectives: Sequence[str]) -> list[Row]:
        """Complete trials that these objectives can rank: every architecture once, within the run's limits, timed as the run ranks it."""
        return [
            row
            for row in self.rows
            if row["state"] == "complete"
            and row["reused_from"] is None
            and row["outside"] is None
            and (DEVICE_OBJECTIVES.isdisjoint(objectives) or row["throughput_id"] == self.throughput_id)
            and None not in map(row.get, objectives)
        ]


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """The runs in these folders, labelled A, B and so on. Raises UserError for fewer than two, one that is given twice, and a damaged one."""
    if len(folders) < 2:
        raise UserError("report: a comparison takes two runs or more; name another one")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{folder}: is given twice; name every run once")
        seen.add(folder.resolve())
    runs = [_read(folder, _label(place)) for place, folder in enumerate(folders)]
    return _at_one_rate(runs) if speed_refusal(runs) is None else runs


def _label(place: int) -> str:
    """A to Z, then AA, AB and so on."""
    letters = chr(ord("A") + place % 26)
    return letters if place < 26 else _label(place // 26 - 1) + letters


def _read(folder: Path, label: str) -> ComparedRun:
    with damage_is_an_error(folder):
        manifest = read_manifest(folder)
        rows = read_rows(folder, without=_UNREAD)
        throughput_id = ranked_identity(rows, manifest)
        recipe = (manifest["settings"].get("proxy") or {}).get("recipe") or {}
        return ComparedRun(
            label=label,
            folder=folder,
            manifest={**manifest, "state": run_state(folder, manifest)},
            objectives=[name for name in manifest["objectives"] if name in OBJECTIVES],
            asked=manifest["trials"] + num_fixed(manifest),
            request=_request(folder, manifest),
            training_seed=None if recipe.get("seed") is None else int(recipe["seed"]),
            rows=rows,
            throughput_id=throughput_id,
            rate=_rate(rows, throughput_id),
        )


def _rate(rows: Sequence[Row], throughput_id: str | None) -> float | None:
    """The rate of the reference that makes a run's ratios images/s; None where it ranks images/s as timed."""
    rates = [
        row["throughput_img_s"] / row["throughput_ratio"]
        for row in rows
        if row["throughput_id"] == throughput_id
        and row["throughput_raw_img_s"] is not None
        and row["throughput_img_s"]
        and row["throughput_ratio"]
    ]
    return statistics.median(rates) if rates else None


def _at_one_rate(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs with all ratios multiplied by the first run's rate: what was ranked are the ratios, and every run has a rate of its own."""
    (first, *_) = runs
    return [
        run
        if run.rate is None or first.rate is None or run.rate == first.rate
        else replace(run, rows=[_scaled(row, first.rate / run.rate) for row in run.rows])
        for run in runs
    ]


def _scaled(row: Row, factor: float) -> Row:
    values = {"throughput_img_s": factor, "latency_ms": 1 / factor}
    return row | {name: row[name] * by for name, by in values.items() if row[name] is not None}


def score_refusal(runs: Sequence[ComparedRun]) -> str | None:
    """Why the scores of these runs are not compared; None where they are: all have one proxy_id."""
    ids = {run.label: run.manifest.get("proxy_id") for run in runs}
    without = [label for label, proxy_id in ids.items() if proxy_id is None]
    if without:
        return f"{_and(without)} {'has' if len(without) == 1 else 'have'} no score"
    if len(set(ids.values())) == 1:
        return None
    parts = {label: re.split("[@/]", str(proxy_id)) for label, proxy_id in ids.items()}
    if len({len(each) for each in parts.values()}) > 1:
        return "the proxy_id differs: " + "; ".join(f"{proxy_id} in {label}" for label, proxy_id in ids.items())
    places = [place for place, words in enumerate(zip(*parts.values(), strict=True)) if len(set(words)) > 1]
    return "the proxy_id differs: " + "; ".join(
        f"{'/'.join(each[place] for place in places)} in {label}" for label, each in parts.items()
    )


def speed_refusal(runs: Sequence[ComparedRun]) -> str | None:
    """Why what depends on the device is not compared; None where all runs rank timings of one identity."""
    without = [run.label for run in runs if run.throughput_id is None]
    if without:
        return f"{_and(without)} {'has' if len(without) == 1 else 'have'} no timing"
    first, *others = runs
    return (
        "; ".join(
            f"{run.label}: {identity_differences(_identity(first), _identity(run), f'in {first.label}', f'in {run.label}')}"
            for run in others
            if run.throughput_id != first.throughput_id
        )
        or None
    )


def _identity(run: ComparedRun) -> Identity:
    return row_identity(next(row for row in reversed(run.rows) if row["throughput_id"] == run.throughput_id))


def refusals(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The objectives that are not compared, with the reason."""
    found: dict[str, str] = {}
    score, speed = score_refusal(runs), speed_refusal(runs)
    for name in dict.fromkeys(name for run in runs for name in run.objectives):
        having = [run.label for run in runs if name in run.objectives]
        if len(having) < len(runs):
            found[name] = f"an objective of {_and(having)} only"
        elif name == SCORE and score:
            found[name] = score
        elif name in DEVICE_OBJECTIVES and speed:
            found[name] = speed
    return found


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def differences(runs: Sequence[ComparedRun]) -> list[Document]:
    """What was asked for, or which version measured, otherwise in some of the runs: each `setting` with its `values` and the labels of their `runs`."""
    said = {run.label: {**run.request, **_flat({"versions": run.manifest.get("versions")})} for run in runs}
    found: list[Document] = []
    for name in dict.fromkeys(name for each in said.values() for name in each):
        labels: dict[str, list[str]] = {}
        for label, each in said.items():
            labels.setdefault(json.dumps(each.get(name)), []).append(label)
        if len(labels) > 1:
            found.append(
                {"setting": name, "values": [{"value": json.loads(text), "runs": own} for text, own in labels.items()]}
            )
    return found


def _request(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("budget_macs", "tolerance", "limits", "objectives", "sampler", "seed", "trials", "papers", "fix", "rungs")
    asked = {name: manifest.get(name) for name in names}
    blocks = {name: str(sha256)[:_DIGITS] for name, sha256 in manifest.get("blocks", {}).items()}
    included = {name: one["arch_id"] for name, one in manifest.get("include", {}).items()}
    taken = sorted(f"{one['run']} of {one['begun_at']}" for one in manifest.get("taken_from", ()))
    flat = _flat(
        {
            "space": _space(folder, manifest),
            **asked,
            "blocks": blocks,
            "include": included,
            "from": taken or None,
            "settings": manifest["settings"],
        }
    )
    return {name: value for name, value in flat.items() if name not in _FOLLOWING and value is not None}


def _space(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The name of a run's space and digits of what it allows: another place, comments and another order of its keys make no other space."""
    digits, copy = str(manifest["space"]["sha256"]), folder / SPACE_FILE
    if copy.exists():
        allowed = tomllib.loads(read_text(copy, "a run's copy of its space"))
        digits = hashlib.sha256(json.dumps(allowed, sort_keys=True, default=str).encode()).hexdigest()
    return f"{Path(manifest['space']['name']).name} (digest {digits[:_DIGITS]})"


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
