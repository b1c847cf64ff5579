"""Locks that all processes of a machine share by name; each holder leaves its name in the lock's file, for those that wait. No torch."""

import contextlib
import errno
import getpass
import json
import os
import platform
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.system import Say, flocked, ignore, utc_now

# A directory that other users and containers of this machine see too. Not TMPDIR, which differs between users and jobs.
DIRECTORY_VARIABLE = "ARCHSEARCH_LOCK_DIR"
_DIRECTORY = Path("/tmp")  # noqa: S108  # a known name is the point; files there are opened without following links
_TELL_EVERY_S = 1.0
_OPEN_ATTEMPTS = 5
_MAX_BYTES = 65_536
_MAX_WORDS = 120
_purpose: list[str] = []


def work_for(purpose: str) -> None:
    """Say what this process holds locks for, such as `run results/one`; without it, the program and its command."""
    _purpose[:] = [purpose]


class Held:
    """A lock that is held: `waited_s`, the seconds that were waited for it, and a way to let others have it alone for a while."""

    def __init__(self, take: Callable[[contextlib.ExitStack], float], is_wanted: Callable[[], bool]) -> None:
        self.waited_s = 0.0
        self._take, self._is_wanted = take, is_wanted
        self._stack = contextlib.ExitStack()
        self._wait()

    def _wait(self) -> float:
        seconds = self._take(self._stack)
        self.waited_s += seconds
        return seconds

    def step_aside(self) -> float:
        """Where another process waits for the lock alone, give it up, and wait until that one has had it; gives the seconds waited."""
        if not self._is_wanted():
            return 0.0
        self._stack.close()
        return self._wait()

    def release(self) -> None:
        """Give it up."""
        self._stack.close()


@contextlib.contextmanager
def machine_lock(name: str, *, exclusive: bool, on_wait: Callable[[str], None] = ignore) -> Iterator[Held]:
    """Wait for the lock `name` and hold it, alone or shared with others that do not want it alone.

    Who wants it alone is served before those that want to share it, and those that share it may step aside (`Held.step_aside`).

    While it waits, `on_wait` is called with who holds the lock, at first and whenever that changes, and at the end with an empty text; these
    calls come from another thread. The system releases the lock when the holder and its forked children have ended, in whatever way. Not
    re-entrant: a process that holds the lock must not ask for it again. Does nothing on Windows. UserError when the file cannot be opened.
    """
    if sys.platform == "win32":
        yield Held(lambda stack: 0.0, lambda: False)
        return

    def enter(stack: contextlib.ExitStack, wanted: int) -> float:
        if stack.enter_context(flocked(wanted, exclusive=exclusive, wait=False)):
            return 0.0
        started = time.monotonic()
        with _telling(descriptor, on_wait):
            stack.enter_context(flocked(wanted, exclusive=exclusive))
        return time.monotonic() - started

    def take(stack: contextlib.ExitStack) -> float:
        # Held until the lock is: so those that share it see that one wants it alone.
        with contextlib.ExitStack() as turn:
            waited_s = enter(turn, queue) + enter(stack, descriptor)
        stack.enter_context(_named(descriptor, alone=exclusive))
        return waited_s

    def is_wanted() -> bool:
        with flocked(queue, exclusive=False, wait=False) as is_free:
            return not is_free

    descriptor = _open(lock_directory() / f"archsearch-{name}.lock")
    queue = _open(lock_directory() / f"archsearch-{name}.queue.lock")
    try:
        held = Held(take, is_wanted)
        try:
            yield held
        finally:
            held.release()
    finally:
        os.close(descriptor)
        os.close(queue)


def waiting_line(say: Say) -> Callable[[str], None]:
    """An `on_wait` that says `waiting for the device: process 7 (run results/one, ...) has it`."""
    return lambda holder: say(f"waiting for the device: {holder} has it") if holder else None


