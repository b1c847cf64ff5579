"""Writing of prepared images, chunk by chunk: a kill loses at most the last few hundred."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from archsearch.data.decode import Decode, Square, decoding
from archsearch.data.prepared import IMAGES
from archsearch.data.sources.base import Loader, Source
from archsearch.data.subset import Selection
from archsearch.errors import UserError, first_line
from archsearch.system import Progress, replace_file

_CHUNK = 256  # images between two journal lines; two chunks are in memory at once
_REQUEST = "request.json"
_JOURNAL = "journal.jsonl"
# For each output, the rows that hold no image, with the reasons.
Unreadable = dict[str, dict[int, str]]


class Unfinished:
    """The files of an unfinished preparation: its request, images at their final rows, and a journal of those that are on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.size = 0
        self.done = 0
        self.unreadable: Unreadable = {name: {} for name in IMAGES}

    def request(self) -> dict[str, Any] | None:
        """The identity that an interrupted preparation was begun with, None where there is none."""
        path = self._folder / _REQUEST
        if not path.exists():
            return None
        with self._explain_damage(path):
            found = json.loads(path.read_text(encoding="utf-8"))
            return {**found}

    def begin(self, identity: Mapping[str, Any], counts: Mapping[str, int], size: int) -> None:
        """Go on where the journal ends, or create files with room for all images."""
        self.size = size
        self._recover(counts)
        check_space(self._folder, (sum(counts.values()) - self.done) * size**2 * 3)
        if self.request() is None:
            replace_file(self._folder / _REQUEST, lambda path: write_json(path, identity))
        for name, count in counts.items():
            if self.done == 0:
                with open(self.partial(name), "wb") as file:
                    write_header(file, count, size)
                    file.truncate(file.tell() + count * size**2 * 3)
            elif self.done < sum(counts.values()):
                with self._explain_damage(self.partial(name)):
                    found = np.lib.format.open_memmap(self.partial(name), mode="r")
                    if found.shape != (count, size, size, 3):
                        raise ValueError(f"shape {found.shape}")

    def partial(self, name: str) -> Path:
        """The image file of an output until it is finished."""
        return self._folder / f"{name}_images.partial"

    @contextlib.contextmanager
    def open(self) -> Iterator["OutputFiles"]:
        """The image files and the journal, open for writing."""
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(self.partial(name), "r+b")) for name in IMAGES}
            journal = stack.enter_context(open(self._folder / _JOURNAL, "ab"))
            yield OutputFiles(files, journal, self.size)

    def end(self) -> None:
        """Remove the files that only an interrupted preparation needs."""
        for path in (self._folder / _REQUEST, self._folder / _JOURNAL, *(self.partial(name) for name in IMAGES)):
            path.unlink(missing_ok=True)

    def _recover(self, counts: Mapping[str, int]) -> None:
        """Read the journal and cut off a half-written last line."""
        path = self._folder / _JOURNAL
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(path, len(whole))
        with self._explain_damage(path):
            for line in whole.splitlines():
                entry = json.loads(line)
                self.done += int(entry["images"])
                for name, row, reason in entry["unreadable"]:
                    self.unreadable[name][range(counts[name])[row]] = str(reason)
            if not 0 <= self.done <= sum(counts.values()):
                raise ValueError(f"{self.done} images done of {sum(counts.values())}")

    @contextlib.contextmanager
    def _explain_damage(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise UserError(
                f"{path}: damaged ({first_line(error)}); delete {self._folder} and prepare the images again"
            ) from error


class OutputFiles:
    """Open image files and their journal: images are written at their rows, then confirmed."""

    def __init__(self, files: Mapping[str, BinaryIO], journal: BinaryIO, size: int) -> None:
        self._files, self._journal, self._row_bytes = files, journal, size**2 * 3
        self._start: dict[str, int] = {}
        for name, file in files.items():
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._start[name] = file.tell()

    def write(self, name: str, row: int, square: Square) -> None:
        """Write an image at its row of an output."""
        file = self._files[name]
        file.seek(self._start[name] + row * self._row_bytes)
        file.write(square.tobytes())

    def confirm(self, images: int, unreadable: Sequence[tuple[str, int, str]]) -> None:
        """Flush the images to disk, then the journal line that counts them: the journal never counts an image that is not on disk."""
        for file in self._files.values():
            sync(file)
        self._journal.write(json.dumps({"images": images, "unreadable": unreadable}).encode() + b"\n")
        sync(self._journal)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass:
    """One pass through a split of the source, in storage order: the output and the row of each image."""

    split: str
    indices: NDArray[np.int64]
    outputs: tuple[str, ...]
    which: NDArray[np.int64]  # indices into `outputs`
    rows: NDArray[np.int64]


def write_images(
    source: Source,
    selection: Selection,
    unfinished: Unfinished,
    *,
    workers: int | None,
    check: Callable[[Unreadable, Mapping[str, int]], None],
    progress: Progress,
) -> Unreadable:
    """Decode the images that are not on disk yet; returns the unreadable ones.

    `check(unreadable, seen)` gets them and the number of images seen of each output, and may raise to stop. Confirmed
    images stay: with a larger share allowed, the same call goes on from there.
    """
    passes = _plan_passes(selection)
    total, already = sum(len(each.rows) for each in passes), unfinished.done
    unreadable, seen = unfinished.unreadable, _count_seen(passes, already)
    done, skip = already, already
    if already == total:  # killed while the files got their final names
        return unreadable
    progress(already, total, "decoding")
    started = time.monotonic()
    with unfinished.open() as files, decoding(unfinished.size, workers) as decode:
        for each in passes:
            start = min(skip, len(each.rows))
            skip -= start
            loaders = source.read(each.split, each.indices[start:])
            for squares in _decode_ahead(loaders, decode):
                before, failed = start, []
                for square in squares:
                    name, row = each.outputs[each.which[start]], int(each.rows[start])
                    start, done, seen[name] = start + 1, done + 1, seen[name] + 1
                    if isinstance(square, str):
                        failed.append((name, row, square))
                        unreadable[name][row] = square
                        check(unreadable, seen)
                    else:
                        files.write(name, row, square)
                    rate = (done - already) / max(time.monotonic() - started, 1e-9)
                    progress(done, total, f"{rate:,.0f} images/s")
                files.confirm(start - before, failed)
            if start < len(each.rows):
                raise UserError(
                    f"{source.path}: split {each.split!r} gave {start} of {len(each.rows)} images, so it was changed"
                    " meanwhile; give the same command again"
                )
    check(unreadable, seen)
    return unreadable


def _decode_ahead(loaders: Iterator[Loader], decode: Decode) -> Iterator[Iterator[Square | str]]:
    """Chunks of squares; while one is written and confirmed the next is being decoded."""
    pending: Iterator[Square | str] | None = None
    while chunk := list(islice(loaders, _CHUNK)):
        following = decode(chunk)
        if pending is not None:
            yield pending
        pending = following
    if pending is not None:
        yield pending


def _plan_passes(selection: Selection) -> list[_Pass]:
    """One pass for each split of the source: outputs from the same split are filled together."""
    by_split: dict[str, list[str]] = {}
    outputs = selection.outputs()
    for name, each in outputs.items():
        by_split.setdefault(each.split, []).append(name)
    passes = []
    for split, names in by_split.items():
        indices = np.concatenate([outputs[name].indices for name in names])
        order = np.argsort(indices, kind="stable")
        which = np.concatenate([np.full(len(outputs[name].indices), i) for i, name in enumerate(names)])
        rows = np.concatenate([np.arange(len(outputs[name].indices)) for name in names])
        passes.append(
            _Pass(split=split, indices=indices[order], outputs=tuple(names), which=which[order], rows=rows[order])
        )
    return passes


def _count_seen(passes: list[_Pass], done: int) -> dict[str, int]:
    """How many of the first `done` images belong to each output."""
    seen = dict.fromkeys(IMAGES, 0)
    for each in passes:
        part = each.which[:done]
        for number, name in enumerate(each.outputs):
            seen[name] += int((part == number).sum())
        done -= len(part)
    return seen


def write_header(file: BinaryIO, num_images: int, size: int) -> None:
    """The .npy header of a uint8 array (num_images, size, size, 3)."""
    shape = (num_images, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def sync(file: IO[Any]) -> None:
    """Flush a file's contents to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Write JSON; it is on the disk when this returns."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        sync(file)


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError where fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: preparing the images needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free;"
            " give another folder or take fewer images"
        )
