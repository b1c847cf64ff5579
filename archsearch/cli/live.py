"""The display of a run on stderr: a live panel on a terminal; anywhere else a line for each trial, and at least one a minute."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from archsearch.cli.progress import Heartbeat
from archsearch.cli.workers import AtWork, describe_phase, failure_kind, phases_of, workers_lines
from archsearch.results import OBJECTIVES, Row
from archsearch.search import Listener, Pace, State, Tally, TimeLeft
from archsearch.units import format_bytes, format_count, format_seconds

_BAR_WIDTH = 30
_LABEL_WIDTH = 6
_REFRESH_PER_S = 4
# The front so far is shown from this trial on, as so many rows; without a terminal when it has changed, and this often at most.
_FRONT_FROM, _FRONT_ROWS, _FRONT_EVERY_S = 3, 5, 300.0
# Lines of the panel beside those of the workers and of the front, and how many of the workers there are at least.
_OTHER_LINES, _FEWEST_WORKERS = 8, 3
_COLUMNS = {
    "proxy_score": "score",
    "throughput_img_s": "img/s",
    "latency_ms": "ms/batch",
    "peak_memory_bytes": "memory",
    "macs": "MACs",
}


@contextlib.contextmanager
def watching(console: Console, folder: str, what: str, clock: TimeLeft) -> Iterator[Listener]:
    """The listener for this console: a panel that is gone at the end, or plain lines."""
    if not console.is_terminal:
        console.print(_stamped(f"{folder}: {what}"), soft_wrap=True)
        plain = PlainListener(console, clock)
        with Heartbeat(
            lambda: _stamped(plain.describe()), lambda line: console.print(line, soft_wrap=True)
        ) as plain.heartbeat:
            yield plain
        return
    panel = LiveListener(folder, what, clock, height=lambda: console.height)
    with Live(console=console, get_renderable=panel.render, refresh_per_second=_REFRESH_PER_S, transient=True):
        yield panel


def _stamped(line: str) -> str:
    """The line after the local time, to the second."""
    return f"{datetime.now().astimezone().replace(tzinfo=None).isoformat(timespec='seconds')} {line}"


class _Watch:
    """What both displays know of a run: what is under way, its pace, failures, and the front."""

    def __init__(self, clock: TimeLeft) -> None:
        self.clock, self.pace = clock, Pace()
        self.tally: Tally | None = None
        self.works: dict[int, AtWork] = {}  # by trial, the latest last
        self.failures: Counter[str] = Counter()  # of this session, by kind
        self.num_ended = 0  # trials that were evaluated in this session

    def trial_started(self, row: Row, tally: Tally) -> None:
        """The trial is under way."""
        self.clock.trial_started(row)
        self.tally = tally
        self._begin(row)

    def progress(self, event: Mapping[str, Any]) -> None:
        """How far a trial is."""
        self.clock.progress(event)
        self.pace.progress(event)
        trial = event.get("trial", next(reversed(self.works), None))
        if trial in self.works:
            self.works[trial].hear(event)

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The trial has ended."""
        self.clock.trial_finished(row)
        self.works.pop(row["trial"], None)
        self.tally = tally
        self.num_ended += row["reused_from"] is None
        if row["state"] == "failed":
            self.failures[failure_kind(str(row["reason"]))] += 1

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """The kept trial is under way."""
        self.clock.remeasure_started(row, place, total)
        self._begin(row, f"timing kept trials anew {place}/{total}: ")

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It has been timed."""
        self._member_finished(row)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """The member of the front is under way."""
        self.clock.again_started(row, place, total)
        self._begin(row, f"measuring the front again {place}/{total}: ")

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It has been timed."""
        self._member_finished(row)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """The training is under way."""
        self.clock.seed_started(row, place, total)
        self._begin(row, f"training the front with other seeds {place}/{total}: ")

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It has been trained."""
        self._member_finished(row)

    def _begin(self, row: Row, front_work: str = "") -> None:
        self.works[row["trial"]] = AtWork(row=row, front_work=front_work)

    def _member_finished(self, row: Row) -> None:
        self.clock.member_finished(row)
        self.works.pop(row["trial"], None)

    def finished(self, state: State, tally: Tally) -> None:
        """The last state of the run."""
        self.works, self.tally = {}, tally

    @property
    def is_shared(self) -> bool:
        """Whether several workers share the run."""
        return len(self.works) > 1 or (self.tally is not None and self.tally.workers != 1)

    def now(self) -> str:
        """The trial at work, of a single worker: `trial 7, 4.60G MACs, lka 64x3`."""
        work = next(iter(list(self.works.values())), None)
        if work is None:
            return "starting the worker" if self.tally is None else "choosing the next candidate"
        row = work.row
        paper = f"{row['paper']}: " if row["paper"] else ""
        predicted = row.get("throughput_predicted_img_s")
        speed = f"predicted {predicted:.1f} img/s, " if predicted is not None and not work.front_work else ""
        return f"{work.front_work}trial {row['trial']}, {format_count(row['macs'])} MACs, {speed}{paper}{row['architecture']}"

    def phase(self) -> str:
        """What is done with it; who is waited for; whether it is slow."""
        work = next(iter(list(self.works.values())), None)
        if work is None:
            return ""
        waiting = self.clock.waiting
        if waiting is not None:
            return f"waiting for the device since {format_seconds(waiting[1])}: {waiting[0]} has it"
        slow = self.pace.slow_words(work.worker)
        return describe_phase(work.event) + (f"; {slow}" if slow else "")

    def queue(self) -> str:
        """`8 workers: 7 at work, 1 free; 40 trials wait, 12.3 an hour`."""
        if self.tally is None:
            return "starting"
        workers, at_work = self.tally.workers, len(self.works)
        words = f"{workers} worker{'s' * (workers != 1)}: {at_work} at work" if workers else "no worker at present"
        words += f", {workers - at_work} free" if workers > at_work else ""
        left = max(0, self.tally.total - self.tally.ended - at_work)
        hours = self.clock.elapsed_s / 3600
        rate = f", {self.num_ended / hours:.1f} an hour" if self.num_ended and hours else ""
        return f"{words}; {left} trial{'s' * (left != 1)} wait{'s' * (left == 1)}{rate}"

    def failed(self) -> str:
        """Why trials failed, `3: 2 killed, 1 earlier`; empty where none did."""
        if self.tally is None or not self.tally.failed:
            return ""
        earlier = self.tally.failed - sum(self.failures.values())
        kinds = [*self.failures.most_common(), *[("earlier", earlier)] * (earlier > 0)]
        shown = f": {', '.join(f'{number} {kind}' for kind, number in kinds)}" if self.failures else ""
        return f"{self.tally.failed}{shown}"

    def time(self) -> str:
        """`5m12s, about 12m left`."""
        left = self.clock.left_s(self.tally)
        words = format_seconds(self.clock.elapsed_s) + (
            f", about {format_seconds(left)} left" if left is not None else ""
        )
        return words + (", the wait not counted" if left is not None and self.clock.waiting else "")

    def front(self) -> Sequence[Row]:
        """The front so far, once enough trials have ended."""
        return self.tally.front if self.tally is not None and self.tally.ended >= _FRONT_FROM else ()


class PlainListener(_Watch):
    """One line a trial, the front now and then, and a line a minute."""

    def __init__(self, console: Console, clock: TimeLeft) -> None:
        super().__init__(clock)
        self._console = console
        self.heartbeat: Heartbeat | None = None
        self._shown: tuple[int, ...] = ()
        self._shown_at = -_FRONT_EVERY_S

    def _print(self, line: str) -> None:
        self._console.print(_stamped(line), soft_wrap=True)
        if self.heartbeat is not None:
            self.heartbeat.rest()

    def describe(self) -> str:
        """`now: trial 7, ...; training the small copy, step 120 of 200; 5m12s, about 12m left`; of several workers how many do what."""
        if self.is_shared:
            failed = f"failed {self.failed()}" if self.failed() else ""
            return "; ".join(
                filter(None, (f"now: {self.queue()}", phases_of(self.works.values()), failed, self.time()))
            )
        return "; ".join(filter(None, (f"now: {self.now()}", self.phase(), self.time())))

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The trial's line, and the front where it has changed."""
        super().trial_finished(row, tally)
        self._print(f"[{tally.ended}/{tally.total}] {describe_trial(row)}; front {tally.front_size}; {self.time()}")
        members = tuple(row["trial"] for row in self.front())
        if members and members != self._shown and time.monotonic() - self._shown_at >= _FRONT_EVERY_S:
            self._shown, self._shown_at = members, time.monotonic()
            self._console.print(
                front_table(
                    self.front(), self.clock.objectives, f"front so far, {len(members)} of {tally.ended} trials"
                )
            )

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The kept trial's line."""
        super().remeasure_finished(row, place, total, reason)
        self._print(f"[timed anew {place}/{total}] {describe_remeasured(row, reason)}; {self.time()}")

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The member's line."""
        super().again_finished(row, place, total, reason)
        self._print(f"[front again {place}/{total}] {describe_recheck(row, reason)}; {self.time()}")

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The training's line."""
        super().seed_finished(row, place, total, reason)
        self._print(f"[seeds {place}/{total}] {describe_seeds(row, reason)}; {self.time()}")


