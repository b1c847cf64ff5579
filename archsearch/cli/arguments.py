"""The arguments ARCH and RUN: the architecture or the run that a name on the command line stands for."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import UserError, did_you_mean, shown
from archsearch.results import MANIFEST_FILE, damage_is_an_error, latest_run, read_manifest, read_trials
from archsearch.units import format_names

if TYPE_CHECKING:  # loads torch, which `archsearch report` does without
    from archsearch.space import Arch

_MOST_STDIN = 10**7  # characters


def resolve_arch(text: str, results_root: Path) -> "Arch":
    """The architecture behind a space file of size one, a paper's name, `RUN:TRIAL`, `:TRIAL` of the latest run, or `-` for JSON on stdin.

    TRIAL is a trial's number or the first digits of an arch_id. Raises UserError saying what was not found and what there is.
    """
    return resolve_trial(text, results_root)[0]


def resolve_trial(text: str, results_root: Path) -> tuple["Arch", tuple[Path, int] | None]:
    """As `resolve_arch`; with the run's folder and the trial's number where it is a row of a run."""
    from archsearch.space import Arch, load_space

    if text == "-":
        return Arch.from_json(sys.stdin.read(_MOST_STDIN), "stdin"), None
    run, colon, trial = text.rpartition(":")
    if colon and not os.path.isfile(text):
        folder = resolve_run(run or None, results_root)
        arch, number = _from_run(folder, trial)
        return arch, (folder, number)
    return load_space(text).arch(), None


def resolve_run(text: str | None, results_root: Path) -> Path:
    """The folder of a run: a path, a name under `results_root`, or the latest run for None. Raises UserError when there is no such run."""
    if text is None:
        return latest_run(results_root)
    for folder in (Path(text), results_root / text):
        if os.path.isfile(folder / MANIFEST_FILE):
            return folder
    known = sorted(path.parent.name for path in results_root.glob(f"*/{MANIFEST_FILE}"))
    hint = did_you_mean(Path(text).name, known)
    there = f"runs there: {format_names(known)}" if known else "there is no run there yet"
    raise UserError(f"{text}: not the folder of a run, neither here nor under {results_root}{hint}; {there}")


def names_trial(text: str) -> bool:
    """Whether RUN is `RUN:TRIAL` or `:TRIAL` rather than a run alone."""
    return ":" in text and not os.path.exists(text)


def find_trial(text: str, results_root: Path) -> tuple[Path, int]:
    """The run's folder and the trial's number of `RUN:TRIAL` or `:TRIAL`, without loading torch. Raises UserError as `resolve_arch` does."""
    run, _, trial = text.rpartition(":")
    folder = resolve_run(run or None, results_root)
    return folder, int(_find_row(folder, trial)["trial"])


def _from_run(folder: Path, trial: str) -> tuple["Arch", int]:
    """The architecture and the number of one row of a run."""
    from archsearch.space import Arch, register_files, stored_block_files

    with damage_is_an_error(folder):
        register_files(stored_block_files(folder, read_manifest(folder)))
    row = _find_row(folder, trial)
    number = int(row["trial"])
    return Arch.from_dict(json.loads(row["arch"]), f"{folder}: trial {number}"), number


def _find_row(folder: Path, trial: str) -> dict[str, Any]:
    """Number, arch_id and architecture of the row of a run that a trial's number or the first digits of an arch_id name."""
    rows: list[dict[str, Any]] = read_trials(folder)[["trial", "arch_id", "arch"]].to_dict("records")
    found = [row for row in rows if str(row["trial"]) == trial]
    if not found and trial:
        found = [row for row in rows if row["arch_id"].startswith(trial.lower())]
    ids = sorted({row["arch_id"] for row in found})
    if len(ids) > 1:
        raise UserError(
            f"{folder}: {shown(trial)} is the beginning of {len(ids)} arch_ids ({format_names(ids)}); write more digits"
        )
    if not found:
        numbers = [row["trial"] for row in rows]
        there = f"its trials are {min(numbers)} to {max(numbers)}" if rows else "the run has no trials yet"
        raise UserError(f"{folder}: no trial or arch_id {shown(trial)}; {there}")
    return found[0]
