"""`archsearch prepare` without its options: from what was asked to a prepared folder, and how it is told."""

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from archsearch.data.image_folder import some
from archsearch.data.load import EMBEDDED
from archsearch.data.preparation import Preparation, Watch
from archsearch.data.preparation import prepare as prepare_folder
from archsearch.data.prepared import UNREADABLE, Prepared, check_prepared, is_prepared
from archsearch.data.sources.detect import open_source
from archsearch.data.subset import DEFAULT_VAL_SHARE, Policy
from archsearch.errors import UserError
from archsearch.units import format_bytes, format_seconds

_PREPARE_LINES = 10
_UPDATE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """What was asked for on the command line."""

    source: str
    out: Path
    size: int
    classes: int | None
    per_class: int | None
    share: float | None
    val_share: float | None
    train_split: str
    val_split: str | None
    max_unreadable: float
    seed: int
    workers: int | None


def prepare(request: PrepareRequest, console: Console) -> str:
    """Prepares, or finds prepared; returns what to say, progress goes to `console`. Raises UserError for what cannot be."""
    _check(request)
    console.print(f"listing {request.source}", soft_wrap=True, highlight=False)
    task = Preparation(
        source=open_source(request.source, request.train_split, request.val_split),
        policy=Policy(
            train_split=request.train_split,
            val_split=request.val_split,
            classes=request.classes,
            per_class=request.per_class,
            share=request.share,
            val_share=DEFAULT_VAL_SHARE if request.val_share is None else request.val_share,
            seed=request.seed,
        ),
        size=request.size,
        max_unreadable=request.max_unreadable,
        workers=request.workers,
    )
    with prepare_progress(console, request.out) as watch:
        prepared, was_ready = prepare_folder(task, request.out.expanduser().absolute(), watch)
    return _told(request.out, prepared, was_ready)


def check(folder: Path) -> str:
    """One sentence on a whole folder. Raises RunError naming what is damaged."""
    prepared = check_prepared(folder.expanduser().absolute())
    return f"{folder}: whole: {prepared.describe()}; every hash, count and label is as the manifest says"


def _check(request: PrepareRequest) -> None:
    if request.source in EMBEDDED:
        raise UserError(f"{request.source}: needs no preparing; give it to a run: --data {request.source}")
    if is_prepared(Path(request.source).expanduser()):
        raise UserError(f"{request.source}: is prepared already; give it to a run: --data {request.source}")
    if request.val_split is not None and request.val_share is not None:
        raise UserError(
            f"--val-share: nothing is held out where --val-split {request.val_split} names a split; give one"
        )
    for option, share in (("--val-share", request.val_share), ("--share", request.share)):
        if share == 0:
            raise UserError(f"{option}: got 0%; allowed is more than that")


def _told(out: Path, prepared: Prepared, was_ready: bool) -> str:
    size = sum(each["bytes"] for each in prepared.manifest["files"].values())
    lines = [
        f"{out}: {'is prepared already' if was_ready else 'prepared'}: {prepared.describe()}, {format_bytes(size)}"
    ]
    left_out = [*prepared.unreadable["train"], *prepared.unreadable["val"]]
    if left_out:
        lines.append(f"left out as unreadable, all named in {out / UNREADABLE}: {some(left_out)}")
    if prepared.manifest["licence"]:
        lines.append(prepared.manifest["licence"])
    lines.append(f"next: archsearch run --budget 4.5GFLOPs --data {shlex.quote(str(out))}")
    return "\n".join(lines)


@contextlib.contextmanager
def prepare_progress(console: Console, out: Path | str) -> Iterator[Watch]:
    """A bar with images a second and the time left on a terminal, some ten lines elsewhere."""
    columns = (TextColumn("decoding"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("decoding", total=1.0, words="")
        started, updated, said = time.monotonic(), 0.0, 0

        def tick(done: int, total: int, already: int) -> None:
            nonlocal updated, said
            now = time.monotonic()
            if now - updated < _UPDATE_S and done < total:
                return
            updated = now
            words = _prepare_words(done, total, already, now - started)
            progress.update(bar, completed=done, total=total, words=words)
            if not console.is_terminal and done * _PREPARE_LINES // total > said:
                said = done * _PREPARE_LINES // total
                console.print(words, soft_wrap=True, highlight=False)

        def waiting() -> None:
            console.print(f"another process prepares {out}; waiting for it", soft_wrap=True, highlight=False)

        yield Watch(progress=tick, waiting=waiting)


def _prepare_words(done: int, total: int, already: int, elapsed_s: float) -> str:
    """`1,024 of 9,000 images, 980 images/s, about 8s left`, by what this session decoded."""
    rate = (done - already) / max(elapsed_s, 1e-9)
    left = (total - done) / max(rate, 1e-9)
    return f"{done:,} of {total:,} images, {rate:,.0f} images/s, about {format_seconds(left)} left"
