"""Finds the run of a request among the folders that are there, also where its space is written otherwise or its folder was renamed."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.results import MANIFEST_FILE, damage_is_an_error, read_manifest, study_name
from archsearch.search.config import RunConfig, included_ids
from archsearch.search.load import read_config
from archsearch.space import Space
from archsearch.system import Say
from archsearch.units import format_count

_ID_DIGITS = 6


def find_run(root: Path, config: RunConfig, space: Space, say: Say) -> Path:
    """The folder under `root` of this request's run, or the one that it is to have.

    Raises UserError where it has been renamed: only its owner knows whether that run is meant.
    """
    folder = root / default_name(config, space)
    if folder.exists():
        return folder
    for path in sorted(root.glob(f"*/{MANIFEST_FILE}")):
        other = path.parent
        same = _same_run(other, config, say)
        if same is None:
            continue
        if same.name != other.name:
            raise UserError(
                f"this request's run is in {other}, which was named {same.name}; go on with it by --output {other}, "
                "or start another run by --output and a new folder"
            )
        if other.name == default_name(same, same.space):
            say(f"going on in {other}: the same request, its space written otherwise")
            return other
    return folder


def _same_run(folder: Path, config: RunConfig, say: Say) -> RunConfig | None:
    """The configuration of a folder's run, with the name that it began with, where that is the run of `config`."""
    try:
        with damage_is_an_error(folder):
            manifest = read_manifest(folder)
            names = ("budget_macs", "sampler", "seed")
            if [manifest[name] for name in names] != [getattr(config, name) for name in names]:
                return None  # most folders, without reading their space
            stored = read_config(folder, {**manifest, "name": study_name(manifest)})
            for name in stored.changed_files(config):
                say(
                    f"{folder} has this request's run with another text of {name}; a new run begins, unless you put that text back"
                )
            return None if stored.differences(config) else stored
    except UserError:  # a damaged run is no run to go on with
        return None


def default_name(config: RunConfig, space: Space) -> str:
    """`hybrid-4.5G-1a2b3c`: the same request gives the same name, any other condition another one."""
    said = config.to_dict() | {"name": "", "space_name": "", "space_text": tomllib.loads(config.space_text)}
    said["settings"] = _without_none(said["settings"])
    said["include"] = included_ids(config)
    # A run without them has the name that it had before there were any.
    said = {
        key: value for key, value in said.items() if value or key not in ("rungs", "fix", "blocks", "limits", "include")
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:_ID_DIGITS]
    if config.budget_macs is None:
        return f"{space.name}-any-{digest}"
    budget = format_count(config.budget_macs)
    number, unit = (budget[:-1], budget[-1]) if budget[-1].isalpha() else (budget, "")
    return f"{space.name}-{float(number):g}{unit}-{digest}"


def _without_none(value: Any) -> Any:
    """Settings of a later version that are left open, so that a name stays what it was."""
    if not isinstance(value, dict):
        return value
    return {key: _without_none(item) for key, item in value.items() if item is not None}
