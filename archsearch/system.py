"""Whole files, locks, processes and the command line: what the rooms ask of the operating system. No torch."""

import codecs
import contextlib
import errno
import os
import shlex
import signal
import stat
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from archsearch.errors import UserError, first_line, without_passwords

if sys.platform != "win32":
    import fcntl

# How long work tells its caller what it does: `say(line)` prints one line, `progress(done, total, text)` moves a bar. The first call of `progress`
# says how much was done before this session, so that the time left is worked out from what this session does.
Say = Callable[[str], None]
Progress = Callable[[float, float, str], None]

MOST_TEXT_BYTES = 200_000  # of a file that people write by hand; tomllib takes seconds for the worst text of this size
_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LOCK_POLL_S = 0.02


# The signals so far that asked this process to end, where a handler of ours took them.
interruptions: list[int] = []


def interrupted_code() -> int:
    """The exit code of a process that was asked to end, as a shell would show it: 143 where that was SIGTERM, 130 for Ctrl-C."""
    return 128 + (interruptions[0] if interruptions else signal.SIGINT)


def ignore(*_: object) -> None:
    """A `Say` or `Progress` that shows nothing."""


def user_path(text: str | Path) -> Path:
    """A path as people type it: `~` and `~name` are home folders, where there are such users."""
    return Path(os.path.expanduser(text))


def read_text(path: Path, what: str) -> str:
    """The text of a small UTF-8 file, lines ended by LF and without a byte order mark; `what` it should be, such as "a space file".

    Raises UserError for a folder, a pipe or a device, for over MOST_TEXT_BYTES, for another encoding, and where it cannot be read.
    """
    where = f"{path}: cannot be read as {what}"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{where}: it is {_NO_FILES.get(stat.S_IFMT(about.st_mode), 'no file')}")
        if about.st_size > MOST_TEXT_BYTES:
            raise UserError(f"{where}: it has {about.st_size} bytes; at most {MOST_TEXT_BYTES} are allowed")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{where}: it is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The document of a TOML text. Raises UserError with `source` and, where it is known, the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a whole number of over 4,300 digits
        raise UserError(f"{source}: not valid TOML: {first_line(error)}") from error


def open_regular(path: Path) -> BufferedReader:
    """A file, open for reading. Raises OSError for a folder, a pipe, a socket or a device too: reading these may wait without end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, "rb")


def replace_file(path: Path, write: Callable[[Path], object], *, kept: str = "") -> None:
    """Write beside `path`, then rename: a reader, a full disk or a kill never meets half a file.

    Raises UserError where that is impossible; `kept` says what is not lost by it.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        safe = f"{kept}: " if kept else ""
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); {safe}"
            "make room or make the folder writable, then give the same command again"
        ) from error


class Interrupt:
    """A wish to stop, by Ctrl-C or SIGTERM, that work looks at where it can stop without a loss."""

    def __init__(self) -> None:
        self.is_asked = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Meanwhile the first signal only sets `is_asked`; a second one raises KeyboardInterrupt. Outside the main thread signals are left alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: object) -> None:
            interruptions.append(signum)
            if self.is_asked:
                raise KeyboardInterrupt
            self.is_asked = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """A process started meanwhile never gets what a terminal or a job scheduler sends to a whole group, Ctrl-C and SIGTERM; ours only come later."""
    if sys.platform == "win32":
        yield
        return
    # Started here, since on its own start it would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def command_line(arguments: Sequence[str]) -> str:
    """The command to type, quoted for a shell, without passwords."""
    return shlex.join(["archsearch", *map(without_passwords, arguments)])


def utc_now(timespec: str = "seconds") -> str:
    """The time now in UTC as ISO 8601, to the second or another `timespec` of `datetime.isoformat`."""
    return datetime.now(UTC).isoformat(timespec=timespec)


@contextlib.contextmanager
def flocked(descriptor: int, *, exclusive: bool = True, wait: bool = True, patience_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock of an open file meanwhile; False, and no lock, where another process has it for `patience_s` and `wait` is off.

    The lock ends with the process that holds it, however that ends. Windows has none: there the answer is always True.
    """
    if sys.platform == "win32":
        yield True
        return
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                yield False
                return
            time.sleep(_LOCK_POLL_S)
    try:
        yield True
    finally:
        # Unlocked by hand, since a forked child (a data loader's) still has the open file after we close ours.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
