"""A source decoded once to uint8 squares on disk; after a kill the same call goes on where it stopped."""

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

from archsearch.data.image_folder import some
from archsearch.data.prepared import (
    CLASSES,
    FORMAT,
    IMAGES,
    LABELS,
    MANIFEST,
    UNREADABLE,
    VERSION,
    Prepared,
    is_prepared,
    open_prepared,
    read_manifest,
    sha256_of,
)
from archsearch.data.sources.base import Source
from archsearch.data.subset import Draw, Policy, draw
from archsearch.data.writer import Unfinished, Unreadable, check_space, sync, write_header, write_images, write_json
from archsearch.errors import UserError
from archsearch.system import Progress, Say, ignore, replace_file, utc_now
from archsearch.version import __version__

_LOCK = ".lock"


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


def prepare(
    task: Preparation, folder: Path, *, say: Say = ignore, progress: Progress = ignore
) -> tuple[Prepared, bool]:
    """The prepared folder, and whether it was ready before; what is there of an interrupted preparation is kept.

    Raises UserError where the folder holds something else, where too much is unreadable, or for want of space.
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


def _prepare(task: Preparation, folder: Path, identity: Mapping[str, Any], progress: Progress) -> None:
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

    unreadable = write_images(task.source, drawn, unfinished, workers=task.workers, check=check, progress=progress)
    about = {
        "request": dict(identity),
        "source": {"kind": task.source.kind, "name": task.source.name, "path": task.source.path},
        "policy": asdict(task.policy),
        "size": task.size,
    }
    finish(folder, about, drawn, unreadable)
    unfinished.end()


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


_WNID = re.compile(r"^n\d{8}$")


_IMAGENET_NOTE = (
    "These images come, or seem to come, from ImageNet, whose terms of access allow research and education only"
    " and forbid passing the images on: do not publish or share this folder."
)


def finish(folder: Path, about: Mapping[str, Any], drawn: Draw, unreadable: Unreadable) -> None:
    """The files under their final names, and last the manifest: it makes the folder a prepared one."""
    counts, noted = {}, {}
    unfinished = Unfinished(folder)
    for name, each in drawn.outputs().items():
        kept = np.array([row for row in range(len(each.labels)) if row not in unreadable[name]], dtype=np.int64)
        noted[name] = [f"{each.names[row]} ({unreadable[name][row]})" for row in sorted(unreadable[name])]
        if unfinished.partial(name).exists():  # else it was finished before a kill
            _settle(unfinished.partial(name), folder / IMAGES[name], kept, len(each.labels))
        np.save(folder / LABELS[name], each.labels[kept])
        counts[name] = np.bincount(each.labels[kept], minlength=len(drawn.classes)).tolist()
    write_json(folder / CLASSES, drawn.classes)
    write_json(folder / UNREADABLE, noted)
    names = (*IMAGES.values(), *LABELS.values(), CLASSES, UNREADABLE)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "counts": counts,
        "classes": drawn.classes,
        "unreadable": {name: len(each) for name, each in noted.items()},
        "files": files,
        "versions": {"archsearch": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "licence": _IMAGENET_NOTE if _looks_like_imagenet(about["source"], drawn.classes) else None,
        "created_at": utc_now(),
    }
    replace_file(folder / MANIFEST, lambda path: write_json(path, manifest))


def _settle(partial: Path, final: Path, kept: NDArray[np.int64], num_rows: int) -> None:
    """Renames, or copies what is not unreadable; the folder keeps the partial file until the copy is whole."""
    if len(kept) == num_rows:
        os.replace(partial, final)
        return
    images = np.load(partial, mmap_mode="r", allow_pickle=False)
    check_space(final.parent, len(kept) * images[0].nbytes)

    def copy(path: Path) -> None:
        with open(path, "wb") as file:
            write_header(file, len(kept), images.shape[1])
            for row in kept:
                file.write(images[row].tobytes())
            sync(file)

    replace_file(final, copy)
    partial.unlink()


def _looks_like_imagenet(source: Mapping[str, str], classes: Sequence[str]) -> bool:
    named = re.search("imagenet|ilsvrc", f"{source['kind']} {source['path']}".lower())
    return named is not None or all(_WNID.match(name) for name in classes) or "tench, Tinca tinca" in classes
