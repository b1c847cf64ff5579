"""Weights & Biases: one of its runs for each run, offline in the folder `wandb` of the run unless WANDB_MODE says otherwise."""

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from archsearch.results import WANDB_FOLDER, Row
from archsearch.search.engine.listener import State
from archsearch.search.study.shown import shown_attrs
from archsearch.search.trackers.base import WORDS, About, figures
from archsearch.system import replace_file

PROJECT = "archsearch"
_PATIENCE_S = 30.0  # for a server that does not answer at the start
# Set before the library is imported, where the user has not: it reports its own use and errors over the network, offline too.
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}
_LOGGED = "archsearch-trials.json"  # the trials that were logged, in order, by the folder of each part of the run, seen from the run's own
_OWN_FOLDERS = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")


class WandbTracker:
    """A trial's step is its place among those that were logged.

    The library writes when it likes, and a kill loses what it had not written: a part of a run that was not sent to the server is written anew.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def start(self, about: About) -> tuple[int, ...]:
        """The trials that the server has, as far as that is known."""
        self._about, folder = about, about.folder / WANDB_FOLDER
        folder.mkdir(exist_ok=True)
        self._file, mode = folder / _LOGGED, os.environ.get("WANDB_MODE", "offline")
        noted = json.loads(self._file.read_text()) if self._file.exists() else {}
        places = {part: _place(Path(part), about.folder) for part in noted}
        self._parts: dict[str, list[int]] = {
            str(place): noted[part]
            for part, place in places.items()
            if not _removed_unsent(about.folder.absolute() / place)
        }
        if mode == "offline":
            for name in _OWN_FOLDERS:
                os.environ.setdefault(name, str(folder.absolute()))
        self._run = self._begin(mode)
        self._run.define_metric("*", step_metric="trial")
        sent = [trial for trials in self._parts.values() for trial in trials]
        there = sent if mode == "offline" else sent[: self._run.step]
        self._step = len(there)
        self._trials = self._parts.setdefault(str(_place(Path(self._run.dir).parent, about.folder)), [])
        return tuple(there)

    def _begin(self, mode: str) -> Any:
        settings: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "x_disable_stats": True,
        }
        settings["init_timeout"] = _PATIENCE_S
        return self._library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(self._about.folder.absolute())),
            id=self._about.run_id,
            name=self._about.name,
            config=dict(self._about.settings),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            settings=self._library.Settings(**settings),
        )

    def log(self, row: Row, front_size: int | None) -> None:
        """The figures of a trial, and words about it."""
        found = {"trial": row["trial"], **figures(row, front_size), **shown_attrs(row, WORDS)}
        self._run.log(found, step=self._step, commit=True)
        self._step += 1
        self._trials.append(row["trial"])
        replace_file(self._file, partial(Path.write_text, data=json.dumps(self._parts), encoding="utf-8"))

    def finish(self, state: State, front: Sequence[Row]) -> None:
        """The front as a summary."""
        names = ("trial", *self._about.objectives, "paper", "architecture")
        self._run.summary["state"] = state
        self._run.summary["front"] = [shown_attrs(row, names) for row in front]
        self._run.finish(exit_code=int(state == "failed"))


def _place(part: Path, folder: Path) -> Path:
    """A part of the run seen from the run's folder, whatever that was called before; as it is where WANDB_DIR put it elsewhere."""
    own = Path(WANDB_FOLDER) / part.name
    return own if (folder / own).exists() else part


def _removed_unsent(part: Path) -> bool:
    """Remove a part of a run that was written offline and not sent since; False for one that was sent."""
    if not part.name.startswith("offline-run-") or any(part.glob("*.synced")):
        return False
    shutil.rmtree(part, ignore_errors=True)
    return True