def lock_directory() -> Path:
    """The directory of the lock files: `ARCHSEARCH_LOCK_DIR`, else /tmp, or where there is none, the system's temporary directory."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen:
        return Path(chosen)
    return _DIRECTORY if _DIRECTORY.is_dir() else Path(tempfile.gettempdir())


def _open(path: Path) -> int:
    """Descriptor of the lock file, which everyone may read and write; read-only where its owner allows no more, and that can be locked too."""
    flags = os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for attempt in range(_OPEN_ATTEMPTS):
        try:
            # Without O_CREAT first: Linux refuses it on another user's file in a world-writable directory.
            return _checked(os.open(path, flags | os.O_RDWR), path)
        except PermissionError:
            with contextlib.suppress(PermissionError):
                return _checked(os.open(path, flags | os.O_RDONLY), path)
            time.sleep(0.01 * attempt)  # its maker may be about to open it for all
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return _create(path, flags)
        except OSError as error:
            raise _cannot(
                path, "it is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
            ) from error
    raise _cannot(path, "permission denied")


def _create(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise
    except OSError as error:
        raise _cannot(path, str(error.strerror)) from error
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o666)  # whatever the umask
    return descriptor


def _checked(descriptor: int, path: Path) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _cannot(path, "it is no file")
    return descriptor


def _cannot(path: Path, reason: str) -> UserError:
    return UserError(
        f"device lock {path}: cannot be opened ({reason}); remove it, or set {DIRECTORY_VARIABLE} to a directory that everyone "
        "who uses this machine can write to"
    )


# Each holder appends a line when it gets the lock and another when it gives it back; one that holds it alone empties the file before.


@contextlib.contextmanager
def _named(descriptor: int, *, alone: bool) -> Iterator[None]:
    """Have the file say meanwhile that this process holds the lock."""
    key = uuid.uuid4().hex[:12]
    holder = {
        "key": key,
        "pid": os.getpid(),
        "where": _where(),
        "user": _user(),
        "purpose": _purpose[0] if _purpose else _program(),
        "since": utc_now(),
    }
    _append(descriptor, holder, empty_first=alone)
    try:
        yield
    finally:
        _append(descriptor, {"key": key, "released": True}, empty_first=False)


def _append(descriptor: int, record: dict[str, Any], *, empty_first: bool) -> None:
    """Add a line; nothing where the file may not be written, or is another file under a second name."""
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_nlink != 1:
            return
        if empty_first:
            os.ftruncate(descriptor, 0)
        if os.fstat(descriptor).st_size < _MAX_BYTES:
            os.write(descriptor, (json.dumps(record) + "\n").encode())


def _holders(descriptor: int) -> list[str]:
    """Those that hold the lock, in words, as far as they left their names and are alive."""
    holders: dict[str, dict[str, Any]] = {}
    for line in os.pread(descriptor, _MAX_BYTES, 0).decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            record = json.loads(line)
            if record.get("released"):
                holders.pop(record["key"], None)
            elif record["where"] != _where() or _is_alive(int(record["pid"])):
                holders[record["key"]] = record
    return [_describe(record) for record in holders.values()]


def _describe(record: dict[str, Any]) -> str:
    place = "" if record["where"] == _where() else " of another container or machine"
    words = f"process {record['pid']}{place} ({record.get('purpose')}, user {record.get('user')}, since {record.get('since')})"
    return "".join(letter for letter in words if letter.isprintable())[: 2 * _MAX_WORDS]  # others write there too


@contextlib.contextmanager
def _telling(descriptor: int, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Tell who holds the lock, now and when it changes, from a thread of its own, since the wait itself blocks."""
    is_over = threading.Event()

    def tell() -> None:
        shown = ""
        while True:
            words = ", ".join(_holders(descriptor)) or "a process that left no name here, perhaps in another container"
            if words != shown:
                shown = words
                on_wait(words)
            if is_over.wait(_TELL_EVERY_S):
                return

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        on_wait("")


def _where() -> str:
    """The machine, and the container's own numbering of processes where the system has such."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {namespace}".strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user of this number
        return str(os.getuid()) if sys.platform != "win32" else "unknown"


def _program() -> str:
    """The program and its command, without further arguments, which may hold a password."""
    name, *arguments = sys.argv or [""]
    command = arguments[0] if arguments and Path(name).name in ("archsearch", "__main__.py") else ""
    return f"{'archsearch' if command else Path(name).name} {command}".strip()[:_MAX_WORDS]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
