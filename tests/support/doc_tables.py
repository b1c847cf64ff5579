"""The tables of the documentation that follow from the code. `python -m tests.support.doc_tables` in the checkout writes them into the pages again.

What a column means is written by hand, in the page: it is read from the table that stands there and kept.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from archsearch.report import paper_list
from archsearch.results import FRONT_SCHEMA, SCHEMA

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS, BENCHMARKS = CHECKOUT / "archsearch" / "docs", CHECKOUT / "results" / "benchmarks"


def table_below(heading: str, page: str) -> str:
    """The first table under a heading of a page, with its last line break."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(?:(?!#).*\n)*?((?:\|.*\n)+)", page, re.MULTILINE)
    assert found, heading
    return found[1]


def cells_of(table: str) -> list[list[str]]:
    """The rows under a table's head, without its bars."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def make_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("| --- ", "|---").replace("|--- ", "|---") for line in lines)


def columns_table(fields: Iterable[pa.Field], meanings: Mapping[str, str]) -> str:
    """One row a column of a parquet file; a column that the page does not have yet gets an empty meaning."""
    return make_table(
        ["column", "type", "null", "meaning"],
        [
            [f"`{field.name}`", str(field.type), "yes" if field.nullable else "no", meanings.get(f"`{field.name}`", "")]
            for field in fields
        ],
    )


def results_tables(page: str) -> dict[str, str]:
    """Heading -> table, of the page `results`."""
    only_front = [field for field in FRONT_SCHEMA if field.name not in SCHEMA.names]
    tables = {}
    for heading, fields in {"trials.parquet": list(SCHEMA), "front.parquet": only_front}.items():
        meanings = {cells[0]: cells[3] for cells in cells_of(table_below(heading, page))}
        tables[heading] = columns_table(fields, meanings)
    return tables


def papers_tables(page: str) -> dict[str, str]:
    """Heading -> table, of the page `papers`."""
    rows = [
        [
            f"`{model['name']}`",
            f"{model['title'].split(':')[0]} ({model['arxiv']})",
            str(model["image_size"]),
            f"{model['macs']:,}",
            f"{model['params']:,}",
            "-" if model["published"]["top1"] is None else f"{model['published']['top1']:g}",
        ]
        for model in paper_list()
    ]
    return {"The 39 models": make_table(["name", "paper (arXiv)", "px", "MACs", "parameters", "top-1"], rows)}


def benchmarks_tables(page: str) -> dict[str, str]:
    """Heading -> table, of the page `benchmarks`."""
    # Here: the module lies beside the script that prints these tables, and is found only once this one runs.
    from gpu_rows import read_rows
    from gpu_tables import NETWORK_COLUMNS, OPERATION_COLUMNS, SHOWN_COMMIT, SHOWN_FILE, network_cells, operation_cells

    kept = read_rows(BENCHMARKS / SHOWN_FILE)
    rows = [row for row in kept if row["commit"] == SHOWN_COMMIT]
    return {
        "Networks on an H100": make_table(NETWORK_COLUMNS, network_cells(rows)),
        "Operations on an H100": make_table(OPERATION_COLUMNS, operation_cells(rows)),
    }


TABLES = {"results": results_tables, "papers": papers_tables, "benchmarks": benchmarks_tables}


def rewrite() -> None:
    """Put the tables into their pages."""
    for name, make in TABLES.items():
        path = DOCS / f"{name}.md"
        page = path.read_text(encoding="utf-8")
        for heading, table in make(page).items():
            page = page.replace(table_below(heading, page), table)
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.path.append(str(CHECKOUT / "tests" / "benchmarks"))
    rewrite()
