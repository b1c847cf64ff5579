"""The page as one file: HTML, style, scripts, plotly and the data inside; the data and plotly are packed, and unpacked by the browser."""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from archsearch.report.page.payload import page_payload
from archsearch.report.tables import Document, plain
from archsearch.system import replace_file

_STATIC = files("archsearch.report.page")
# In the order in which they need each other.
SCRIPTS = (
    "base.js",
    "data.js",
    "drawing.js",
    "charts.js",
    "front.js",
    "choices.js",
    "comparison.js",
    "details.js",
    "table.js",
    "main.js",
)


def write_page(reports: Sequence[tuple[Path, Document]], path: Path, comparison: Document | None = None) -> None:
    """Write the page of these runs, folders with what `build_report` gave of each, whole or not at all. Raises UserError where that is impossible.

    `comparison` is what `build_comparison` gave of several.
    """
    text = page_html(page_payload(reports, comparison))
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page_html(payload: Mapping[str, Any]) -> str:
    """The page. Only the title is text of a run; all else that a run holds is packed, and no browser takes it for HTML."""
    script = "\n".join(_static(name) for name in SCRIPTS)
    names = ", ".join(run["document"]["run"] for run in payload["runs"])
    parts = {
        "title": html.escape(f"{names} - archsearch"),
        "style": _static("page.css"),
        "script": f'"use strict";\n(() => {{\n{script}\n}})();',
        "plotly": _packed(get_plotlyjs()),
        "data": _packed(_json(payload)),
    }
    pieces = _static("page.html").split("<!--part ")
    return pieces[0] + "".join(
        parts[name] + rest for name, rest in (piece.split("-->", maxsplit=1) for piece in pieces[1:])
    )


def _static(name: str) -> str:
    return _STATIC.joinpath(name).read_text(encoding="utf-8")


def _json(payload: Mapping[str, Any]) -> str:
    return json.dumps(
        plain(dict(payload)), allow_nan=False, separators=(",", ":"), default=lambda value: value.isoformat()
    )


def _packed(text: str) -> str:
    """gzip in base64, the same bytes for the same text; level 9 takes twice the time for a hundredth of the size."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")
