"""KnownCostSampler in Optuna studies: it proposes allowed candidates only, never one twice, equal ones for equal seeds, and it finds fronts."""

import itertools
import math
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState, create_trial

from archsearch.errors import UserError
from archsearch.samplers import STANDARD_ERRORS, KnownCostSampler, TablePool
from archsearch.samplers.candidates import Costs
from archsearch.samplers.observations import read_observations

Params = dict[str, Any]
DEPTHS, WIDTHS = [1, 2, 3, 4, 6, 8], [64, 96, 128, 192]
BLOCKS = {"hilo": ("window", [1, 2, 7]), "lka": ("kernel", [9, 21]), "mlp": None}


def every() -> list[Params]:
    """All 144 candidates of a conditional space."""
    found = []
    for depth, width, (block, inner) in itertools.product(DEPTHS, WIDTHS, BLOCKS.items()):
        row = {"depth": depth, "width": width, "block": block}
        found += [row] if inner is None else [{**row, f"{block}.{inner[0]}": value} for value in inner[1]]
    return found


def cost(params: Params) -> float:
    """Minimised; fails for anything but whole parameters."""
    if (inner := BLOCKS[params["block"]]) is not None:
        assert params[f"{params['block']}.{inner[0]}"] in inner[1]
    extra = {"hilo": 1.3, "lka": 1.1, "mlp": 1.0}[params["block"]]
    return float(params["depth"] * params["width"] ** 1.5 * extra)


def score(params: Params) -> float:
    """Maximised: saturates with size; some blocks and windows are better."""
    bonus = {"hilo": 4.0, "lka": 3.0, "mlp": 0.0}[params["block"]]
    inside = {1: -2.0, 2: 0.0, 7: 1.5}.get(params.get("hilo.window", 2), 0.0) + params.get("lka.kernel", 0) / 20
    return float(20 * math.log(params["depth"] * params["width"] / 32) / 4 + bonus + inside)


def suggest(trial: Trial) -> Params:
    trial.suggest_categorical("depth", DEPTHS)
    trial.suggest_categorical("width", WIDTHS)
    block = trial.suggest_categorical("block", list(BLOCKS))
    if (inner := BLOCKS[block]) is not None:
        trial.suggest_categorical(f"{block}.{inner[0]}", inner[1])
    return trial.params


def sampler_of(seed: int = 0, candidates: list[Params] | None = None, **options: Any) -> KnownCostSampler:
    return KnownCostSampler({1: cost}, candidates, seed, **options)


def study_of(sampler: optuna.samplers.BaseSampler, storage: str | None = None) -> optuna.Study:
    return optuna.create_study(
        directions=["maximize", "minimize"], sampler=sampler, storage=storage, study_name="s", load_if_exists=True
    )


def run(study: optuna.Study, number: int) -> None:
    for _ in range(number):
        trial = study.ask()
        params = suggest(trial)
        study.tell(trial, [score(params), cost(params)])


