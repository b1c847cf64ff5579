"""A run's folder in Python: its trials, its front, and every architecture it has met."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from archsearch.errors import UserError
from archsearch.models import build
from archsearch.results import (
    RUN_FRONT,
    SPACE_FILE,
    damage_is_an_error,
    read_front,
    read_manifest,
    read_trials,
    run_state,
)
from archsearch.search.config import RunConfig
from archsearch.space import Arch, register_files, stored_block_files

_FRONT_COLUMNS = ("trial", "paper", "proxy_score", "throughput_img_s", "params", "macs", "architecture")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """A run as its folder holds it: tables as DataFrames, columns as in trials.parquet and front.parquet.

    A run that is still going on is read as it stands now; `load_run` again gives what has come since.
    """

    folder: Path
    state: str  # running, complete, timeout (stopped by --timeout), interrupted, failed or killed
    config: RunConfig
    trials: pd.DataFrame
    front: pd.DataFrame

    @property
    def name(self) -> str:
        """The run's name, that of its folder."""
        return self.config.name

    def arch(self, number: int) -> Arch:
        """The architecture of a trial by its number. Raises UserError where there is no such trial."""
        rows = self.trials.loc[self.trials["trial"] == number, "arch"]
        if rows.empty:
            raise UserError(f"{self.folder}: has no trial {number}; it has {len(self.trials)}, counted from 0")
        return Arch.from_dict(json.loads(rows.iloc[0]), f"{self.folder}:{number}")

    def build(self, number: int, **options: Any) -> nn.Module:
        """The network of a trial with fresh weights: (B, 3, H, W) images in, (B, classes) logits out; `options` are those of `archsearch.build`."""
        network: nn.Module = build(self.arch(number), **options)
        return network

    def __repr__(self) -> str:
        members = int((self.front["front_name"] == RUN_FRONT).sum())
        return f"<Run {self.name}: {self.state}, {len(self.trials)} trials, {members} on the front, in {self.folder}>"

    def _repr_html_(self) -> str:
        """The front as a table, for a notebook."""
        members = self.front.loc[self.front["front_name"] == RUN_FRONT, list(_FRONT_COLUMNS)]
        return f"<p>{html.escape(repr(self))}</p>{members.to_html(index=False, border=0, na_rep='')}"


def load_run(path: str | Path) -> Run:
    """A run by its folder, such as `results/hybrid-4.5G-9b4fe0`.

    Raises UserError where the folder holds no run, or one whose files are damaged. The code of the run's own blocks is run.
    """
    folder = Path(path)
    with damage_is_an_error(folder):
        manifest = read_manifest(folder)
        config = read_config(folder, manifest)
        register_files(config.block_files)
        return Run(
            folder=folder,
            state=run_state(folder, manifest),
            config=config,
            trials=read_trials(folder),
            front=read_front(folder),
        )


def read_config(folder: Path, manifest: dict[str, Any]) -> RunConfig:
    """What identifies the run, from its manifest and its copy of the space."""
    try:
        return RunConfig(
            name=manifest["name"],
            space_name=manifest["space"]["name"],
            space_text=(folder / SPACE_FILE).read_text(encoding="utf-8"),
            budget_macs=manifest["budget_macs"],
            tolerance=manifest["tolerance"],
            settings=manifest["settings"],
            objectives=tuple(manifest["objectives"]),
            sampler=manifest["sampler"],
            seed=manifest["seed"],
            papers=tuple(manifest["papers"]),
            rungs=tuple(manifest.get("rungs", ())),
            fix=manifest.get("fix", {}),
            limits=manifest.get("limits", {}),
            include=manifest.get("include", {}),
            blocks={file.name: file.text for file in stored_block_files(folder, manifest)},
        )
    except OSError as error:
        raise UserError(f"{folder / SPACE_FILE}: cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: its manifest is damaged ({type(error).__name__}: {error})") from error
