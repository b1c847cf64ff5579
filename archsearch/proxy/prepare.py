"""A source decoded once to uint8 squares on disk; after a kill the same call goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from archsearch.errors import UserError
from archsearch.proxy.drawing import Policy, draw
from archsearch.proxy.finishing import finish
from archsearch.proxy.listing import some
from archsearch.proxy.prepared import VERSION, Prepared, is_prepared, open_prepared, read_manifest
from archsearch.proxy.sources.base import Source
from archsearch.proxy.writing import Unfinished, Unreadable, write_images

_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a waiting person is told: `progress(done, total, already)` of images, `waiting()` for another process."""

    progress: Callable[[int, int, int], None] = lambda _done, _total, _already: None
    waiting: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """What is to be decoded, to `size` px squares, on how many threads, and what share of a split may be unreadable."""

    source: Source
    policy: Policy
    size: int
    max_unreadable: float = 0.01
    workers: int | None = None

    def identity(self) -> dict[str, Any]:
        """All that changes a pixel or a label of the result; equal identities, equal bytes."""
        for split in self.policy.splits:
            self.source.check_split(split)
        return {
            "source": self.source.path,
            "source_kind": self.source.kind,
            "source_files": self.source.stamp(self.policy.splits),
            "size": self.size,
            **asdict(self.policy),
        }


def prepare(task: Preparation, folder: Path, watch: Watch | None = None) -> tuple[Prepared, bool]:
    """The prepared folder, and whether it was ready before; what is there of an interrupted preparation is kept.

    Raises UserError where the folder holds something else, where too much is unreadable, or for want of space.
    """
    watch = watch or Watch()
    identity = task.identity()
    ready = True
    try:
        if not is_prepared(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, watch.waiting):
                if not is_prepared(folder):
                    _prepare(task, folder, identity, watch)
                    ready = False
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep prepared images there ({error.strerror or error}); give a writable folder with room"
        ) from error
    _check_same(folder, read_manifest(folder)["request"], identity)
    prepared = open_prepared(folder)
    totals = {name: len(names) + len(prepared.labels[name]) for name, names in prepared.unreadable.items()}
    _check_unreadable(task, prepared.unreadable, totals, totals)  # the preparing run may have allowed more
    return prepared, ready


def prepare_in_cache(task: Preparation, cache_dir: Path, watch: Watch | None = None) -> Prepared:
    """As `prepare`, in a folder of its own for each identity."""
    key = hashlib.sha256(json.dumps([VERSION, task.identity()]).encode()).hexdigest()[:24]
    return prepare(task, cache_dir / key, watch)[0]


def _prepare(task: Preparation, folder: Path, identity: Mapping[str, Any], watch: Watch) -> None:
    unfinished = Unfinished(folder)
    request = unfinished.request()
    if request is None:
        strangers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if strangers:
            raise UserError(
                f"{folder}: holds {some(sorted(strangers))} and no prepared images; give a new or an empty folder"
            )
    else:
        _check_same(folder, request, identity)
    drawn = draw(task.source, task.policy)
    totals = {name: len(each.labels) for name, each in drawn.outputs().items()}
    unfinished.begin(identity, totals, task.size)

    def check(unreadable: Unreadable, seen: Mapping[str, int]) -> None:
        named = {
            name: [f"{each.names[row]} ({reason})" for row, reason in unreadable[name].items()]
            for name, each in drawn.outputs().items()
        }
        _check_unreadable(task, named, seen, totals)

    unreadable = write_images(
        task.source, drawn, unfinished, workers=task.workers, check=check, progress=watch.progress
    )
    about = {
        "request": dict(identity),
        "source": {"kind": task.source.kind, "name": task.source.name, "path": task.source.path},
        "policy": asdict(task.policy),
        "size": task.size,
    }
    finish(folder, about, drawn, unreadable)
    unfinished.end()


@contextmanager
def _locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process prepares; a second waits, then finds the folder ready."""
    lock = FileLock(str(folder / _LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(asked))
    differing = [key for key in wanted if there.get(key) != wanted[key]]
    if differing:
        parts = [f"{key.replace('_', ' ')} {there.get(key)!r} there, {wanted[key]!r} asked for" for key in differing]
        raise UserError(f"{folder}: prepared with other arguments: {'; '.join(parts)}; give another folder")


def _check_unreadable(
    task: Preparation, named: Mapping[str, Sequence[str]], seen: Mapping[str, int], totals: Mapping[str, int]
) -> None:
    """By split of the source: what is held out of training counts with it."""
    policy = task.policy
    outputs: dict[str, tuple[str, ...]] = {policy.train_split: ("train", "val")}
    if policy.val_split is not None:
        outputs = {policy.val_split: ("val",), policy.train_split: ("train",)}
    for split, names in outputs.items():
        unreadable = [each for name in names for each in named[name]]
        total = sum(totals[name] for name in names)
        if unreadable and (len(unreadable) > task.max_unreadable * total or len(unreadable) == total):
            raise UserError(
                f"{task.source.path}/{split}: of the first {sum(seen[name] for name in names)} images {len(unreadable)}"
                f" cannot be read, {some(unreadable)}; allowed is a share of {task.max_unreadable:g} of all {total}"
            )
