"""TensorBoard: event files in the folder `tensorboard` of a run; the step of a figure is its trial."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from archsearch.results import TENSORBOARD_FOLDER, Row
from archsearch.search.engine.listener import State
from archsearch.search.trackers.base import About, figures, front_table


class TensorBoardTracker:
    """Writes the files of a run anew when it goes on: events cannot be taken back, and one that a kill cut off would be doubled."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def start(self, about: About) -> tuple[int, ...]:
        """No trial is there from before."""
        folder = about.folder / TENSORBOARD_FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._about = about
        # The module, which imports torch, is no part of the package tensorboard.
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(folder)
        self._writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in about.settings.items()))
        return ()

    def log(self, row: Row, front_size: int | None) -> None:
        """A scalar for each figure, at the time when the trial ended."""
        for name, value in figures(row, front_size).items():
            self._writer.add_scalar(name, value, row["trial"], walltime=row["finished_at"].timestamp())
        self._writer.flush()

    def finish(self, state: State, front: Sequence[Row]) -> None:
        """The front as a text."""
        self._writer.add_text("state", state)
        self._writer.add_text("front", front_table(front, self._about.objectives))
        self._writer.close()
