"""`archsearch.load_run`: a run's folder in Python, against the tables and the configuration that the run itself was made with."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support.runs import fixed_archs, make_config, run

import archsearch
from archsearch import Run, UserError
from archsearch.results import read_front, read_trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("load")
    run(work / "test", make_config(work / "log"), 2)
    return work / "test"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Run:
    return archsearch.load_run(folder)


def test_tables_and_configuration_are_the_runs_own(folder: Path, loaded: Run) -> None:
    pd.testing.assert_frame_equal(loaded.trials, read_trials(folder))
    pd.testing.assert_frame_equal(loaded.front, read_front(folder))
    assert loaded.config == make_config(folder.parent / "log")
    assert (loaded.name, loaded.state, loaded.folder) == ("test", "complete", folder)


def test_every_trial_is_an_architecture_that_can_be_built(loaded: Run) -> None:
    for row in loaded.trials.to_dict("records"):
        arch = loaded.arch(int(row["trial"]))
        assert arch.arch_id == row["arch_id"]
        assert arch.cost().macs == row["macs"]
    assert loaded.arch(1) == fixed_archs()["davit_tiny"]
    model = loaded.build(1, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) < loaded.trials.params[1]


def test_a_run_shows_its_name_state_and_front(loaded: Run) -> None:
    for text in (repr(loaded), loaded._repr_html_()):
        for words in ("test", "complete", "4 trials", "on the front"):
            assert words in text
    assert all(
        words in loaded._repr_html_()
        for words in loaded.front.loc[loaded.front.front_name == "objectives", "architecture"]
    )
    assert "<Run" not in loaded._repr_html_()


def test_what_is_no_run_is_refused(folder: Path, loaded: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trial 99"):
        loaded.arch(99)
    with pytest.raises(UserError, match="manifest"):
        archsearch.load_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["settings"]
    for name in ("trials.parquet", "front.parquet", "space.toml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="manifest is damaged"):
        archsearch.load_run(tmp_path)
