"""What a name on the command line stands for: an architecture, a run, or a choice of the papers' models."""

import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.results import MANIFEST_FILE, latest_run, read_trials
from archsearch.space.arch import Arch
from archsearch.space.space import load_space


def resolve_arch(text: str, results_root: Path) -> Arch:
    """The architecture behind a space file of size one, a paper's name, `RUN:TRIAL`, `:TRIAL` of the latest run, or `-` for JSON on stdin.

    TRIAL is a trial's number or the first digits of an arch_id. Raises UserError saying what was not found and what there is.
    """
    if text == "-":
        return _from_stdin()
    run, colon, trial = text.rpartition(":")
    if colon and not Path(text).is_file():
        return _from_run(resolve_run(run or None, results_root), trial)
    return load_space(text).arch()


def resolve_run(text: str | None, results_root: Path) -> Path:
    """The folder of a run: a path, a name under `results_root`, or the latest run for None. Raises UserError when it is none."""
    if text is None:
        return latest_run(results_root)
    for folder in (Path(text), results_root / text):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    known = sorted(path.parent.name for path in results_root.glob(f"*/{MANIFEST_FILE}"))
    close = difflib.get_close_matches(Path(text).name, known, n=1, cutoff=0.5)
    hint = f", did you mean {close[0]!r}?" if close else ""
    there = f"runs there: {', '.join(known)}" if known else "there is no run there yet"
    raise UserError(f"{text}: no run's folder, neither here nor under {results_root}{hint}; {there}")


def _from_stdin() -> Arch:
    """An architecture as `Arch.to_dict()` gives it, or one object of `archsearch sample --json`."""
    try:
        document = json.load(sys.stdin)
    except (ValueError, RecursionError) as error:
        raise UserError(f"stdin: not valid JSON: {error}") from error
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if isinstance(document, dict) and isinstance(document.get("arch"), dict):
        document = document["arch"]
    if not isinstance(document, dict):
        raise UserError(f"stdin: one architecture as a JSON object is needed, not {_shape_of(document)}")
    return Arch.from_dict(document, "stdin")


def _shape_of(document: Any) -> str:
    return f"a list of {len(document)}" if isinstance(document, list) else f"{document!r:.40}"


def _from_run(folder: Path, trial: str) -> Arch:
    """The architecture of one row of a run."""
    rows = read_trials(folder)[["trial", "arch_id", "arch"]].to_dict("records")
    found = [row for row in rows if str(row["trial"]) == trial]
    if not found and trial:
        found = [row for row in rows if row["arch_id"].startswith(trial.lower())]
    ids = sorted({row["arch_id"] for row in found})
    if len(ids) > 1:
        raise UserError(
            f"{folder}: {trial!r} begins {len(ids)} architectures ({', '.join(ids[:5])}); write more digits"
        )
    if not found:
        raise UserError(f"{folder}: no trial or arch_id {trial!r}; {_trials_there(rows)}")
    return Arch.from_dict(json.loads(found[0]["arch"]), f"{folder}: trial {found[0]['trial']}")


def _trials_there(rows: Sequence[dict[Any, Any]]) -> str:
    if not rows:
        return "the run has no trials yet"
    numbers = [row["trial"] for row in rows]
    return f"its trials are {min(numbers)} to {max(numbers)}"
