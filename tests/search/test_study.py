"""The study of a run: what is stored, what is refused, and samplers that stay in the band."""

import contextlib
import json
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from support.runs import BUDGET, fixed_archs, make_config, make_rung_config, one_stage
from support.stub_evaluators import fraction, measure

from archsearch.blocks import Scalar
from archsearch.errors import UserError
from archsearch.samplers import SAMPLERS, InBandSampler, always_asked, make_sampler, params_in_space
from archsearch.samplers.optuna_samplers import BASES
from archsearch.search import RunConfig, RunStore, open_run
from archsearch.search.study.store import ESTIMATES
from archsearch.space import Arch, Band, Bounds, Space, draw, load_space, paper

BAND = Band.around(BUDGET, 0.05)
# Six architectures: mlp has one choice of its own.
SMALL = one_stage(
    """width = 64
depth = [1, 2]
block = ["mlp", "lka"]
mlp_ratio = 4
lka = { kernel = 21 }
"""
)


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("hybrid")


def measured(arch: Arch) -> dict[str, dict[str, Any]]:
    document = arch.to_dict()
    throughput = {"throughput_img_s": 100 + fraction(document, "throughput"), "seconds": 0.5}
    return {"throughput": throughput, "proxy": {"proxy_score": fraction(document, "proxy"), "seconds": 1.0}}


def advance(store: RunStore, count: int) -> list[str]:
    """Measure `count` candidates; returns their arch_ids."""
    ids = []
    for _ in range(count):
        proposal = store.propose()
        assert proposal is not None
        row = store.start(proposal)
        for phase, values in measured(proposal.arch).items():
            store.record_phase(row["trial"], phase, values)
        ids.append(store.finish(row["trial"])["arch_id"])
    return ids


# Samplers


@pytest.mark.parametrize(("name", "count"), [("tpe", 16), ("nsga2", 24), ("random", 8)])
def test_no_sampler_leaves_the_band_or_repeats(name: str, count: int, tmp_path: Path) -> None:
    with open_run(tmp_path / "run", make_config(tmp_path / "log", sampler=name)) as store:
        for paper, arch in fixed_archs().items():
            row = store.start_fixed(paper, arch)
            for phase, values in measured(arch).items():
                store.record_phase(row["trial"], phase, values)
            store.finish(row["trial"])
        ids = advance(store, count)
        rows = [row for row in store.rows() if not row["is_fixed"]]
    assert len(set(ids)) == count
    assert all(BAND.low <= row["macs"] <= BAND.high and row["in_band"] for row in rows)
    costs = [Arch.from_dict(json.loads(row["arch"])).cost() for row in rows]
    assert [(cost.macs, cost.activations) for cost in costs] == [(row["macs"], row["activations"]) for row in rows]


