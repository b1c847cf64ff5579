"""The places of members in uncompressed tar files, so that any of them can be read without reading the rest."""

# Not timm's tar readers: for large tars they keep an index beside the data as a pickle, and files from a user's folder
# must not be unpickled. Not `TarFile.next` either: after the first member it takes a damaged header for the end.

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from archsearch.errors import UserError, first_line
from archsearch.system import open_regular

_MARKER_BYTES = 2 * tarfile.BLOCKSIZE  # zeros, which end an archive (POSIX.1-2017, pax, "ustar Interchange Format")
# Writers fill the last record of 20 blocks with zeros. More of them are a part of the file that was never written.
_MOST_ZEROS = _MARKER_BYTES + tarfile.RECORDSIZE
# What tarfile raises on damaged headers.
_DAMAGE = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Member:
    """`size` bytes from `offset` on in the file at `tar`; `folder` is the stem of the inner tar that holds it, if any."""

    tar: Path
    folder: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's bytes. Raises OSError where the file no longer holds them all."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self.tar} ends inside {self.name}")
        return content


def members(tar: Path, *, nested: bool = False) -> Iterator[Member]:
    """Regular files of a tar in its order, found by their headers; with `nested`, those of the tars inside it instead.

    Raises UserError, with the place, where it is no whole, uncompressed tar file: every header is valid, every name comes once, every
    member has its bytes in the file, and nothing but the end-of-archive marker follows the last.
    """
    try:
        with open_regular(tar) as file:
            for member in _Archive(tar, file, 0, os.fstat(file.fileno()).st_size).scan():
                if not nested:
                    yield member
                    continue
                if not member.name.endswith(".tar"):
                    raise UserError(f"{tar}: member {member.name!r} is no tar; allowed are the tars of the classes")
                inner = _Archive(tar, file, member.offset, member.offset + member.size, member.name)
                yield from inner.scan()
                if inner.position == member.offset:
                    raise UserError(f"{tar}: its {member.name!r} holds no images; every class needs some")
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror or error})") from error


class _Archive:
    """One archive, in the bytes from `start` to `stop` of an open file; it seeks before every read, so others may read in between."""

    def __init__(self, tar: Path, file: IO[bytes], start: int, stop: int, name: str = "") -> None:
        self._tar, self._file, self._stop, self._name = tar, file, stop, name
        self.position = start  # of the next header
        self._names: set[str] = set()
        self._last = ""

    def scan(self) -> Iterator[Member]:
        """The regular files, header by header up to the end-of-archive marker."""
        opened: tarfile.TarFile | None = None
        folder = Path(self._name).stem
        while self._read(tarfile.BLOCKSIZE).strip(b"\0"):
            self._file.seek(self.position)
            try:
                opened = opened or tarfile.TarFile(fileobj=self._file)  # which reads the first header
                self._file.seek(self.position)
                info = tarfile.TarInfo.fromtarfile(opened)
            except _DAMAGE as error:
                self._refuse(f"no valid header there ({first_line(error)})")
            self._check(info)
            self._names.add(info.name)
            self._last = info.name
            self.position = info.offset_data
            if info.isreg():
                self.position += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                yield Member(self._tar, folder, info.name, info.offset_data, info.size)
        self._check_end()

    def _read(self, num_bytes: int) -> bytes:
        self._file.seek(self.position)
        return self._file.read(max(0, min(num_bytes, self._stop - self.position)))

    def _check(self, info: tarfile.TarInfo) -> None:
        """Refuse a member whose bytes are not all there, or that would be dropped."""
        if info.islnk() or info.issym():
            self._refuse(f"member {info.name!r} is a link to {info.linkname!r}, which cannot be read; pack files")
        if info.issparse() or not (info.isreg() or info.isdir()):
            self._refuse(f"member {info.name!r} is sparse or a special file, which cannot be read")
        if info.size < 0 or (info.isreg() and info.offset_data + info.size > self._stop):
            self._refuse(f"member {info.name!r} of {info.size:,} bytes is cut")
        if info.name in self._names and info.isreg():
            self._refuse(f"member {info.name!r} comes twice")

    def _check_end(self) -> None:
        """Refuse an archive without the end-of-archive marker, or with more behind it than the zeros of its last record."""
        left = self._stop - self.position
        if left < _MARKER_BYTES:
            self._refuse("cut there, the end-of-archive marker is missing")
        if left > _MOST_ZEROS or self._read(left).strip(b"\0"):
            self._refuse(
                f"the archive ends there and {left:,} bytes follow: zeros that were never written, or another archive"
            )

    def _refuse(self, what: str) -> NoReturn:
        inner = f", in its {self._name!r}" if self._name else ""
        after = f"after member {self._last!r}" if self._last else "before any member"
        raise UserError(
            f"{self._tar}: not a whole, uncompressed tar file{inner}: byte {self.position:,}, {after}: {what};"
            " copy or pack it again"
        )