def describe_trial(row: Row) -> str:
    """A finished trial in one line."""
    # The architecture comes last, since a narrow terminal cuts the end.
    figures = [f"trial {row['trial']}", f"{format_count(row['macs'])} MACs", f"{format_count(row['params'])} params"]
    if row["throughput_img_s"] is not None:
        predicted = row.get("throughput_predicted_img_s")
        figures.append(f"{row['throughput_img_s']:.1f} img/s" + (f" (predicted {predicted:.1f})" if predicted else ""))
    if row["proxy_score"] is not None:
        figures.append(f"score {row['proxy_score']:.3f}")
    elif row.get("rung_score") is not None:
        figures.append(f"score {row['rung_score']:.3f} at rung {row['rung']}")
    if row["reused_from"] is not None:
        figures.append(f"reused from trial {row['reused_from']}")
    if row.get("taken_from"):
        figures.append(_taken_words(json.loads(row["taken_from"])))
    if row["state"] in ("failed", "stopped"):
        figures.append(f"{row['state']}: {row['reason']}")
    return f"{', '.join(figures)}: {row['paper'] or row['architecture']}"


def _taken_words(taken: dict[str, str]) -> str:
    """`throughput from hybrid-2G-1a2b3c:7`: what of a trial was measured in which trial of an earlier run."""
    words = {"throughput": "throughput", "proxy": "score"}
    shown = {words[phase]: origin for phase, origin in taken.items() if phase in words} or taken
    return ", ".join(f"{word} from {origin}" for word, origin in shown.items())


