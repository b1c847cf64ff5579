"""Which trackers a run has, and the listener that tells them of it; none of them can end or change a run."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from archsearch.errors import UserError, did_you_mean, first_line
from archsearch.results import ENDED, Row
from archsearch.search.config import RunConfig
from archsearch.search.engine.listener import Listener, State, Tally
from archsearch.search.study.store import RunStore
from archsearch.search.trackers import mlflow, wandb
from archsearch.search.trackers.base import About, Tracker
from archsearch.search.trackers.mlflow import MlflowTracker
from archsearch.search.trackers.tensorboard import TensorBoardTracker
from archsearch.search.trackers.wandb import WandbTracker
from archsearch.system import Say
from archsearch.version import __version__

# By the name of the option, which is that of the extra and of the library.
TRACKERS: dict[str, Callable[[Any], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
_ENVIRONMENT = {"mlflow": mlflow.ENVIRONMENT, "wandb": wandb.ENVIRONMENT}


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a name that is no tracker's, and for one whose library cannot be imported."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"--track: unknown tracker {name!r}{did_you_mean(name, TRACKERS)}; known: {', '.join(TRACKERS)}"
            )
        _library(name)


def _library(name: str) -> Any:
    for variable, value in _ENVIRONMENT.get(name, {}).items():
        os.environ.setdefault(variable, value)
    try:
        library = import_module(name)
        # A folder of this name, such as wandb makes, is a package without files to Python.
        if getattr(library, "__file__", None) is None:
            raise ImportError(f"no package {name}")
    except ImportError as error:
        raise UserError(
            f"--track {name}: the package {name} cannot be imported ({first_line(error)}); pip install 'archsearch[{name}]'"
        ) from error
    return library


@contextlib.contextmanager
def tracking(
    names: Sequence[str], store: RunStore, listener: Listener, command: Sequence[str], say: Say
) -> Iterator[Listener]:
    """The listener with trackers of these names, which have all trials that ended before; without a name the listener itself."""
    if not names:
        yield listener
        return
    about = About(
        folder=store.folder,
        name=store.config.name,
        run_id=f"{re.sub(r'[^A-Za-z0-9_-]', '-', store.study_name)}-{store.track_id()}",  # stays where the folder is renamed
        objectives=store.config.objectives,
        settings=flat_settings(store.config, command),
    )
    tracked = _Tracked(listener, {name: TRACKERS[name](_library(name)) for name in names}, say)
    tracked.start(about, [row for row in store.rows() if row["state"] in ENDED])
    try:
        yield cast(Listener, tracked)
    finally:
        tracked.finish("failed", store.front)  # unless it has ended otherwise


def flat_settings(config: RunConfig, command: Sequence[str]) -> dict[str, Any]:
    """What a run was asked for, each a word or a number."""
    conditions = {
        name: value for name, value in config.settings.items() if isinstance(value, str | int | float) and value != ""
    }
    return {
        **conditions,
        "space": config.space_name,
        "budget": config.budget_text.removeprefix("at "),
        "objectives": ",".join(config.objectives),
        "sampler": config.sampler,
        "seed": config.seed,
        "papers": ",".join(config.papers),
        "rungs": ",".join(map(str, config.rungs)),
        **{f"fix.{name}": value for name, value in config.fix.items()},
        "command": " ".join(command),
        "archsearch_version": __version__,
    }


@dataclass
class _Tracked:
    """A listener that tells another one everything, and trackers the trials and the end."""

    listener: Listener
    trackers: dict[str, Tracker]
    say: Say

    def __getattr__(self, name: str) -> Any:
        return getattr(self.listener, name)

    def start(self, about: About, ended: Sequence[Row]) -> None:
        """Begin, with the trials that ended before and that a tracker lacks, in the order in which they ended."""
        rows = sorted(ended, key=lambda row: (row["finished_at"], row["trial"]))

        def begin(tracker: Tracker) -> None:
            there = set(tracker.start(about))
            for row in rows:
                if row["trial"] not in there:
                    tracker.log(row, None)

        self._tell(begin)

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """Tell of a trial."""
        self.listener.trial_finished(row, tally)
        self._tell(lambda tracker: tracker.log(row, tally.front_size))

    def finished(self, state: State, tally: Tally) -> None:
        """Tell of the end."""
        self.listener.finished(state, tally)
        self.finish(state, lambda: tally.front)

    def finish(self, state: State, front: Callable[[], Sequence[Row]]) -> None:
        """End what has not ended."""
        if self.trackers:
            rows = front()
            self._tell(lambda tracker: tracker.finish(state, rows))
        self.trackers = {}

    def _tell(self, call: Callable[[Tracker], object]) -> None:
        """Call every tracker; one that fails is left out from then on, which is said once."""
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                del self.trackers[name]
                self.say(
                    f"--track {name}: failed ({type(error).__name__}: {first_line(error)}) and hears no more; the run goes on, "
                    "and the same command gives it what it lacks"
                )