def optimized(name: str, space: Space, count: int, score: Callable[[Arch], float]) -> tuple[optuna.Study, list[Arch]]:
    """A study that Optuna runs by itself, and what it tried."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = InBandSampler(BASES[name], space, Bounds(macs=BAND), seed=1)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    tried = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
            chosen = trial.suggest_categorical(name, choices)
            assert chosen is not None
            return chosen

        tried.append(space.sample(pick))
        return score(tried[-1]), 1.0

    study.optimize(objective, n_trials=count)
    return study, tried


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_no_sampler_leaves_the_band_under_optuna_itself(name: str, space: Space) -> None:
    study, tried = optimized(name, space, 50, lambda arch: fraction(arch.to_dict(), "proxy"))
    assert all(BAND.contains(arch.cost().macs) for arch in tried)
    if name == "nsga2":
        generations = [trial.system_attrs["_Nsga2:generation"] for trial in study.trials]
        assert generations == [0] * 20 + [1] * 20 + [2] * 10


def test_samplers_learn(space: Space) -> None:
    """A score that only depends on how many stages are lka: both learners find it, random draws do not."""
    means = {}
    for name in ("tpe", "nsga2", "random"):
        _, tried = optimized(name, space, 70, lambda arch: sum(stage.block == "lka" for stage in arch.stages))
        means[name] = sum(stage.block == "lka" for arch in tried[-30:] for stage in arch.stages) / 120
    assert min(means["tpe"], means["nsga2"]) > 1.5 * means["random"]


@pytest.mark.slow
def test_the_known_cost_sampler_stays_in_the_band_and_learns(space: Space, tmp_path: Path) -> None:
    """A score that only depends on how many stages are lka, and one that is known; papers' models are learnt from too."""
    config = make_config(
        tmp_path / "log", sampler="known-cost", objectives=("proxy_score", "params"), papers=("van_b2",)
    )
    tried = []
    with open_run(tmp_path / "run", config) as store:
        for number in range(31):
            proposal = store.propose() if number else None
            row = store.start(proposal) if proposal else store.start_fixed("van_b2", paper("van_b2"))
            arch = Arch.from_dict(json.loads(row["arch"]))
            score = sum(stage.block == "lka" for stage in arch.stages) / 4
            store.record_phase(row["trial"], "proxy", {"proxy_score": score, "seconds": 1.0})
            store.finish(row["trial"])
            tried.append(row)
    assert all(row["in_band"] for row in tried[1:])
    assert len({row["arch_id"] for row in tried}) == 31
    best = [sum(word.startswith("lka") for word in row["architecture"].split(" - ")) for row in tried]
    assert sum(best[-12:]) > 1.5 * 12 * 4 / 6  # a uniform draw has a sixth of its stages lka
    smallest = min(row["params"] for row, stages in zip(tried, best, strict=True) if stages == max(best[1:]))
    assert smallest < tried[0]["params"]


def test_the_known_cost_sampler_learns_from_trials_under_way_and_nothing_is_stored(tmp_path: Path) -> None:
    """As from the same study whose running trial has the attributes; the objectives and the learning curve of a run with rungs."""
    objectives = ("proxy_score", "throughput_img_s", "params")
    config = make_rung_config(tmp_path / "log", sampler="known-cost", objectives=objectives, papers=())
    with open_run(tmp_path / "run", config) as store:
        for place in range(6):
            proposal = store.propose()
            assert proposal is not None
            row = store.start(proposal)
            phases = {**measured(proposal.arch), "proxy@25": {"proxy_score": 0.1 * place, "seconds": 1.0}}
            for phase in ("throughput", "proxy@25", "proxy")[: 3 if place < 5 else 2]:
                store.record_phase(row["trial"], phase, phases[phase])
            if place < 5:
                store.finish(row["trial"])
        before = [_content(trial) for trial in store._study.get_trials()]
        found = [one.params for one in store.propose_many(3)]
        assert [_content(trial) for trial in store._study.get_trials()] == before
        last, ids = store.rows()[-1], store.arch_ids()
        known = {"measured": {"1": last["throughput_img_s"]}, "learning_curve": {"25": 0.5}}
        assert last["state"] == "running"
        sampler = make_sampler(
            "known-cost",
            config.space,
            config.bounds,
            config.seed,
            lambda: ids,
            objectives=objectives,
            scores=ESTIMATES,
        )
        assert found == [one.params for one in sampler.propose_many(_copied(store._study, known), 6, 3)]
        assert found != [one.params for one in sampler.propose_many(_copied(store._study, {}), 6, 3)]


