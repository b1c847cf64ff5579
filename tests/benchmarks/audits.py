"""Collects audits that `archsearch audit` has made into one file: each judge's tau, and the spread and noise of the scores.

Usage: python tests/benchmarks/audits.py results/audits/* [--out FOLDER]     (seconds; the audits themselves take an hour or so each)
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clock import RESULTS, write

Row = dict[str, Any]


def rows_of(document: dict[str, Any]) -> Iterator[Row]:
    """A row each judge of each comparison, and one each group of architectures."""
    common = {"proxy_id": document["proxy_id"], "created_at": document["created_at"], "seeds": document["seeds"]}
    for comparison in document["comparisons"]:
        shown = [*comparison["judges"], {"judge": "the proxy minus parameters", **(comparison["minus_params"] or {})}]
        if comparison["ceiling"]:
            shown.append({"judge": "seed to seed", **comparison["ceiling"]})
        for judge in shown:
            values = {
                f"tau{'' if name == 'value' else '_' + name}": judge.get(name) for name in ("value", "low", "high")
            }
            yield {
                **common,
                "group": comparison["group"],
                "target": comparison["target"],
                "count": comparison["count"],
                "judge": judge["judge"],
                **values,
                "tau_one_seed": judge.get("single"),
            }
    for name, group in document["groups"].items():
        yield {**common, "group": name, "target": "spread and noise", **group}


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audits", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    files = [folder / "audit.json" for folder in arguments.audits]
    read = [json.loads(file.read_text()) for file in files if file.is_file()]
    documents = [document for document in read if "comparisons" in document]  # that of --timm is another one
    for document in documents:
        print(f"{document['proxy_id']}\n  {document['verdict']}")
    rows = [row for document in documents for row in rows_of(document)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write(arguments.out, "audits", [{name: row.get(name) for name in names} for row in rows])


if __name__ == "__main__":
    main()
