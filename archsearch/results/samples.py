"""The architectures that `archsearch sample` printed, kept so that their arch_ids can be typed. They may be deleted at any time."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from archsearch.errors import UserError, first_line
from archsearch.results.files import write_parquet
from archsearch.system import replace_file

SAMPLES = "samples"  # folder beside the runs
_MOST_FILES = 100  # the oldest are deleted
_METADATA = b"archsearch.samples"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """An architecture as it was printed: its id, its document, where it was kept, and paths and SHA-256 of the files of blocks that it needs."""

    arch_id: str
    document: Mapping[str, Any]
    file: Path
    blocks: Mapping[str, str]


def keep_samples(root: Path, space: str, archs: Mapping[str, Mapping[str, Any]], blocks: Mapping[str, str]) -> Path:
    """Write the architectures of one draw, by arch_id, to a file of their own under `root`; the same draw again replaces it. Raises UserError."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", space)[:40].lstrip(".") or "space"
    digest = hashlib.sha256(",".join(archs).encode()).hexdigest()[:8]
    about = json.dumps({"space": space, "blocks": dict(blocks)})
    columns = {"arch_id": list(archs), "arch": [json.dumps(arch) for arch in archs.values()]}
    table = pa.table(columns).replace_schema_metadata({_METADATA: about.encode()})
    path = root / SAMPLES / f"{name}-{digest}.parquet"

    def write(temporary: Path) -> None:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(table, temporary)

    replace_file(path, write)
    for old in sample_files(root)[_MOST_FILES:]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def sample_files(root: Path) -> list[Path]:
    """The files of the draws under `root`, the newest first."""

    def written_at(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:  # deleted meanwhile
            return 0.0

    return sorted((root / SAMPLES).glob("*.parquet"), key=written_at, reverse=True)


def find_samples(files: Sequence[Path], beginning: str) -> Iterator[Sampled]:
    """The architectures whose arch_id begins so, those of the newest draw first. Raises UserError for a file that is damaged."""
    for path in files:
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            about = json.loads((table.schema.metadata or {})[_METADATA])
            rows = table.filter(pc.starts_with(table["arch_id"], beginning)).to_pylist()
            found = [
                Sampled(arch_id=row["arch_id"], document=json.loads(row["arch"]), file=path, blocks=about["blocks"])
                for row in rows
            ]
        except FileNotFoundError:  # a draw beside this one deleted it
            continue
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a readable file of samples ({first_line(error)}); delete it") from error
        yield from found