def describe_remeasured(row: Row, reason: str | None) -> str:
    """A kept trial that was timed anew, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be timed ({reason}): {name}"
    return f"trial {row['trial']}, {row['throughput_img_s']:.1f} img/s: {name}"


def describe_recheck(row: Row, reason: str | None) -> str:
    """A member of the front that was timed again, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be measured again ({reason}): {name}"
    change = row["throughput_change"]
    ratio = "" if change is None else f", {change:+.1%} against the reference"
    rates = f"{row['throughput_img_s']:.1f} img/s, now {row['throughput_again_img_s']:.1f}"
    return f"trial {row['trial']}, {rates}{ratio}: {name}"


def describe_seeds(row: Row, reason: str | None) -> str:
    """A trial of the front or near it that was trained with another seed, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be trained with another seed ({reason}): {name}"
    spread = f"mean {row['proxy_score_mean']:.3f}, standard deviation {row['proxy_score_sd']:.3f}"
    return f"trial {row['trial']}, score {row['proxy_score']:.3f}, over {row['proxy_seeds']} seeds {spread}: {name}"


class LiveListener(_Watch):
    """A few lines that are redrawn several times a second."""

    def __init__(self, folder: str, what: str, clock: TimeLeft, *, height: Callable[[], int] = lambda: 24) -> None:
        super().__init__(clock)
        self._folder, self._what, self._height = folder, what, height
        self._last = ""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """Show the trial as the last one."""
        super().trial_finished(row, tally)
        self._last = describe_trial(row)

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its new figure."""
        super().remeasure_finished(row, place, total, reason)
        self._last = describe_remeasured(row, reason)

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show the change of its figure."""
        super().again_finished(row, place, total, reason)
        self._last = describe_recheck(row, reason)

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its scores over the seeds so far."""
        super().seed_finished(row, place, total, reason)
        self._last = describe_seeds(row, reason)

    def render(self) -> Table:
        """The panel; every line is cut at the terminal's width."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True, min_width=_LABEL_WIDTH)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("run", self._folder)
        grid.add_row("search", self._what)
        grid.add_row("trials", self._trials())
        if self.failures:
            grid.add_row("failed", self.failed())
        if self.is_shared:
            grid.add_row("work", self.queue())
            if self.works:
                grid.add_row("", workers_lines(list(self.works.values()), self._fitting(), self.clock, self.pace))
        else:
            grid.add_row("now", self.now())
            grid.add_row("", self.phase())
        grid.add_row("last", self._last or "-")
        grid.add_row("time", self.time())
        if self.front():
            grid.add_row("front", front_table(self.front(), self.clock.objectives))
        return grid

    def _fitting(self) -> int:
        """How many lines of workers fit the terminal."""
        front = 1 + min(len(self.front()), _FRONT_ROWS) if self.front() else 0
        return max(_FEWEST_WORKERS, self._height() - _OTHER_LINES - front)

    def _trials(self) -> Table | str:
        tally = self.tally
        if tally is None:
            return "starting"
        counts = {"stopped": tally.stopped, "failed": tally.failed}
        words = f"{tally.ended} of {tally.total}, front {tally.front_size}"
        words += "".join(f", {state} {count}" for state, count in counts.items() if count)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=max(tally.total, 1), completed=tally.ended, width=_BAR_WIDTH), words)
        return line


def front_table(front: Sequence[Row], objectives: Sequence[str], title: str = "architecture") -> Table:
    """The first members of the front, best in the first objective; every line is cut at the terminal's width, no figure is."""
    first = objectives[0]
    rows = sorted(front, key=lambda row: float(row[first]), reverse=OBJECTIVES[first] == "maximize")
    cells = [["trial", *(_COLUMNS.get(name, name) for name in objectives)]]
    cells += [[str(row["trial"]), *(_figure(name, row[name]) for name in objectives)] for row in rows[:_FRONT_ROWS]]
    more = f" ({len(rows) - _FRONT_ROWS} more)" if len(rows) > _FRONT_ROWS else ""
    names = [title + more, *(row["paper"] or row["architecture"] for row in rows[:_FRONT_ROWS])]
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in zip(*cells, strict=True):
        table.add_column(justify="right", no_wrap=True, min_width=max(map(len, column)))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for figures, name in zip(cells, names, strict=True):
        table.add_row(*figures, name)
    return table


def _figure(name: str, value: float) -> str:
    if name == "proxy_score":
        return f"{value:.3f}"
    if name == "peak_memory_bytes":
        return format_bytes(value)
    return format_count(value) if name in ("params", "macs") else f"{value:.1f}"
