"""Weights & Biases: one of its runs for each run, offline in the folder `wandb` of the run unless WANDB_MODE says otherwise."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from archsearch.results import Row
from archsearch.search.engine.listener import State
from archsearch.search.study.shown import shown_attrs
from archsearch.search.trackers.base import WORDS, About, figures
from archsearch.system import replace_file

FOLDER, PROJECT = "wandb", "archsearch"
# Set before the library is imported, where the user has not: it reports its own use and errors over the network, offline too.
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}
_LOGGED = "archsearch-trials.json"  # the trials that were logged, in order: files of wandb cannot be asked
_OWN_FOLDERS = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")


class WandbTracker:
    """A trial's place among those that were logged is its step: one that is logged twice, after a kill, is there once."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def start(self, about: About) -> tuple[int, ...]:
        """The trials that were logged before."""
        self._about, folder = about, about.folder / FOLDER
        self._file = folder / _LOGGED
        folder.mkdir(exist_ok=True)
        self._logged: list[int] = json.loads(self._file.read_text()) if self._file.exists() else []
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            for name in _OWN_FOLDERS:
                os.environ.setdefault(name, str(folder.absolute()))
        settings = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "x_disable_stats": True}
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(about.folder.absolute())),
            id=about.run_id,
            name=about.name,
            config=dict(about.settings),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            settings=self._library.Settings(**settings),
        )
        self._run.define_metric("*", step_metric="trial")
        return tuple(self._logged)

    def log(self, row: Row, front_size: int | None) -> None:
        """The figures of a trial, and words about it."""
        found = {"trial": row["trial"], **figures(row, front_size), **shown_attrs(row, WORDS)}
        self._run.log(found, step=len(self._logged), commit=True)
        self._logged.append(row["trial"])
        replace_file(self._file, partial(Path.write_text, data=json.dumps(self._logged), encoding="utf-8"))

    def finish(self, state: State, front: Sequence[Row]) -> None:
        """The front as a summary."""
        names = ("trial", *self._about.objectives, "paper", "architecture")
        self._run.summary["state"] = state
        self._run.summary["front"] = [shown_attrs(row, names) for row in front]
        self._run.finish(exit_code=int(state == "failed"))
