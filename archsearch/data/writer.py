"""Writing prepared images so that a kill costs no more than the last few hundred."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from archsearch.data.decode import Square, decoding
from archsearch.data.prepared import IMAGES
from archsearch.data.sources.base import Loader, Source
from archsearch.data.subset import Draw
from archsearch.errors import UserError
from archsearch.system import Progress, replace_file

_CHUNK = 256  # images between two journal lines; two chunks are in memory at once
_REQUEST = "request.json"
_JOURNAL = "journal.jsonl"
# By output, the rows that hold no image, each with the reason.
Unreadable = dict[str, dict[int, str]]


class Unfinished:
    """What is on disk of a preparation: its request, images at their final rows, and a journal of those that are safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.size = 0
        self.done = 0
        self.unreadable: Unreadable = {name: {} for name in IMAGES}

    def request(self) -> dict[str, Any] | None:
        """The identity that an interrupted preparation was begun with."""
        try:
            found = json.loads((self._folder / _REQUEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self._folder / _REQUEST}: damaged ({error}); delete {self._folder}") from error
        assert isinstance(found, dict)
        return found

    def begin(self, identity: Mapping[str, Any], counts: Mapping[str, int], size: int) -> None:
        """Goes on where the journal ends, or makes room for all images."""
        self.size = size
        self._recover()
        check_space(self._folder, (sum(counts.values()) - self.done) * size**2 * 3)
        if self.request() is None:
            replace_file(self._folder / _REQUEST, lambda path: write_json(path, identity))
        if self.done == 0:
            for name, count in counts.items():
                with open(self.partial(name), "wb") as file:
                    write_header(file, count, size)
                    file.truncate(file.tell() + count * size**2 * 3)

    def partial(self, name: str) -> Path:
        """The file of an output before it is finished."""
        return self._folder / f"{name}_images.partial"

    @contextlib.contextmanager
    def open(self) -> Iterator["Pages"]:
        """The files to write to."""
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(self.partial(name), "r+b")) for name in IMAGES}
            journal = stack.enter_context(open(self._folder / _JOURNAL, "ab"))
            yield Pages(files, journal, self.size)

    def end(self) -> None:
        """Removes what only an interrupted preparation needs."""
        for path in (self._folder / _REQUEST, self._folder / _JOURNAL, *(self.partial(name) for name in IMAGES)):
            path.unlink(missing_ok=True)

    def _recover(self) -> None:
        """Reads the journal and cuts off a half-written last line."""
        path = self._folder / _JOURNAL
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(path, len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            self.done += entry["images"]
            for name, row, reason in entry["unreadable"]:
                self.unreadable[name][row] = reason


class Pages:
    """Open output files: rows are written where they belong, then confirmed."""

    def __init__(self, files: Mapping[str, BinaryIO], journal: BinaryIO, size: int) -> None:
        self._files, self._journal, self._row_bytes = files, journal, size**2 * 3
        self._start = {name: _header_bytes(file) for name, file in files.items()}

    def write(self, name: str, row: int, square: Square) -> None:
        """One image at its row."""
        file = self._files[name]
        file.seek(self._start[name] + row * self._row_bytes)
        file.write(square.tobytes())

    def confirm(self, images: int, unreadable: Sequence[tuple[str, int, str]]) -> None:
        """Images first, then the line that counts them: the journal never promises what is not on disk."""
        for file in self._files.values():
            sync(file)
        self._journal.write(json.dumps({"images": images, "unreadable": unreadable}).encode() + b"\n")
        sync(self._journal)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass:
    """One way through a split of the source, in storage order: where each image goes."""

    split: str
    indices: NDArray[np.int64]
    outputs: tuple[str, ...]  # by number in `which`
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    def place(self, position: int) -> tuple[str, int]:
        """Output and row of the image that comes at this position."""
        return self.outputs[self.which[position]], int(self.rows[position])


def write_images(
    source: Source,
    drawn: Draw,
    unfinished: Unfinished,
    *,
    workers: int | None,
    check: Callable[[Unreadable, Mapping[str, int]], None],
    progress: Progress,
) -> Unreadable:
    """Decodes what is not on disk yet; `check` may refuse to go on, seeing what is unreadable among how many.

    What was confirmed stays: with a larger share allowed, the same call goes on from there.
    """
    passes = _passes(drawn)
    total, already = sum(len(each.rows) for each in passes), unfinished.done
    unreadable, seen = unfinished.unreadable, _seen(passes, already)
    done, skip = already, already
    if already == total:  # killed while the files got their final names
        return unreadable
    progress(already, total, "decoding")
    started = time.monotonic()
    with unfinished.open() as pages, decoding(unfinished.size, workers) as decoder:
        for each in passes:
            start = min(skip, len(each.rows))
            skip -= start
            loaders = source.read(each.split, each.indices[start:])
            for squares in _ahead(loaders, decoder.squares):
                before, failed = start, []
                for square in squares:
                    name, row = each.place(start)
                    start, done, seen[name] = start + 1, done + 1, seen[name] + 1
                    if isinstance(square, str):
                        failed.append((name, row, square))
                        unreadable[name][row] = square
                        check(unreadable, seen)
                    else:
                        pages.write(name, row, square)
                    rate = (done - already) / max(time.monotonic() - started, 1e-9)
                    progress(done, total, f"{done:,} of {total:,} images, {rate:,.0f} images/s")
                pages.confirm(start - before, failed)
            assert start == len(each.rows), "a source that reads fewer images than it lists"
    check(unreadable, seen)
    return unreadable


def _ahead(
    loaders: Iterator[Loader], start: Callable[[list[Loader]], Iterator[Square | str]]
) -> Iterator[Iterator[Square | str]]:
    """Chunks of squares; the next is being decoded while one is written and confirmed."""
    pending: Iterator[Square | str] | None = None
    while chunk := list(islice(loaders, _CHUNK)):
        following = start(chunk)
        if pending is not None:
            yield pending
        pending = following
    if pending is not None:
        yield pending


def _passes(drawn: Draw) -> list[_Pass]:
    """Outputs from one split are filled in one way through it."""
    by_split: dict[str, list[str]] = {}
    outputs = drawn.outputs()
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


def _seen(passes: list[_Pass], done: int) -> dict[str, int]:
    """How many of each output the first `done` images are."""
    seen = dict.fromkeys(IMAGES, 0)
    for each in passes:
        part = each.which[:done]
        for number, name in enumerate(each.outputs):
            seen[name] += int((part == number).sum())
        done -= len(part)
    return seen


def write_header(file: BinaryIO, num_images: int, size: int) -> None:
    """The .npy header of (num_images, size, size, 3)."""
    shape = (num_images, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _header_bytes(file: BinaryIO) -> int:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def sync(file: BinaryIO) -> None:
    """To the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """On the disk when this returns."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def check_space(folder: Path, needed: int) -> None:
    """Raises UserError where fewer bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: preparing the images needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free;"
            " give another folder or take fewer images"
        )