def _content(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.state, trial.values, trial.params, trial.user_attrs, trial.system_attrs


def _copied(study: optuna.Study, attrs: dict[str, Any]) -> optuna.Study:
    """A study in memory with the same trials; the last one has these attributes too."""
    copied = optuna.create_study(directions=study.directions)
    copied.add_trials(study.get_trials())
    for key, value in attrs.items():
        copied._storage.set_trial_user_attr(copied.trials[-1]._trial_id, key, value)
    return copied


def test_a_papers_model_is_described_in_the_names_of_a_space(space: Space) -> None:
    parameters = params_in_space(paper("davit_tiny"), space)
    assert (parameters["stages.1.block"], parameters["stages.1.width"]) == ("window/channel", 96)
    assert parameters["stages.3.window.window"] == 7
    assert set(parameters) <= set(space.parameters())
    small = Space(tomllib.loads(SMALL), "small.toml")
    assert params_in_space(paper("davit_tiny"), small) == {}, "another number of stages has no names for it"
    sampled = space.sample(lambda name, choices: choices[-1])
    params = {name: choices[-1] for name, choices in space.parameters().items()}
    assert params_in_space(sampled, space).items() <= params.items()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_continues_after_stopped_trials(name: str, tmp_path: Path) -> None:
    """In studies of several objectives Optuna's samplers have raised on trials without values, and on intermediate ones."""
    count, met = (
        15 if name == "known-cost" else 33,
        list[str](),
    )  # GPSampler asks Optuna's random one until ten are complete
    with open_run(tmp_path / "run", make_rung_config(tmp_path / "log", sampler=name)) as store:
        for number in range(count):
            asked = store.propose()
            assert asked is not None
            met.append(asked.arch.arch_id)
            trial = store.start(asked)["trial"]
            for phase in ("count", "throughput", "proxy@25", "proxy@100", "proxy")[: 3 + number % 3]:
                store.record_phase(trial, phase, measure(phase, asked.arch.to_dict()))
            store.finish(trial, "it cannot matter" if number % 3 < 2 else None, is_stopped=number % 3 < 2)
        states = [row["state"] for row in store.rows()]
    assert len(set(met)) == count
    assert states == ["stopped", "stopped", "complete"] * (count // 3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("tpe", 13, marks=pytest.mark.slow),
        pytest.param("nsga2", 23, marks=pytest.mark.slow),
        ("random", 4),
        pytest.param("known-cost", 10, marks=pytest.mark.slow),
    ],
)
def test_a_seed_gives_the_same_run_also_in_two_parts(name: str, count: int, tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", sampler=name, seed=7)
    with open_run(tmp_path / "whole", config) as store:
        whole = advance(store, count)
    parts = []
    for part in (count - 2, 2):
        with open_run(tmp_path / "parts", config) as store:
            parts += advance(store, part)
    with open_run(tmp_path / "other", make_config(tmp_path / "log", sampler=name, seed=8)) as store:
        other = advance(store, 2)
    assert parts == whole
    assert other != whole[:2]


def test_names_that_are_always_asked(space: Space) -> None:
    always, rng = set(always_asked(space)), random.Random(0)
    common = set(space.parameters())
    for _ in range(300):
        common &= set(draw(space, Bounds(macs=Band(0, 10**12)), rng)[0])
    assert always == common
    assert "stages.1.block" in always
    assert "stages.1.hilo.window" not in always


def test_an_exhausted_band_has_no_further_proposal(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", space_text=SMALL, budget_macs=10**9, tolerance=0.99, papers=())
    with open_run(tmp_path / "run", config) as store:
        assert len(set(advance(store, 6))) == 6
        assert store.propose() is None


def test_the_figures_of_an_architecture_measured_before_are_reused(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", make_config(tmp_path / "log")) as store:
        asked = store.propose()
        assert asked is not None
        for _ in range(2):
            trial = store.start(asked)["trial"]
            for phase, values in measured(asked.arch).items():
                store.record_phase(trial, phase, values)
            finished = store.finish(trial)
        first, second = store.rows()
    assert (first["reused_from"], second["reused_from"], second) == (None, 0, finished)
    assert (second["proxy_score"], second["seconds_total"]) == (first["proxy_score"], 0.0)


def test_unknown_sampler_names_the_known_ones(space: Space) -> None:
    with pytest.raises(
        UserError,
        match=r"--sampler: unknown sampler 'tpee', did you mean 'tpe'\?; allowed: known-cost, tpe, nsga2, gp, random",
    ):
        make_sampler("tpee", space, Bounds(macs=BAND), 0, set)


# The store


def test_a_trial_is_stored_completely_when_it_starts(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        proposal = store.propose()
        assert proposal is not None
        row = store.start(proposal)
        assert row["state"] == "running"
        store.record_phase(row["trial"], "count", {"macs_fvcore": 5})
    with open_run(tmp_path / "run", config) as store:
        (left,) = store.unfinished()
        assert left == {**row, "macs_fvcore": 5}
        assert Arch.from_dict(json.loads(left["arch"])) == proposal.arch
        assert store.phases(row["trial"]) == {"count": {"macs_fvcore": 5}}
        assert store.finish(row["trial"])["reason"] == "the evaluation gave no proxy_score"
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path}/run/study.db")
    assert study.trials[0].params == proposal.params
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_rows_are_the_same_after_reopening(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        advance(store, 3)
        rows = store.rows()
    with open_run(tmp_path / "run", config) as store:
        assert store.rows() == rows
    assert all(row["seconds_total"] == row["seconds_throughput"] + row["seconds_proxy"] == 1.5 for row in rows)


def test_a_renamed_folder_is_continued(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", make_config(tmp_path / "log")) as store:
        advance(store, 1)
    (tmp_path / "run").rename(tmp_path / "other")
    with open_run(tmp_path / "other", make_config(tmp_path / "log", name="other")) as store:
        assert len(store.rows()) == 1


def test_a_trial_asked_through_optuna_is_closed(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        advance(store, 1)
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path}/run/study.db")
    study.ask()
    with open_run(tmp_path / "run", config) as store:
        advance(store, 1)
        assert [row["trial"] for row in store.rows()] == [0, 2]
        assert store.unfinished() == []


def test_a_url_keeps_the_trials_elsewhere(tmp_path: Path) -> None:
    url, config = f"sqlite:///{tmp_path}/shared.db", make_config(tmp_path / "log")
    for _ in range(2):
        with open_run(tmp_path / "run", config, url) as store:
            advance(store, 1)
    assert len(store.rows()) == 2
    assert not (tmp_path / "run" / "study.db").exists()
    with (
        pytest.raises(UserError, match="another run"),
        open_run(tmp_path / "run", make_config(tmp_path, seed=5), url),
    ):
        pass


@pytest.mark.parametrize("url", ["nonsense", "postgresql://me:secret@127.0.0.1:1/x", "sqlite:////nowhere/at/all.db"])
def test_an_unusable_url_is_one_sentence_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as caught, open_run(tmp_path / "run", make_config(tmp_path / "log"), url):
        pass
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# What is refused


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", make_config(tmp_path / "log")):
        pass
    for changes, words in DIFFERENCES:
        other = make_config(tmp_path / "log", **changes)
        with refused(tmp_path / "run", other, rf"run: holds another run: .*{words}.*; use another --output"):
            pass
    with open_run(tmp_path / "run", make_config(tmp_path / "log")) as store:
        assert store.rows() == [], "the run in the folder is not changed"


DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"budget_macs": 800_000_000}, "budget_macs was 4500000000, now 800000000"),
    ({"tolerance": 0.1}, "tolerance was 0.05, now 0.1"),
    ({"seed": 3}, "seed was 0, now 3"),
    ({"sampler": "tpe"}, "sampler was random, now tpe"),
    ({"objectives": ("proxy_score", "macs")}, r"objectives was \['proxy_score', .*\], now \['proxy_score', 'macs'\]"),
    ({"papers": ()}, r"papers was \['van_b2', 'davit_tiny'\], now \[\]"),
    ({"settings": {"device": "cuda"}}, "settings.device was cpu, now cuda"),
    ({"settings": {"dtype": "bfloat16"}}, "settings.dtype was float32, now bfloat16"),
    ({"settings": {"batch_size": 8}}, "settings.batch_size was 1, now 8"),
    ({"settings": {"proxy": {"recipe": {"steps": 20}}}}, "settings.proxy.recipe.steps was 400, now 20"),
    ({"space_text": SMALL}, r"space was hybrid \(\w+\), now hybrid \(\w+\)"),
]


def test_comments_and_names_are_no_difference(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    same = make_config(tmp_path / "log", name="x", space_text=f"# a comment\n{config.space_text}")
    assert config.differences(same) == []
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@contextlib.contextmanager
def refused(folder: Path, config: RunConfig, words: str) -> Iterator[None]:
    with pytest.raises(UserError, match=words) as caught, open_run(folder, config) as store:
        advance(store, 1)
    assert "\n" not in str(caught.value)
    yield


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def _scribble(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    for start in range(4096, len(whole), 4096):
        whole[start : start + 64] = b"\xff" * 64
    path.write_bytes(bytes(whole))


def _drop(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE trial_values")
        connection.commit()


def _no_json(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '{'")
        connection.commit()


def _no_study(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM studies")
        connection.commit()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello " * 1000),
    "truncated": _truncate,
    "scribbled": _scribble,
    "lacks a table": _drop,
    "broken values": _no_json,
    "no study": _no_study,
}


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        advance(store, 2)
    for name, damage in DAMAGES.items():
        shutil.copytree(tmp_path / "run", tmp_path / name)
        damage(tmp_path / name / "study.db")
        damaged = (tmp_path / name / "study.db").read_bytes()
        with refused(tmp_path / name, config, r"study\.db: damaged \(.*\); put a copy of it back, or move it away"):
            pass
        assert (tmp_path / name / "study.db").read_bytes() == damaged, "what is left of it is not touched"


def test_a_lost_database_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config):
        pass
    (tmp_path / "run" / "study.db").unlink()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with refused(tmp_path / "run", config, r"study\.db: gone, though .* holds a run"):
        pass
    assert not (tmp_path / "run" / "study.db").exists()


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with refused(tmp_path / "run", make_config(tmp_path / "log"), "--output .*run: cannot be written"):
        pass
    assert (tmp_path / "run").read_text() == ""


def test_a_second_driver_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    holder = f"import fcntl, os; f = open({str(tmp_path / 'run' / 'run.lock')!r}); fcntl.flock(f, fcntl.LOCK_EX)"
    words = r"another archsearch \(process \d+\) is at work"
    with open_run(tmp_path / "run", config), refused(tmp_path / "run", config, words):
        pass
    program = f"{holder}; print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with refused(tmp_path / "run", config, "is at work in this run"):
            pass
        other.kill()
    with open_run(tmp_path / "run", config) as store:
        advance(store, 1)


@contextlib.contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file of this process may grow past `free` bytes, as on a disk with no room left."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_loses_nothing_that_was_measured(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with open_run(tmp_path / "run", config) as store:
        advance(store, 3)
        asked = store.propose()
        assert asked is not None
        row = store.start(asked)
        with (
            full_disk(4096),
            pytest.raises(
                UserError, match=r"study\.db: cannot be read or written \(.*everything measured before is kept"
            ),
        ):
            store.record_phase(row["trial"], "proxy", {"proxy_score": 0.5})
        rows = store.rows()
    with open_run(tmp_path / "run", config) as store:
        assert store.rows() == rows
        assert store.phases(row["trial"]) == {}
        advance(store, 1)


def test_a_full_disk_at_the_start(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    with full_disk(8192), refused(tmp_path / "run", config, "cannot be read or written"):
        pass
    with open_run(tmp_path / "run", config) as store:
        assert store.rows() == [], "once there is room the same command starts"
        advance(store, 1)
