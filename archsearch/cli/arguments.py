"""The arguments ARCH and RUN: the architecture or the run that a name on the command line stands for."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import UserError, did_you_mean, shown
from archsearch.results import (
    MANIFEST_FILE,
    SAMPLES,
    Sampled,
    damage_is_an_error,
    find_samples,
    latest_run,
    read_manifest,
    read_trials,
    sample_files,
    trial_ids,
)
from archsearch.units import format_names

if TYPE_CHECKING:  # loads torch, which `archsearch report` does without
    from archsearch.space import Arch

_MOST_STDIN = 10**7  # characters
_ARCH_ID = re.compile("[0-9a-fA-F]{4,12}")  # or its first digits
# Of a run and a trial. Digits of an arch_id are those behind nothing or what is no module: `module:function` is no row.
_ROW = re.compile(r".*:\d+|(?:.*[^\w.].*)?:[0-9a-fA-F]{4,12}")


def resolve_arch(text: str, results_root: Path) -> "Arch":
    """The architecture behind a space file of size one, a paper's name, `RUN:TRIAL`, `:TRIAL` of the latest run, an arch_id, or `-` for JSON on stdin.

    TRIAL is a trial's number or the first digits of an arch_id. An arch_id, or its first digits, is looked for among the papers' models, the runs under
    `results_root`, and what `archsearch sample` printed here. Raises UserError saying what was not found and what there is.
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
    if _ARCH_ID.fullmatch(text) and not os.path.lexists(text):
        return _by_id(text.lower(), results_root)
    return load_space(text).arch(), None


def _by_id(beginning: str, results_root: Path) -> tuple["Arch", tuple[Path, int] | None]:
    """The one architecture whose arch_id begins so, of a paper, a run or a draw of `archsearch sample`. Raises UserError for none and for several."""
    from archsearch.space import paper, paper_names

    papers = [arch for arch in map(paper, paper_names()) if arch.arch_id.startswith(beginning)]
    trials, unread = _trials_by_id(beginning, results_root)
    files = sample_files(results_root)
    samples = {each.arch_id: each for each in find_samples(files, beginning)}
    ids = sorted({*(arch.arch_id for arch in papers), *trials, *samples})
    if len(ids) > 1:
        raise UserError(
            f"{beginning}: the beginning of {len(ids)} arch_ids ({format_names(ids)}); write more digits, or RUN:TRIAL"
        )
    if papers:
        return papers[0], None
    if trials:
        ((folder, number),) = trials.values()
        return _from_run(folder, str(number))[0], (folder, number)
    if samples:
        return _from_sample(next(iter(samples.values()))), None
    runs = len(list(results_root.glob(f"*/{MANIFEST_FILE}")))
    unreadable = f" ({unread} of them not readable)" if unread else ""
    raise UserError(
        f"{beginning}: no architecture has this arch_id among the {len(paper_names())} papers' models, the {runs} runs under {results_root}{unreadable}, and "
        f"the {len(files)} draws of `archsearch sample` kept in {results_root / SAMPLES}; give the `sample` command that printed it again, in this folder"
    )


def _trials_by_id(beginning: str, results_root: Path) -> tuple[dict[str, tuple[Path, int]], int]:
    """By arch_id the folder and the number of a trial, of the latest run that has it; and how many runs could not be read."""
    found: dict[str, tuple[Path, int]] = {}
    unread = 0
    manifests = results_root.glob(f"*/{MANIFEST_FILE}")
    for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            numbers = trial_ids(manifest.parent)
        except UserError:
            unread += 1
            continue
        for arch_id, number in numbers.items():
            if arch_id.startswith(beginning):
                found.setdefault(arch_id, (manifest.parent, number))
    return found, unread


def _from_sample(sampled: Sampled) -> "Arch":
    """The architecture of a draw. Raises UserError where it needs a file of blocks that is not what it was, or now has another arch_id."""
    from archsearch.blocks import read_block_file
    from archsearch.space import Arch, register_files

    again = "give its `archsearch sample` command again"
    for path, sha256 in sampled.blocks.items():
        file = read_block_file(Path(path), f"{sampled.arch_id}: ")
        if file.sha256 != sha256:
            raise UserError(f"{sampled.arch_id}: was drawn with another text of {path}; {again}")
        register_files([file])
    arch = Arch.from_dict(sampled.document, str(sampled.file))
    if arch.arch_id != sampled.arch_id:
        raise UserError(f"{sampled.arch_id}: in {sampled.file} stands what is {arch.arch_id} in this version; {again}")
    return arch


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


def names_row_or_id(text: str) -> bool:
    """Whether a text is of the form `RUN:TRIAL`, `:TRIAL` or an arch_id, and no file; `module:function` is none of them."""
    return not os.path.lexists(text) and bool(_ARCH_ID.fullmatch(text) or _ROW.fullmatch(text))


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


def _find_row(folder: Path, trial: str) -> dict[Any, Any]:
    """Number, arch_id and architecture of the row of a run that a trial's number or the first digits of an arch_id name."""
    rows: list[dict[Any, Any]] = read_trials(folder)[["trial", "arch_id", "arch"]].to_dict("records")
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