def key(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def keys(study: optuna.Study) -> list[tuple[tuple[str, Any], ...]]:
    return [key(trial.params) for trial in study.trials]


def front_share(study: optuna.Study) -> float:
    """Hypervolume of the study over that of all candidates."""
    full = np.array([[-score(params), cost(params)] for params in every()])
    found = np.array([[-score(trial.params), cost(trial.params)] for trial in study.trials if trial.params])
    low, high = full.min(axis=0), full.max(axis=0)
    volumes = [moocore.hypervolume((points - low) / (high - low), ref=[1.1, 1.1]) for points in (found, full)]
    return float(volumes[0] / volumes[1])


def add(study: optuna.Study, params: Params, state: TrialState = TrialState.COMPLETE, **attributes: Any) -> None:
    distributions: dict[str, BaseDistribution] = {name: _distribution(name) for name in params}
    values = [score(params), cost(params)] if state == TrialState.COMPLETE else None
    study.add_trial(
        create_trial(params=params, distributions=distributions, state=state, values=values, user_attrs=attributes)
    )


def _distribution(name: str) -> CategoricalDistribution:
    choices: dict[str, list[Any]] = {"depth": DEPTHS, "width": WIDTHS, "block": list(BLOCKS)}
    inner = {f"{block}.{found[0]}": found[1] for block, found in BLOCKS.items() if found}
    return CategoricalDistribution((choices | inner)[name])


def test_table_is_proposed_once_whole_and_nothing_else() -> None:
    table = every()[::4]
    study = study_of(sampler_of(candidates=table))
    running = [study.ask() for _ in range(8)]  # eight workers before the first answer
    batch = [suggest(trial) for trial in running]
    assert len({key(params) for params in batch}) == 8
    for index, trial in enumerate(running):
        if index % 3 == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif index % 3 == 1:
            study.tell(trial, [score(trial.params), cost(trial.params)])
    run(study, len(table) - 8)
    assert Counter(keys(study)) == Counter(map(key, table))
    with pytest.raises(UserError, match=f"all {len(table)} candidates have been proposed"):
        suggest(study.ask())


@pytest.mark.parametrize("jobs", [1, 2])
def test_optimize_ends_with_the_table(jobs: int) -> None:
    table = every()[::8]
    study = study_of(sampler_of(candidates=table))
    study.optimize(lambda trial: (score(suggest(trial)), cost(trial.params)), n_trials=len(table) + 9, n_jobs=jobs)
    complete = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    assert Counter(map(key, complete)) == Counter(map(key, table))


def test_same_study_and_seed_give_the_same_proposals() -> None:
    whole = study_of(sampler_of(candidates=every()))
    run(whole, 18)  # beyond 14 trials hyperparameters are not refitted for each
    table = [dict(reversed(params.items())) for params in every()]  # names in another order
    sampler, short = sampler_of(candidates=table), study_of(RandomSampler())
    short.add_trials(whole.trials[:17])
    foretold = sampler.propose(short, 17)
    assert foretold is not None
    assert key(foretold) == keys(whole)[17]
    short.sampler = sampler
    run(short, 1)
    assert keys(short) == keys(whole)
    other = study_of(sampler_of(seed=1, candidates=every()))
    run(other, 2)
    assert keys(other) != keys(whole)[:2]


@pytest.mark.slow
def test_reloaded_and_pickled_studies_go_on_the_same(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    whole, stored = study_of(sampler_of(candidates=every())), study_of(sampler_of(candidates=every()), storage)
    run(whole, 10)
    run(stored, 7)
    reloaded = optuna.load_study(study_name="s", storage=storage, sampler=sampler_of(candidates=every()))
    run(reloaded, 3)
    assert keys(reloaded) == keys(whole)
    pickled = pickle.loads(pickle.dumps(whole))
    for study in (whole, pickled):
        run(study, 2)
    assert keys(pickled) == keys(whole)


def test_warms_up_on_what_the_study_holds() -> None:
    study = study_of(sampler_of(candidates=every()))
    rows = random.Random(0).sample(every(), 40)
    for params in rows[:30]:
        add(study, params)
    study.add_trial(create_trial(values=[25.0, 1e4]))  # a paper's model: no parameters
    study.enqueue_trial(rows[30])
    study.enqueue_trial({"depth": 8, "block": "hilo"})
    assert key(suggest(study.ask())) == key(rows[30])
    partly = suggest(study.ask())
    assert (partly["depth"], partly["block"]) == (8, "hilo")
    run(study, 4)
    assert len(set(keys(study))) == 37
    assert front_share(study) > 0.97


def test_finds_the_front_in_clearly_fewer_evaluations_than_chance() -> None:
    ours, chance = study_of(sampler_of(candidates=every())), study_of(RandomSampler(seed=0))
    run(ours, 16)
    run(chance, 48)
    assert front_share(ours) > max(front_share(chance), 0.97)


@pytest.mark.slow
def test_learns_a_conditional_space_from_plain_trials() -> None:
    study = study_of(sampler_of())
    run(study, 40)
    counts = Counter(keys(study))
    assert sum(number - 1 for number in counts.values()) <= 1  # by chance among the first, random ones
    rng = study_of(RandomSampler(seed=0))
    run(rng, 40)
    assert front_share(study) > front_share(rng) + 0.01
    assert front_share(study) > 0.98


def test_stopped_trials_inform_by_their_curves() -> None:
    """Stopped trials have the score of their first rung only, and nothing else points to the best unseen candidate."""

    def share_found(**attributes: bool) -> float:
        study = study_of(sampler_of(candidates=every()))
        rng = random.Random(3)
        for index, params in enumerate(rng.sample(every(), 60)):
            curve = {"10": score(params) * 0.5 + rng.gauss(0, 0.05), "20": score(params)}
            if index < 12:
                add(study, params, learning_curve=curve)
            elif attributes["with_curves"]:
                add(study, params, TrialState.PRUNED, learning_curve={"10": curve["10"]})
            else:
                add(study, params, TrialState.PRUNED)
        run(study, 6)
        return front_share(study)

    assert share_found(with_curves=True) > share_found(with_curves=False)


def test_what_was_measured_of_a_stopped_trial_counts_and_a_known_cost_is_not_taken_from_there() -> None:
    study, pool = study_of(RandomSampler(seed=0)), TablePool(every())
    params = every()[5]
    add(study, params, TrialState.PRUNED, measured={"0": 0.25, "1": 7.0, "9": 1.0, "x": 2.0})
    add(study, every()[6], TrialState.PRUNED, measured=[1.0])
    for known, expected in (({}, (-0.25, 7.0)), ({1: cost}, (-0.25, cost(params)))):
        first, second = read_observations(study, pool, Costs(known), None, number=2).rows
        assert first.values == expected  # minimised: the first objective is maximised
        assert math.isnan(second.values[0])


def test_a_good_score_of_a_large_standard_error_is_not_followed() -> None:
    """One small candidate without a mixer has the best score of all, which only a sampler that takes it at its word explores further."""

    def blocks_proposed(standard_error: float) -> list[str]:
        study, rows = study_of(sampler_of(seed=1)), random.Random(3).sample(every(), 24)
        lucky = next(row for row in rows if row["block"] == "mlp" and row["depth"] <= 3)
        for params in rows:
            found, error = (25.0, standard_error) if params is lucky else (score(params), 0.1)
            distributions: dict[str, BaseDistribution] = {name: _distribution(name) for name in params}
            attributes = {STANDARD_ERRORS: {"0": error, "9": 1.0, "x": 2.0}}
            values = [found, cost(params)]
            study.add_trial(
                create_trial(params=params, distributions=distributions, values=values, user_attrs=attributes)
            )
        run(study, 4)
        return [trial.params["block"] for trial in study.trials[-4:]]

    assert blocks_proposed(0.1) == ["mlp"] * 4
    assert "mlp" not in blocks_proposed(30.0)


@pytest.mark.slow
@pytest.mark.parametrize("known", [{}, {0: score}, {0: score, 1: cost}])
def test_any_number_of_objectives_may_be_known(known: dict[int, Any]) -> None:
    study = study_of(KnownCostSampler(known, every(), 0))
    run(study, 25)
    assert len(set(keys(study))) == 25
    assert front_share(study) > (0.99 if len(known) == 2 else 0.95)


@pytest.mark.slow
def test_learns_names_that_depend_on_a_number() -> None:
    """Optuna's usual example: an integer gives the number of layers."""
    asked: list[Params] = []

    def size(params: Params) -> float:
        asked.append(params)
        return float(sum(params[f"units{layer}"] for layer in range(params["layers"])))

    start: list[int] = []  # once the study has shown its names

    def objective(trial: Trial) -> tuple[float, float]:
        if trial.number == 12:
            start.append(len(asked))
        layers = trial.suggest_int("layers", 1, 3)
        units = [trial.suggest_int(f"units{layer}", 4, 128, log=True) for layer in range(layers)]
        return -sum(map(math.sqrt, units)), size(trial.params)

    study = optuna.create_study(directions=["minimize", "minimize"], sampler=KnownCostSampler({1: size}, seed=0))
    study.optimize(objective, 30)
    assert {len(params) == params["layers"] + 1 for params in asked[start[0] :]} == {True}
    assert len(set(keys(study))) > 27


@pytest.mark.slow
def test_single_objective_and_continuous_names() -> None:
    study = optuna.create_study(sampler=KnownCostSampler({}, seed=0))
    study.optimize(
        lambda trial: (trial.suggest_float("x", -4, 4) - 1) ** 2 + trial.suggest_int("n", 1, 64, log=True), 40
    )
    assert study.best_value < 1.1


def test_misuse_is_a_user_error() -> None:
    with pytest.raises(UserError, match="candidates is empty"):
        KnownCostSampler({}, [])
    with pytest.raises(UserError, match="names objective 5, but the study has 2"):
        study_of(KnownCostSampler({5: cost}, every())).ask({"depth": CategoricalDistribution(DEPTHS)})
    with pytest.raises(UserError, match=r"depth=.*asked for as"):
        study_of(KnownCostSampler({1: cost}, every())).ask({"depth": CategoricalDistribution([99, 100])})


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("sense", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
def test_candidates_whose_known_costs_are_not_finite_are_never_proposed(bad: float, sense: StudyDirection) -> None:
    def limited(params: Params) -> float:
        return bad if params["block"] == "hilo" else cost(params)

    sampler = KnownCostSampler({1: limited}, every(), 0)
    study = optuna.create_study(directions=[StudyDirection.MAXIMIZE, sense], sampler=sampler)
    study.enqueue_trial(next(params for params in every() if params["block"] == "hilo"))
    waiting = study.ask()  # still running, outside of what is allowed
    suggest(waiting)
    for _ in range(9):
        trial = study.ask()
        study.tell(trial, [score(suggest(trial)), cost(trial.params)])
    assert {trial.params["block"] for trial in study.trials[1:]} == {"lka", "mlp"}


def test_an_infinite_measurement_counts_as_the_worst() -> None:
    """Where trainings diverge the model learns to stay away."""
    study = study_of(sampler_of(candidates=every()))
    for _ in range(20):
        trial = study.ask()
        params = suggest(trial)
        study.tell(trial, [-math.inf if params["width"] > 100 else score(params), cost(params)])
    late = [trial.params["width"] for trial in study.trials[12:]]
    assert sum(width > 100 for width in late) <= 4


def test_seeds_differ_on_a_table() -> None:
    runs = set()
    for seed in range(12):
        study = study_of(sampler_of(seed=seed, candidates=every()))
        run(study, 8)
        runs.add(tuple(keys(study)))
    assert len(runs) >= 11


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ([cost], r"known is \[<function.*by index of the objective"),
        ({"cost": cost}, "known has the key 'cost'; give the index"),
        ({True: cost}, "known has the key True"),
        ({1: 3.0}, r"known\[1\] is 3.0, which is not a function"),
        ({1: lambda params: "12"}, r"known\[1\] returned '12' for .*it must return a number"),
        ({1: lambda params: None}, r"known\[1\] returned None"),
        ({1: lambda params: [1.0, 2.0]}, r"known\[1\] returned \[1.0, 2.0\]"),
        ({1: lambda params: params["heigth"]}, r"known\[1\] raised KeyError: 'heigth' for \{"),
        ({1: lambda: 1.0}, r"known\[1\] raised TypeError"),
        ({2: cost}, "known names objective 2, but the study has 2, counted from 0"),
        ({-1: cost}, "known names objective -1"),
    ],
)
def test_an_odd_known_is_one_sentence(known: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(study_of(KnownCostSampler(known, every()[:9], 0)), 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"candidates": every()[0]}, "candidates is .*give a list of parameter dictionaries"),
        ({"candidates": ["depth"]}, "a candidate is 'depth'; give a dictionary"),
        ({"candidates": [{"depth": [1, 2]}]}, r"has depth=\[1, 2\]; a value is a number"),
        ({"candidates": [{"depth": math.nan}]}, "has depth=nan"),
        ({"ordered": ["depth"]}, r"ordered is \['depth'\]; give True or False"),
        ({"candidates": every(), "ordered": {"dept": True}}, "ordered has 'dept', which no candidate has, did you"),
        (
            {"candidates": every(), "ordered": {"block": True}},
            "ordered has 'block', but its values are not all numbers",
        ),
        ({"candidates": every(), "curve_of": "0"}, "curve_of names objective '0'"),
    ],
)
def test_other_odd_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(study_of(KnownCostSampler({1: cost}, seed=0, **options)), 1)


@pytest.mark.slow
def test_a_sparse_table_of_any_size_is_searched() -> None:
    """Beyond the size that is scored whole, by draws, mutants and crossovers that are rows of the table."""
    rng = random.Random(0)
    table = [{f"x{name}": rng.randrange(12) for name in range(6)} for _ in range(20_500)]

    def mean_of_last(sampler: Any) -> float:
        study = optuna.create_study(sampler=sampler)
        for _ in range(24):
            trial = study.ask()
            params = {name: trial.suggest_categorical(name, list(range(12))) for name in table[0]}
            study.tell(trial, sum((value - 8) ** 2 for value in params.values()))
        return float(np.mean([trial.value for trial in study.trials[12:]]))

    assert mean_of_last(KnownCostSampler({}, table, 0)) < 0.6 * mean_of_last(RandomSampler(seed=0))
