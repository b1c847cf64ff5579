"""The spaces that archsearch ships, as files: found and read without building a space, so without torch."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from archsearch.errors import UserError, did_you_mean


@cache
def spaces_folder() -> Path:
    """The shipped spaces: inside an installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("archsearch"))) / "spaces"
    return inside if inside.is_dir() else inside.parent.parent / "spaces"


def paper_names() -> list[str]:
    """Names of the papers' models that are shipped as fixed trials, sorted."""
    return sorted(path.stem for path in (spaces_folder() / "papers").glob("*.toml"))


@cache
def paper_table(name: str) -> Mapping[str, Any]:
    """The `[paper]` table of a shipped model: title, published figures, source. Raises UserError with the nearest name."""
    known = paper_names()
    if name not in known:
        raise UserError(f"unknown paper {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    text = (spaces_folder() / "papers" / f"{name}.toml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = tomllib.loads(text)["paper"]
    return table
