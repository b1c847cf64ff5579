"""The folder of an audit: one line of JSON a training, safe against kill -9 and against several processes at once. No torch."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pyarrow as pa

from archsearch.errors import UserError
from archsearch.results import write_parquet
from archsearch.system import flocked, replace_file

FOLDER = "audits"
SCORES_FILE, TABLE_FILE, AUDIT_FILE, FREE_FILE = "scores.jsonl", "scores.parquet", "audit.json", "training_free.json"
CLAIMS = "claims"
_KEPT = "every finished training is kept"

TABLE_SCHEMA = pa.schema(
    [
        pa.field("proxy_id", pa.string(), nullable=False),
        pa.field("arch_id", pa.string(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("at_step", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # of the whole training
        pa.field("macs", pa.int64(), nullable=False),
        pa.field("params", pa.int64(), nullable=False),
    ]
)

Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished training; `curve` is steps -> [score, standard error]. A failed one has a `reason` and no curve."""

    proxy_id: str
    arch_id: str
    name: str | None
    arch: Mapping[str, Any]
    seed: int
    steps: int
    curve: Mapping[str, list[float]]
    seconds: float
    macs: int
    params: int
    conditions: Mapping[str, Any]
    reason: str | None = None

    @property
    def key(self) -> Key:
        """No two trainings have the same."""
        return self.proxy_id, self.arch_id, self.seed

    @cached_property
    def scores(self) -> dict[int, float]:
        """Score after so many steps."""
        return {int(steps): score for steps, (score, _) in self.curve.items()}

    @property
    def score(self) -> float | None:
        """Of the whole training; None where it failed."""
        return self.scores.get(self.steps)

    @property
    def standard_error(self) -> float:
        """The binomial one of `score`."""
        return self.curve[str(self.steps)][1]


def proxy_digest(proxy_id: str) -> str:
    """Twelve hexadecimal digits that name the folder of a proxy's audit."""
    return hashlib.sha256(proxy_id.encode()).hexdigest()[:12]


def audit_folder(results_root: Path, proxy_id: str) -> Path:
    """The folder of a proxy's audit."""
    return results_root / FOLDER / proxy_digest(proxy_id)


class AuditStore:
    """The folder of an audit. Any number of processes may train into it; each training is claimed by one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def records(self) -> dict[Key, Record]:
        """All finished trainings, the first of each key; a line that a kill cut short is left out."""
        path = self.folder / SCORES_FILE
        found: dict[Key, Record] = {}
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        for line in lines[:-1]:  # what follows the last line's end is cut short, or nothing
            with contextlib.suppress(ValueError, TypeError):  # a line that was cut short, then completed by another
                record = Record(**json.loads(line))
                found.setdefault(record.key, record)
        return found

    def append(self, record: Record) -> None:
        """Add a training to the file, and wait until it is on the disk. Raises UserError where that is impossible."""
        path = self.folder / SCORES_FILE
        with self.locked("scores"), _report_write_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
                left = b"\n" * is_torn + line
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def claimed(self, key: Key) -> Iterator[bool]:
        """Whether this process may do the training now; a claim ends with its process, however that ends."""
        name = f"{proxy_digest(key[0])}-{key[1]}-{key[2]}"
        with self._lock(name, wait=False) as is_ours:
            yield is_ours and key not in self.records()  # another may have finished it just before
            if is_ours:  # it is done now: a process that has opened the file already finds the record
                (self.folder / CLAIMS / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock of the audit's processes; waits for the others."""
        with self._lock(name, wait=True):
            yield

    def write(self, document: Mapping[str, Any]) -> None:
        """Replace audit.json and the table of all trainings."""
        rows: list[dict[str, Any]] = []
        for record in self.records().values():
            for steps, (score, error) in record.curve.items():
                point = {"at_step": int(steps), "score": score, "standard_error": error}
                rows.append(point | {name: getattr(record, name) for name in TABLE_SCHEMA.names if name not in point})
        table = pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        with self.locked("written"):
            replace_file(self.folder / TABLE_FILE, lambda path: write_parquet(table, path), kept=_KEPT)
            replace_file(self.folder / AUDIT_FILE, lambda path: path.write_text(text, encoding="utf-8"), kept=_KEPT)

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        path = self.folder / CLAIMS / name
        with _report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with flocked(descriptor, wait=wait) as is_ours:
                yield is_ours
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {_KEPT}") from error


def read_audit(results_root: Path, proxy_id: str | None) -> dict[str, Any] | None:
    """The document of the last audit of a proxy under `results_root`, else the shipped one (`is_shipped`); None without either."""
    if proxy_id is None:
        return None
    shipped = resources.files("archsearch") / "proxy" / "shipped" / FOLDER / f"{proxy_digest(proxy_id)}.json"
    for place, is_shipped in ((audit_folder(results_root, proxy_id) / AUDIT_FILE, False), (shipped, True)):
        document = read_json(place)
        if not isinstance(document, dict) or document.get("proxy_id") != proxy_id:
            continue
        if all(isinstance(document.get(name), str) for name in ("verdict", "created_at")):
            return {**document, "is_shipped": is_shipped}
    return None


def read_json(path: Path | Traversable) -> Any:
    """A file's document; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
