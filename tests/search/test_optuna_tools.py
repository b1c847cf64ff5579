"""A run's study in Optuna's own tools: names, flat attributes, notes, plots; and studies of earlier versions, brought to the same form."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support.documents import code_blocks
from support.postgres import postgres
from support.runs import InProcessWorker, make_rung_config, run
from support.stub_evaluators import evaluate

from archsearch import results
from archsearch.errors import UserError
from archsearch.samplers import DESCRIBED, params_in_space
from archsearch.search import RunConfig, open_run, restore_run
from archsearch.space import paper

TOOLS = {"paper", "architecture", "arch_id", "macs", "params", "reused_from", "reason", "rung_score", "seconds_total"}
# What Optuna says of importances whatever target is given, and of parameters that few trials have.
IMPORTANCES = "achieve low `target` values|less than 2 trials|same set of trials"
FOR_SAMPLERS = {"learning_curve", "measured", "standard_errors"}


def made(folder: Path, trials: int = 12, url: str | None = None) -> RunConfig:
    """A run with two papers and rungs, of which some trials are stopped."""
    config = make_rung_config(folder / "log", sampler="random", name="made")
    run(folder / "made", config, trials, storage_url=url, worker=InProcessWorker(evaluate))
    return config


def opened(folder: Path) -> optuna.Study:
    """The study as another program opens it."""
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/made/study.db")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    made(folder)
    return folder


def test_a_study_has_names_and_few_flat_attributes(folder: Path) -> None:
    study, rows = opened(folder), results.read_rows(folder / "made")
    assert study.metric_names == ["proxy_score", "throughput_img_s", "params"]
    assert study.user_attrs["space"] == "hybrid"
    assert study.user_attrs["budget"] == "4.50G MACs +-5%"
    assert all(isinstance(value, str | int | float | None) for value in study.user_attrs.values())
    for trial, row in zip(study.trials, rows, strict=True):
        shown = {key: value for key, value in trial.user_attrs.items() if key not in FOR_SAMPLERS}
        assert shown.keys() <= TOOLS | {"proxy_score", "throughput_img_s"}
        assert shown == {key: row[key] for key in shown}, "as in trials.parquet"
        assert trial.user_attrs.get("paper") == row["paper"]
        assert bool(trial.params) == (row["paper"] is None)


def test_parameters_are_words_and_stopped_trials_say_why(folder: Path) -> None:
    study = opened(folder)
    stopped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert stopped
    for trial in stopped:
        assert "training steps" in trial.user_attrs["reason"]
        assert trial.user_attrs["rung_score"] < 1
        assert trial.user_attrs["throughput_img_s"] > 0
    for trial in study.trials:
        blocks = [value for name, value in trial.params.items() if name.endswith(".block")]
        assert all(isinstance(block, str) and block.strip("0123456789.") for block in blocks)
        if trial.state == TrialState.COMPLETE:
            assert not {"reason", "proxy_score", "throughput_img_s"} & trial.user_attrs.keys()


def test_a_sampler_still_reads_the_choices_of_a_papers_model(tmp_path: Path) -> None:
    config = made(tmp_path, 1)
    with open_run(tmp_path / "made", config) as store:
        read = store._study.get_trials(deepcopy=False)
    assert read[0].system_attrs[DESCRIBED] == params_in_space(paper("van_b2"), config.space)
    assert DESCRIBED not in read[-1].system_attrs


def test_notes_are_those_that_optuna_dashboard_reads(folder: Path) -> None:
    """By its own reader where it is installed, else by the keys that it documents nowhere but in its code."""
    study = opened(folder)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert "## A run of archsearch" in attrs["dashboard:note_str:0"]
    assert attrs["dashboard:note_ver"] == 1
    assert "arXiv 2202.09741" in attrs["dashboard:1:note_str:0"], "trial 0, which the database calls 1, is van_b2"
    notes = [key for key in attrs if key.endswith("note_ver")]
    assert len(notes) == 3, "of the study and two papers"
    dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    assert dashboard.get_note(study) == attrs["dashboard:note_str:0"]


def test_plots_of_optuna_work_on_it(folder: Path) -> None:
    pytest.importorskip("plotly", reason="needs plotly")
    study, plots = opened(folder), optuna.visualization
    front = plots.plot_pareto_front(study)
    assert [front.layout.scene[axis].title.text for axis in ("xaxis", "yaxis", "zaxis")] == study.metric_names
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert sum(len(trace.x) for trace in front.data) == len(complete)
    sampled = [trial for trial in study.trials if trial.params]
    shared = sorted(set.intersection(*(set(trial.params) for trial in sampled)))
    assert {"stages.1.block", "stages.1.depth", "stages.1.width"} <= set(shared)
    blocks = [name for name in shared if name.endswith(".block")]
    options: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": "proxy_score"}
    assert len(plots.plot_optimization_history(study, **options).data[0].x) == len(complete)
    assert plots.plot_slice(study, params=blocks, **options).data
    parallel = plots.plot_parallel_coordinate(study, params=blocks, **options)
    assert list(parallel.layout.xaxis.ticktext) == ["proxy_score", *blocks]
    lines = [trace for trace in parallel.data if trace.customdata is not None]
    assert len(lines) == len(complete)
    words = {value for line in lines for label, value in line.customdata if label in blocks}
    assert words & {"mlp", "lka", "hilo"}, "blocks by their names"
    better: dict[str, Any] = {"target": lambda trial: -trial.values[0], "target_name": "proxy_score"}
    with pytest.warns(UserWarning, match="achieve low `target` values"):  # whatever target is given
        importances = plots.plot_param_importances(study, params=blocks, **better)
    assert sorted(importances.data[0].y) == blocks
    assert sum(importances.data[0].x) == pytest.approx(1)
    with pytest.warns(UserWarning, match=IMPORTANCES):
        of_all = plots.plot_param_importances(study, **better)
    assert {"stages.1.block", "stages.4.depth"} <= set(of_all.data[0].y), "papers without parameters do not hide them"


def test_the_example_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly", reason="needs plotly")
    (code,) = code_blocks("results", "python")
    monkeypatch.chdir(folder)
    with pytest.warns(UserWarning, match=IMPORTANCES):
        exec(compile(code.replace("results/RUN", "made"), "results.md", "exec"), {})
    assert "plotly" in (folder / "front.html").read_text()


def _as_earlier_versions_stored_it(path: Path) -> None:
    """The engine's own attributes as user attributes, and nothing for people."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for kind in ("study", "trial"):
            of, before = f"{kind}_id", "archsearch:" if kind == "trial" else ""
            if kind == "trial":
                names = ", ".join(f"'{name}'" for name in {*TOOLS, "proxy_score", "throughput_img_s"})
                database.execute(f"DELETE FROM trial_user_attributes WHERE key IN ({names})")
            else:
                database.execute("DELETE FROM study_user_attributes")
            own = f"FROM {kind}_system_attributes WHERE key LIKE 'archsearch:%'"
            for number, key, text in database.execute(f"SELECT {of}, key, value_json {own}").fetchall():
                put = f"INSERT INTO {kind}_user_attributes ({of}, key, value_json) VALUES (?, ?, ?)"
                database.execute(put, (number, key.removeprefix(before), text))
            database.execute(f"DELETE {own}")
        database.execute("DELETE FROM study_system_attributes")
        database.commit()


