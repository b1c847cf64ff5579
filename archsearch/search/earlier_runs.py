"""Reads earlier runs that a run is to take figures from: `archsearch run --from FOLDER`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archsearch.blocks import BlockFile
from archsearch.errors import UserError
from archsearch.results import (
    MANIFEST_FILE,
    Row,
    damage_is_an_error,
    read_manifest,
    read_rows,
    study_name,
)
from archsearch.samplers import params_in_space
from archsearch.search.config import RunConfig
from archsearch.search.load import read_config
from archsearch.search.rungs import FREE_PHASE
from archsearch.search.study.donors import Donor, DonorTrial, training_seed
from archsearch.search.study.phases import phases_of_row
from archsearch.space import Arch, Space
from archsearch.system import utc_now


def read_donors(folders: Sequence[Path], config: RunConfig, own: Path) -> list[Donor]:
    """The runs in these folders, for the run of `config` in the folder `own`; one that it has taken before and that is gone is left out.

    Raises UserError for a folder that holds no run, for the run itself, and for a run of which nothing can be used.
    """
    donors: list[Donor] = []
    for folder in dict.fromkeys(folder.absolute() for folder in folders):
        try:
            donors.append(read_donor(folder, config, own))
        except UserError:
            if not _was_taken_before(folder, own):
                raise
    return donors


def _was_taken_before(folder: Path, own: Path) -> bool:
    """Whether the manifest of the run in `own` says that it has taken figures from this folder."""
    try:
        with damage_is_an_error(own):
            return str(folder) in {one["folder"] for one in read_manifest(own).get("taken_from", ())}
    except UserError:  # none yet, or damaged: it will be written from the study
        return False


def _manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder that is to hold a run."""
    if not (folder / MANIFEST_FILE).exists():
        raise UserError(f"--from {folder}: holds no run; name the folder of another run")
    with damage_is_an_error(folder):
        return read_manifest(folder)


def read_donor(folder: Path, config: RunConfig, own: Path) -> Donor:
    """The run in a folder as it stands now, for the run of `config` in the folder `own`. Raises UserError as `read_donors` does."""
    if folder.resolve() == own.resolve():
        raise UserError(f"--from {folder}: is the run itself; name other runs, or leave --from out to go on with it")
    manifest = _manifest(folder)
    with damage_is_an_error(folder):
        other = read_config(folder, manifest)
        rows = [row for row in read_rows(folder) if row["state"] in ("complete", "stopped")]
        archs = _architectures(rows)
        donor = Donor(
            run=study_name(manifest),
            folder=str(folder),
            begun_at=manifest["created_at"],
            taken_at=utc_now(),
            proxy_id=manifest.get("proxy_id"),
            training_seed=training_seed(other),
            is_same_code=_digests(other.block_files) == _digests(config.block_files),
            trials=tuple(
                _donor_trial(other, row, archs[row["trial"]])
                for row in rows
                if row["trial"] in archs and row["reused_from"] is None
            ),
        )
    _refuse_useless(donor, config.space)
    return donor


def _digests(files: Sequence[BlockFile]) -> set[tuple[str, str]]:
    return {(file.name, file.sha256) for file in files}


def _architectures(rows: Sequence[Row]) -> dict[int, Arch]:
    """By trial; none of those with blocks that this run does not know."""
    found: dict[int, Arch] = {}
    for row in rows:
        try:
            found[row["trial"]] = Arch.from_dict(json.loads(row["arch"]), f"trial {row['trial']}")
        except UserError:
            continue
    return found


def _donor_trial(config: RunConfig, row: Row, arch: Arch) -> DonorTrial:
    conditions = json.loads(row["conditions"] or "{}")
    conditions.pop("again", None)  # those of the second timing, which is not taken
    phases = phases_of_row(config, {**row, "conditions": conditions or None})
    phases.pop(FREE_PHASE, None)
    return DonorTrial(number=row["trial"], arch=arch, throughput_id=row["throughput_id"], phases=phases)


def _refuse_useless(donor: Donor, space: Space) -> None:
    """Raise UserError for a run without a finished trial, or whose architectures the space has no name for."""
    if not donor.trials:
        raise UserError(
            f"--from {donor.folder}: has no finished trial that can be read here; leave it out, or run it first"
        )
    if not any(params_in_space(trial.arch, space) for trial in donor.trials):
        raise UserError(
            f"--from {donor.folder}: has nothing in common with {space.source}, which has no name for what its architectures vary; leave it out"
        )
