"""An architecture as the text of a space file of size one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archsearch.space.arch import Arch


def arch_toml(arch: Arch, blocks: Sequence[str] = ()) -> str:
    """The TOML text that `load_space` reads to an equal architecture; `blocks` are the paths of the files of its own blocks."""
    document = arch.to_dict()
    scalars = {key: value for key, value in document.items() if key not in ("stem", "stages", "head")}
    if blocks:
        scalars["blocks"] = list(blocks)
    lines = [*_pairs(scalars), "", "[stem]", *_pairs(document["stem"])]
    for stage in document["stages"]:
        lines += ["", "[[stages]]", *_pairs(stage)]
    return "\n".join([*lines, "", "[head]", *_pairs(document["head"])]) + "\n"


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key."""
    return (f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: Any) -> str:
    """A value as TOML writes it: numbers, booleans and texts as JSON does, tables in one line."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}"
    return json.dumps(value)
