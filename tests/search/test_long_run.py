"""A long run: what is kept trial by trial equals what is worked out anew, and what is read in blocks equals what Optuna reads."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from support.runs import make_config, make_rung_config, run
from support.stub_evaluators import fraction

from archsearch import results
from archsearch.results import ranked
from archsearch.samplers import DESCRIBED
from archsearch.search import RunStore, open_run
from archsearch.search.engine import files
from archsearch.search.study.shown import SHOWN
from archsearch.search.study.storage import RunStorage

OURS = "archsearch:"


def test_trials_are_those_that_optuna_reads(tmp_path: Path) -> None:
    """All but the attributes that only rows are made from; with failed, stopped, waiting and running trials, and special numbers."""
    config = make_rung_config(tmp_path / "log", sampler="tpe")
    run(tmp_path / "run", config, trials=6)
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path}/run/study.db")
    study.enqueue_trial({"stages.1.depth": 1})
    study.add_trial(optuna.trial.create_trial(values=[float("inf"), -float("inf"), 1.0], system_attrs={"mine": [1]}))
    wanted = study.get_trials()
    with open_run(tmp_path / "run", config) as store:
        found = store._study.get_trials(deepcopy=False)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        keys = {*ours.user_attrs, *ours.system_attrs} - {DESCRIBED}
        assert not any(key.startswith(OURS) for key in keys)
        if theirs.state.is_finished():
            theirs.user_attrs = {key: value for key, value in theirs.user_attrs.items() if key not in SHOWN}
            own = {key for key in theirs._system_attrs if key.startswith(OURS)} - {DESCRIBED}
            assert bool(own) == ("mine" not in theirs._system_attrs)
            theirs._system_attrs = {key: value for key, value in theirs._system_attrs.items() if key not in own}
            assert ours == theirs


def test_a_trial_is_stored_as_optuna_stores_it(tmp_path: Path) -> None:
    """With every kind of value; each by its own storage, beside trials of another study, and read by Optuna."""
    distribution = optuna.distributions.CategoricalDistribution(("a", "b"))
    template = optuna.trial.create_trial(
        values=[0.5, float("inf"), -float("inf")],
        params={"x": "b", "y": "a"},
        distributions={"x": distribution, "y": distribution},
        user_attrs={"arch": {"stages": [1, 2]}, "note": "ü"},
        system_attrs={"nsga2:generation": 3},
    )
    found = []
    for name, kind in (("ours", RunStorage), ("theirs", optuna.storages.RDBStorage)):
        url = f"sqlite:///{tmp_path}/{name}.db"
        for study_name in ("first", "second"):
            study = optuna.create_study(storage=kind(url), study_name=study_name, directions=["minimize"] * 3)
            for _ in range(2):
                study._storage.create_new_trial(study._study_id, template)
        found.append(optuna.load_study(study_name="second", storage=url).get_trials())
    ours, theirs = found
    assert [trial.number for trial in ours] == [0, 1]
    assert ours == theirs


def advance(store: RunStore) -> None:
    """Measure one candidate."""
    proposal = store.propose()
    assert proposal is not None
    number, document = store.start(proposal)["trial"], proposal.arch.to_dict()
    ratio = fraction(document, "throughput")
    store.record_phase(number, "throughput", {"throughput_img_s": 100 * ratio, "throughput_ratio": ratio})
    store.record_phase(number, "proxy", {"proxy_score": fraction(document, "proxy")})
    store.finish(number)


def test_the_front_is_right_after_every_trial(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        for _ in range(12):
            advance(store)
            rows = ranked(store.rows(), config.objectives, store.ranked_id)
            wanted = [row["trial"] for row in rows if row["front"] == 0]
            assert [row["trial"] for row in store.front()] == wanted
            assert [row["trial"] for row in store.rows() if row["front"] == 0] == wanted
        store.rank()
        assert store.rows() == rows


def test_files_are_written_when_due_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing takes long it is left for later; what was left is in the files at the end."""
    monkeypatch.setattr(files, "_QUICK_S", -1.0)
    lengths: list[int] = []
    write = results.write_trials

    def note(rows: list[Any], folder: Path) -> None:
        lengths.append(len(rows))
        write(rows, folder)

    monkeypatch.setattr(files, "write_trials", note)
    monkeypatch.setattr(files, "_WRITE_SHARE", 10_000)
    run(tmp_path / "run", make_config(tmp_path / "log"), trials=4)
    assert lengths == [0, 6], "at the start and at the end"
    assert (results.read_trials(tmp_path / "run")["state"] == "complete").all()
    lengths.clear()
    monkeypatch.setattr(files, "_STALE_S", 0.0)
    run(tmp_path / "run", make_config(tmp_path / "log"), trials=6)
    assert len(lengths) >= 4, "no file is older than the limit"
