"""Where a run's study is kept: a database's address, its driver, and file systems on which SQLite is not safe."""

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from archsearch.errors import UserError, first_line, without_passwords
from archsearch.results import DATABASE_FILE

_POSTGRESQL = "postgresql+psycopg"
_MOUNTS = Path("/proc/self/mountinfo")
# File systems whose locks do not hold between machines, or that have none; SQLite's own list of ways to corrupt a file begins with them:
# https://www.sqlite.org/howtocorrupt.html#_filesystems_with_broken_or_missing_lock_implementations
_WITHOUT_LOCKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs"}
_WITHOUT_LOCKS |= {f"fuse.{name}" for name in ("sshfs", "s3fs", "gcsfuse", "rclone")}
# Lustre's locks hold between machines, unless it is mounted with this option.
_LUSTRE_LOCAL = "localflock"


def driver_url(url: str) -> str:
    """The URL with the driver that PostgreSQL is reached by, where it names none; others are left as they are."""
    scheme, sign, rest = url.partition("://")
    return f"{_POSTGRESQL}{sign}{rest}" if scheme.lower() in ("postgresql", "postgres") else url


def check_url(url: str) -> None:
    """Raise UserError for a URL that cannot be used, before anything is done: see `shown_url`; or its driver is not installed."""
    where = shown_url(url)
    try:
        sqlalchemy.make_url(driver_url(url)).get_dialect().import_dbapi()
    except ImportError as error:
        if driver_url(url).startswith(f"{_POSTGRESQL}:"):
            raise UserError(
                f"--storage {where}: needs psycopg, the driver of PostgreSQL, which cannot be imported ({first_line(error)}); "
                "pip install 'archsearch[postgresql]'"
            ) from error
        raise UserError(
            f"--storage {where}: its driver cannot be imported ({first_line(error)}); install it"
        ) from error
    except SQLAlchemyError as error:
        raise UserError(f"--storage {where}: cannot be used ({first_line(error)})") from error


def shown_url(url: str) -> str:
    """A storage URL without its password, to be shown. Raises UserError for one that cannot be parsed, or that keeps nothing."""
    try:
        parsed = sqlalchemy.make_url(url)
    except SQLAlchemyError as error:
        raise UserError("--storage: not a database URL; write one such as postgresql://user@host/name") from error
    if "@" in (parsed.host or "") or (parsed.password and len(url.partition("@")[0].split()) > 1):
        raise UserError("--storage: write a space and an @ of a password as %20 and %40")  # else a part of it is shown
    if parsed.get_backend_name() == "sqlite" and _is_in_memory(parsed):
        raise UserError(
            "--storage: a database in memory, which is gone when the run ends; leave --storage out for study.db in the run's folder, "
            "or name a file, such as sqlite:///runs.db"
        )
    return without_passwords(parsed.render_as_string(hide_password=True))


def _is_in_memory(url: sqlalchemy.URL) -> bool:
    """Whether SQLite would keep this database in no file."""
    return not url.database or ":memory:" in url.database or "mode=memory" in str(url)


def database_file(folder: Path, url: str | None) -> Path | None:
    """The file in which SQLite keeps the study; None for a server."""
    if url is None:
        return folder / DATABASE_FILE
    parsed = sqlalchemy.make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def refuse_network_file(folder: Path, url: str | None, mounts: str | None = None) -> None:
    """Raise UserError where SQLite would keep the study on a network file system; Linux only. `mounts`: the text of /proc/self/mountinfo."""
    path = database_file(folder, url)
    if path is None:
        return
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:  # no Linux
            return
    kind, options = file_system(path, mounts)
    if kind in _WITHOUT_LOCKS or (kind == "lustre" and _LUSTRE_LOCAL in options):
        raise UserError(
            f"{path}: on a network file system ({kind}), whose locks SQLite cannot rely on; give --storage postgresql://user@host/name, "
            "or an --output on a local disk"
        )


def file_system(path: Path, mounts: str) -> tuple[str, tuple[str, ...]]:
    """The type and the options of the file system that a path lies on, by the text of /proc/self/mountinfo; ("", ()) where it has none."""
    whole = path.absolute().resolve()
    found: tuple[str, tuple[str, ...]] = ("", ())
    depth = -1
    for point, kind, options in _mounts(mounts):
        # The last one of a folder hides those before it.
        if whole.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = (kind, options), len(point.parts)
    return found


def _mounts(text: str) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Folder, type and options of each mount; the format is that of proc(5), /proc/pid/mountinfo."""
    for line in text.splitlines():
        before, sign, after = line.partition(" - ")
        about, fields = before.split(" "), after.split(" ")
        if sign and len(about) > 5 and len(fields) > 2:
            yield Path(_unescaped(about[4])), fields[0], (*about[5].split(","), *fields[2].split(","))


def _unescaped(text: str) -> str:
    r"""A folder as it is; its spaces, tabs, line ends and backslashes are written `\040` and so on."""
    for sign in " \t\n\\":
        text = text.replace(f"\\{ord(sign):03o}", sign)
    return text
