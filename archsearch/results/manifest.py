"""manifest.json, which says what a run is and how far it has come; the states and folders of runs."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from archsearch.errors import UserError, without_passwords
from archsearch.system import flocked, replace_file

MANIFEST_FILE = "manifest.json"
DATABASE_FILE = "study.db"
SPACE_FILE = "space.toml"  # a run's copy of its space
LOG_FILE = "worker.log"
LOCK_FILE = "run.lock"  # held by the driver at work in the folder
MANIFEST_VERSION = 1


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Replace manifest.json in one step, without passwords."""
    text = json.dumps(_without_passwords({"format_version": MANIFEST_VERSION, **manifest}), indent=2) + "\n"
    replace_derived(folder / MANIFEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _without_passwords(value: Any) -> Any:
    """A document without the passwords in its texts."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(item) for key, item in value.items()}
    return [_without_passwords(item) for item in value] if isinstance(value, (list, tuple)) else value


def replace_derived(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file that is derived from the study in one step."""
    replace_file(path, write, kept="everything measured so far is kept in the run's storage")


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run. Raises UserError when it is missing or damaged."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "there is no such file" if is_missing else f"not a readable manifest ({error})"
        raise UserError(
            f"{path}: {problem}; name the folder of a run, or give its `archsearch run` command again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != MANIFEST_VERSION:
        raise UserError(
            f"{path}: not a manifest of format {MANIFEST_VERSION}; give the run's `archsearch run` command again"
        )
    document: dict[str, Any] = _without_passwords(manifest)  # earlier versions wrote them
    return document


def study_name(manifest: Mapping[str, Any]) -> str:
    """The name of the run's study, which it keeps where its folder is renamed."""
    return str(manifest.get("study") or manifest["name"])


def run_state(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The state that the manifest says, or `killed` where it says `running` and no process of this machine is at work in the folder."""
    state = str(manifest.get("state"))
    if state != "running" or sys.platform == "win32":  # which has no such lock
        return state
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return "killed"
    try:
        with flocked(descriptor, exclusive=False, wait=False) as is_free:
            return "killed" if is_free else state
    finally:
        os.close(descriptor)


def num_fixed(manifest: Mapping[str, Any]) -> int:
    """How many fixed trials the run is to have: the papers' models, and the included networks, which earlier versions did not know."""
    return len(manifest["papers"]) + len(manifest.get("include", ()))


def missing_words(missing: Mapping[str, int], asked: int) -> str:
    """`17 of 22 trials, the second timing of 3 members of the front`; empty where nothing is missing."""
    words = {
        "trials": f"{missing.get('trials')} of {asked} trials",
        "anew": f"the timing anew of {missing.get('anew')} trials",
        "again": f"the second timing of {missing.get('again')} members of the front",
        "seeds": f"{missing.get('seeds')} trainings of the front with further seeds",
    }
    return ", ".join(text for name, text in words.items() if missing.get(name))


def latest_run(root: Path) -> Path:
    """The folder of the run under `root` that was written last. Raises UserError when there is none."""
    manifests = list(root.glob(f"*/{MANIFEST_FILE}"))
    if not manifests:
        raise UserError(
            f"{root}: holds no run; start one with `archsearch run --budget 4.5GFLOPs`, or name a run's folder"
        )
    return max(manifests, key=lambda path: path.stat().st_mtime_ns).parent
