"""An ImageFolder decoded once to uint8 squares on disk, so that every later run only maps them into memory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from archsearch.errors import UserError
from archsearch.proxy.decode import decode_all
from archsearch.proxy.listing import Split, some

_FORMAT = 1  # raise it when prepared files change in layout or content


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedSplit:
    """Images uint8 (N, size, size, 3), mapped from disk read-only, labels int64 (N,), and the files left out."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is to be decoded: at most `most[i]` images of `splits[i]`, drawn by `seed`, to `size` px squares."""

    root: Path
    splits: tuple[Split, Split]
    most: tuple[int, int]
    size: int
    seed: int
    max_unreadable: float

    def key(self) -> str:
        """Names the result: changes with any file's path, size or time, and with every setting that changes a pixel."""
        settings = [_FORMAT, str(self.root), self.most, self.size, self.seed]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for split in self.splits:
            digest.update(f"\n{split.name}\n".encode())
            for file in split.files:
                digest.update(os.fsencode(f"{file.path}\0{file.num_bytes}\0{file.modified_ns}\n"))
        return digest.hexdigest()[:24]

    def drawn(self) -> tuple[Split, Split]:
        """The splits, cut to their random samples."""
        return self.splits[0].sample(self.most[0], self.seed), self.splits[1].sample(self.most[1], self.seed)


def prepare(
    task: Preparation, cache_dir: Path, progress: Callable[[int, int], None] | None
) -> tuple[PreparedSplit, PreparedSplit]:
    """Training and validation split, decoded now or found in `cache_dir`; UserError for too many broken files."""
    folder = cache_dir / task.key()
    train, val = task.drawn()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            with FileLock(f"{folder}.lock"):  # a second process waits here, then finds the folder ready
                if not folder.is_dir():
                    _fill(folder, task, train, val, progress)
    except OSError as error:
        raise UserError(
            f"{cache_dir}: cannot keep prepared images there ({error}); give a writable cache folder"
        ) from error
    return _read(folder / "train", task, train), _read(folder / "val", task, val)


def _fill(
    folder: Path, task: Preparation, train: Split, val: Split, progress: Callable[[int, int], None] | None
) -> None:
    """Decodes into a folder of another name, renamed when complete: an interruption leaves nothing half-valid."""
    for left_over in folder.parent.glob(f"{folder.name}.partial-*"):  # by a process that was killed: we hold its lock
        shutil.rmtree(left_over, ignore_errors=True)
    total = len(train.files) + len(val.files)
    _check_space(folder.parent, total * task.size**2 * 3)
    report = progress or (lambda _done, _total: None)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        # Validation first: it is smaller, so a bad folder is refused sooner.
        _decode_split(partial / "val", task, val, lambda done: report(done, total))
        _decode_split(partial / "train", task, train, lambda done: report(len(val.files) + done, total))
        manifest = {"root": str(task.root), "splits": [val.name, train.name], "classes": train.classes}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_split(folder: Path, task: Preparation, split: Split, report: Callable[[int], None]) -> None:
    """Writes images.npy, labels.npy and unreadable.json: the files that could not be read, each with the reason."""
    folder.mkdir()
    unreadable: list[str] = []
    labels: list[int] = []
    paths = [task.root / file.path for file in split.files]
    with open(folder / "images.npy", "wb") as out:
        _write_header(out, len(paths), task.size)
        for done, (file, square) in enumerate(zip(split.files, decode_all(paths, task.size), strict=True), start=1):
            if isinstance(square, str):
                unreadable.append(f"{file.path} ({square})")
                _check_unreadable(task, split, unreadable, seen=done)
            else:
                out.write(square.tobytes())
                labels.append(file.label)
            report(done)
        out.seek(0)
        _write_header(out, len(labels), task.size)
        out.flush()
        os.fsync(out.fileno())  # the rename must not reach the disk before the pixels do
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    (folder / "unreadable.json").write_text(json.dumps(unreadable), encoding="utf-8")


def _write_header(out: BinaryIO, num_images: int, size: int) -> None:
    """The .npy header of (num_images, size, size, 3); numpy pads it to one length, so it can be rewritten in place."""
    shape = (num_images, size, size, 3)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _check_unreadable(task: Preparation, split: Split, unreadable: list[str], seen: int) -> None:
    num_files = len(split.files)
    if len(unreadable) > task.max_unreadable * num_files or len(unreadable) == num_files:
        raise UserError(
            f"{task.root / split.name}: of the first {seen} images {len(unreadable)} cannot be read,"
            f" {some(unreadable)}; allowed is a share of {task.max_unreadable:g} of all {num_files}"
        )


def _check_space(cache_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(cache_dir).free
    if needed > free:
        raise UserError(
            f"{cache_dir}: preparing the images needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free;"
            " give another cache folder or fewer images"
        )


def _read(folder: Path, task: Preparation, split: Split) -> PreparedSplit:
    try:
        unreadable = [str(name) for name in json.loads((folder / "unreadable.json").read_text(encoding="utf-8"))]
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if images.shape != (len(labels), task.size, task.size, 3):
            raise ValueError(f"{len(labels)} labels for images of {images.shape}")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: prepared images are damaged ({error}); delete this folder and start again"
        ) from error
    _check_unreadable(task, split, unreadable, seen=len(split.files))  # the preparing run may have allowed more
    return PreparedSplit(images=images, labels=labels, unreadable=tuple(unreadable))
