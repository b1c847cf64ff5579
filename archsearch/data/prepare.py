"""`archsearch prepare`: from a request to a prepared folder and the sentences that report it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from archsearch.data.image_folder import quote_names
from archsearch.data.load import EMBEDDED
from archsearch.data.preparation import Preparation
from archsearch.data.preparation import prepare as prepare_folder
from archsearch.data.prepared import UNREADABLE, Prepared, check_prepared, is_prepared
from archsearch.data.sources.detect import open_source
from archsearch.data.subset import DEFAULT_VAL_SHARE, Policy
from archsearch.errors import UserError
from archsearch.system import Progress, Say, ignore, user_path
from archsearch.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """The arguments of the command, as given."""

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


def prepare(request: PrepareRequest, *, say: Say = ignore, progress: Progress = ignore) -> str:
    """Prepare the folder unless it is prepared already; returns the lines to print. Raises UserError for a request that cannot be met."""
    _check_request(request)
    say(f"listing {request.source}")
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
    prepared, was_ready = prepare_folder(task, user_path(request.out).absolute(), say=say, progress=progress)
    return _describe_result(request.out, prepared, was_ready)


def check(folder: Path) -> str:
    """One sentence on an undamaged folder. Raises RunError naming what is damaged."""
    prepared = check_prepared(user_path(folder).absolute())
    return f"{folder}: whole: {prepared.describe()}; every hash, count and label is as the manifest says"


def _check_request(request: PrepareRequest) -> None:
    if request.source in EMBEDDED:
        raise UserError(f"{request.source}: needs no preparing; give it to a run: --data {request.source}")
    if is_prepared(user_path(request.source)):
        raise UserError(f"{request.source}: is prepared already; give it to a run: --data {request.source}")
    if request.val_split is not None and request.val_share is not None:
        raise UserError(
            f"--val-share: nothing is held out where --val-split {request.val_split} names a split; give one"
        )
    for option, share in (("--val-share", request.val_share), ("--share", request.share)):
        if share == 0:
            raise UserError(f"{option}: got 0%; allowed is more than that")


def _describe_result(out: Path, prepared: Prepared, was_ready: bool) -> str:
    """The lines to print: what the folder holds, what was left out, the licence note, the next command."""
    size = sum(each["bytes"] for each in prepared.manifest["files"].values())
    lines = [
        f"{out}: {'is prepared already' if was_ready else 'prepared'}: {prepared.describe()}, {format_bytes(size)}"
    ]
    left_out = [*prepared.unreadable["train"], *prepared.unreadable["val"]]
    if left_out:
        lines.append(f"left out as unreadable, all named in {out / UNREADABLE}: {quote_names(left_out)}")
    lines += [f"left out of split {text}" for text in prepared.left_out]
    if prepared.manifest["licence"]:
        lines.append(prepared.manifest["licence"])
    lines.append(f"next: archsearch run --budget 4.5GFLOPs --data {shlex.quote(str(out))}")
    return "\n".join(lines)