def _content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All attributes, without their numbers."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [f"{kind}_{whose}_attributes" for kind in ("study", "trial") for whose in ("user", "system")]
        return {
            table: sorted(database.execute(f"SELECT {table[:5]}_id, key, value_json FROM {table}").fetchall())
            for table in tables
        }


def test_a_study_of_an_earlier_version_is_brought_to_this_form_and_goes_on(tmp_path: Path) -> None:
    config, database = made(tmp_path, 6), tmp_path / "made" / "study.db"
    rows, content = results.read_rows(tmp_path / "made"), _content(database)
    _as_earlier_versions_stored_it(database)
    assert "candidate" in opened(tmp_path).trials[0].user_attrs
    with open_run(tmp_path / "made", config) as store:
        assert [{**row, "front": None} for row in store.rows()] == [{**row, "front": None} for row in rows]
    assert _content(database) == content
    run(tmp_path / "made", config, 8, worker=InProcessWorker(evaluate))
    again = results.read_rows(tmp_path / "made")
    assert len(again) == len(rows) + 2
    names = [name for name in rows[0] if name != "front"]
    assert [[row[name] for name in names] for row in again[: len(rows)]] == [
        [row[name] for name in names] for row in rows
    ]


def test_another_run_leaves_the_study_of_an_earlier_version_as_it_is(tmp_path: Path) -> None:
    made(tmp_path, 1)
    database = tmp_path / "made" / "study.db"
    _as_earlier_versions_stored_it(database)
    before = _content(database)
    other = make_rung_config(tmp_path / "log", sampler="tpe", name="made")
    with pytest.raises(UserError, match="holds another run"):
        run(tmp_path / "made", other, 1, worker=InProcessWorker(evaluate))
    assert _content(database) == before


def test_what_a_person_wrote_is_kept(tmp_path: Path) -> None:
    config = made(tmp_path, 1)
    study = opened(tmp_path)
    study._storage.set_study_system_attr(study._study_id, "dashboard:note_str:0", "mine")
    study._storage.set_study_system_attr(study._study_id, "study:metric_names", ["a", "b", "c"])
    study.set_user_attr("space", "my space")
    run(tmp_path / "made", config, 2, worker=InProcessWorker(evaluate))
    study = opened(tmp_path)
    assert study._storage.get_study_system_attrs(study._study_id)["dashboard:note_str:0"] == "mine"
    assert (study.metric_names, study.user_attrs["space"]) == (["a", "b", "c"], "my space")


def test_a_restored_study_shows_the_same(tmp_path: Path) -> None:
    config = made(tmp_path, 4)
    before = [(trial.number, trial.state, trial.user_attrs) for trial in opened(tmp_path).trials]
    (tmp_path / "made" / "study.db").unlink()
    restore_run(tmp_path / "made")
    with open_run(tmp_path / "made", config):
        pass
    study = opened(tmp_path)
    assert study.metric_names == list(config.objectives)
    assert [(trial.number, trial.state, trial.user_attrs) for trial in study.trials] == before


@pytest.mark.slow
def test_a_study_on_postgresql_shows_the_same(tmp_path: Path) -> None:
    with postgres() as url:
        made(tmp_path, 6, url)
        storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            study = optuna.load_study(study_name=None, storage=storage)
            assert study.metric_names == ["proxy_score", "throughput_img_s", "params"]
            shown = {key for trial in study.trials for key in trial.user_attrs} - FOR_SAMPLERS
            assert {"paper", "architecture", "arch_id"} <= shown <= TOOLS | {"proxy_score", "throughput_img_s"}
        finally:
            storage.remove_session()
            storage.engine.dispose()
