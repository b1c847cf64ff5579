"""The places of members in uncompressed tar files, so that any of them can be read without reading the rest."""

# Not timm's tar readers: for large tars they keep an index beside the data as a pickle, and files from a user's folder
# must not be unpickled.

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from archsearch.errors import UserError


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

    Raises UserError where it is no whole, uncompressed tar file.
    """
    try:
        with open(tar, "rb") as file:
            for member in _scan(tar, file, 0, tar.stat().st_size, ""):
                if not nested:
                    yield member
                elif member.name.endswith(".tar"):
                    file.seek(member.offset)
                    yield from _scan(tar, file, member.offset, member.size, Path(member.name).stem)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{tar}: not a whole, uncompressed tar file ({error}); allowed are .tar files as they were published"
        ) from error
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror or error})") from error


def _scan(tar: Path, file: IO[bytes], start: int, size: int, folder: str) -> Iterator[Member]:
    """Members of the tar at `start`; `next` seeks to its own position, so other code may move the file's position in between."""
    with tarfile.open(fileobj=file, mode="r:") as opened:
        while (info := opened.next()) is not None and info.offset_data < start + size:
            opened.members.clear()  # type: ignore[attr-defined]  # a public list without a type; it would keep a million
            if info.isreg():
                yield Member(tar, folder, info.name, info.offset_data, info.size)
