"""Preparing: a source is decoded once to uint8 squares on disk; after a kill the same call goes on where it stopped."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.data.prepared import (
    CLASSES,
    FILES,
    FORMAT,
    IMAGES,
    LABELS,
    MANIFEST,
    UNREADABLE,
    VERSION,
    Prepared,
    hash_file,
    is_prepared,
    open_prepared,
    read_manifest,
)
from archsearch.data.sources.base import Source
from archsearch.data.subset import Policy, Selection, Subset, select
from archsearch.data.writer import Unfinished, Unreadable, check_space, sync, write_header, write_images, write_json
from archsearch.errors import UserError
from archsearch.system import Progress, Say, ignore, replace_file, utc_now
from archsearch.version import __version__

_LOCK = ".lock"
_WNID = re.compile(r"^n\d{8}$")
_IMAGENET_NOTE = (
    "These images come, or seem to come, from ImageNet, whose terms of access allow research and education only"
    " and forbid passing the images on: do not publish or share this folder."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """What to decode, to `size` px squares, on `workers` threads (one a core by default), and what share of a split may be unreadable."""

    source: Source
    policy: Policy
    size: int
    max_unreadable: float = 0.01
    workers: int | None = None

    def identity(self) -> dict[str, Any]:
        """All that changes a pixel or a label of the result: equal identities give equal bytes."""
        for split in self.policy.splits:
            self.source.check_split(split)
        return {
            "source": self.source.path,
            "source_kind": self.source.kind,
            "source_files": self.source.stamp(self.policy.splits),
            "size": self.size,
            **asdict(self.policy),
        }


def prepare(
    task: Preparation, folder: Path, *, say: Say = ignore, progress: Progress = ignore
) -> tuple[Prepared, bool]:
    """The prepared folder, and whether it was ready before; an interrupted preparation goes on where it stopped.

    Raises UserError where the folder holds something else, where too much is unreadable, or for lack of space.
    """
    identity = task.identity()
    ready = True
    try:
        if not is_prepared(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, say):
                if not is_prepared(folder):
                    _prepare(task, folder, identity, progress)
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


def prepare_in_cache(task: Preparation, cache_dir: Path, *, say: Say = ignore, progress: Progress = ignore) -> Prepared:
    """As `prepare`, in a folder of its own for each identity."""
    key = hashlib.sha256(json.dumps([VERSION, task.identity()]).encode()).hexdigest()[:24]
    return prepare(task, cache_dir / key, say=say, progress=progress)[0]


@contextmanager
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """One process prepares; a second waits, then finds the folder ready."""
    lock = FileLock(str(folder / _LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process prepares {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(task: Preparation, folder: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    """Select the images, decode those that are not on disk yet, and finish the folder."""
    unfinished = Unfinished(folder)
    request = unfinished.request()
    if request is not None:
        _check_same(folder, request, identity)
    elif strangers := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise UserError(
            f"{folder}: holds {quote_names(strangers)} and no prepared images; give a new or an empty folder"
        )
    selection = select(task.source, task.policy)
    outputs = selection.outputs()
    totals = {name: len(subset.labels) for name, subset in outputs.items()}
    unfinished.begin(identity, totals, task.size)

    def check(unreadable: Unreadable, seen: Mapping[str, int]) -> None:
        named = {name: _describe_unreadable(subset, unreadable[name]) for name, subset in outputs.items()}
        _check_unreadable(task, named, seen, totals)

    unreadable = write_images(task.source, selection, unfinished, workers=task.workers, check=check, progress=progress)
    _finish(task, folder, identity, selection, unreadable)
    unfinished.end()


def _check_same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise UserError where the folder was prepared, or begun, with another identity."""
    wanted = json.loads(json.dumps(asked))
    differing = [key for key in wanted if there.get(key) != wanted[key]]
    if differing:
        parts = [f"{key.replace('_', ' ')} {there.get(key)!r} there, {wanted[key]!r} asked for" for key in differing]
        raise UserError(f"{folder}: prepared with other arguments: {'; '.join(parts)}; give another folder")


def _describe_unreadable(subset: Subset, reasons: Mapping[int, str]) -> list[str]:
    """`train/cat/1.jpg (OSError: ...)` for each row that holds no image."""
    return [f"{subset.names[row]} ({reason})" for row, reason in reasons.items()]


def _check_unreadable(
    task: Preparation, named: Mapping[str, Sequence[str]], seen: Mapping[str, int], totals: Mapping[str, int]
) -> None:
    """Raise UserError where more of a source's split is unreadable than allowed; images held out of training count with it."""
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
                f" cannot be read, {quote_names(unreadable)}; allowed is a share of {task.max_unreadable:g} of all {total}"
            )


def _finish(
    task: Preparation, folder: Path, identity: Mapping[str, Any], selection: Selection, unreadable: Unreadable
) -> None:
    """Give the files their final names, and write the manifest last: it makes the folder a prepared one."""
    unfinished = Unfinished(folder)
    counts, left_out = {}, {}
    for name, subset in selection.outputs().items():
        readable = np.setdiff1d(np.arange(len(subset.labels)), list(unreadable[name]))
        left_out[name] = _describe_unreadable(subset, dict(sorted(unreadable[name].items())))
        if unfinished.partial(name).exists():  # else it was finished before a kill
            _finish_images(unfinished.partial(name), folder / IMAGES[name], readable, len(subset.labels))
        np.save(folder / LABELS[name], subset.labels[readable])
        counts[name] = np.bincount(subset.labels[readable], minlength=len(selection.classes)).tolist()
    write_json(folder / CLASSES, selection.classes)
    write_json(folder / UNREADABLE, left_out)
    kind, path, classes = task.source.kind, task.source.path, selection.classes
    is_named = re.search("imagenet|ilsvrc", f"{kind} {path}".lower())
    is_imagenet = is_named or all(_WNID.match(name) for name in classes) or "tench, Tinca tinca" in classes
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "request": dict(identity),
        "source": {"kind": kind, "name": task.source.name, "path": path},
        "policy": asdict(task.policy),
        "size": task.size,
        "counts": counts,
        "classes": classes,
        "unreadable": {name: len(each) for name, each in left_out.items()},
        "unlabelled": dict(selection.unlabelled),  # of each split of the source
        "left_out": list(selection.left_out),
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in FILES
        },
        "versions": {"archsearch": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "licence": _IMAGENET_NOTE if is_imagenet else None,
        "created_at": utc_now(),
    }
    replace_file(folder / MANIFEST, lambda path: write_json(path, manifest))


def _finish_images(partial: Path, final: Path, readable: NDArray[np.int64], num_rows: int) -> None:
    """Rename the file, or copy its readable rows where some are not; the partial file stays until the copy is whole."""
    if len(readable) == num_rows:
        os.replace(partial, final)
        return
    images = np.load(partial, mmap_mode="r", allow_pickle=False)
    check_space(final.parent, len(readable) * images[0].nbytes)

    def copy(path: Path) -> None:
        with open(path, "wb") as file:
            write_header(file, len(readable), images.shape[1])
            for row in readable:
                file.write(images[row].tobytes())
            sync(file)

    replace_file(final, copy)
    partial.unlink()
