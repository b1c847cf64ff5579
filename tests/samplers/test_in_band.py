"""A run's samplers as objects of their own."""

import copy
import pickle
import random
import tomllib

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from support.runs import one_stage

from archsearch import load_space
from archsearch.samplers import SAMPLERS, always_asked, make_sampler
from archsearch.samplers.optuna_samplers import BASES
from archsearch.space import Arch, Band, Bounds, Space, draw


def images_per_s(arch: Arch) -> float:
    return 1e12 / arch.cost().macs


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_pickled_sampler_goes_on_the_same(name: str) -> None:
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    sampler = make_sampler(
        name,
        space,
        Bounds(macs=band),
        0,
        objectives=("proxy_score", "throughput_img_s", "latency_ms", "params", "macs"),
        predict=images_per_s,
    )
    again = pickle.loads(pickle.dumps(sampler))
    study = optuna.create_study(directions=["maximize", "maximize", "minimize", "minimize", "minimize"])
    first, second = (each.propose(study, 0) for each in (sampler, again))
    assert first is not None
    assert second is not None
    assert first.params == second.params


@pytest.mark.parametrize("name", ["known-cost", "nsga2", "tpe", "random"])
def test_batches_have_no_architecture_twice_and_begin_with_what_propose_gives(name: str) -> None:
    """Batches of several sizes while others are under way."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    study = optuna.create_study(directions=["maximize", "minimize"])
    seen: set[str] = set()
    sampler = make_sampler(name, space, Bounds(macs=band), 0, lambda: seen, objectives=("proxy_score", "params"))
    under_way: dict[int, Arch] = {}
    for size in (1, 4, 16, 8):
        number = len(study.trials)
        first, batch = sampler.propose(study, number), sampler.propose_many(study, number, size)
        assert first is not None
        assert (first.params, len(batch)) == (batch[0].params, size)
        again = make_sampler(name, space, Bounds(macs=band), 0, lambda: seen, objectives=("proxy_score", "params"))
        assert [one.params for one in again.propose_many(study, number, size)] == [one.params for one in batch]
        ids = {one.arch.arch_id for one in batch}
        assert len(ids) == size
        assert not ids & seen
        for one in batch:
            distributions = sampler.distributions(one.params)
            attrs = dict(one.system_attrs)
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING, params=one.params, distributions=distributions, system_attrs=attrs
                )
            )
            under_way[len(seen)] = one.arch
            seen.add(one.arch.arch_id)
        for trial in list(under_way)[::2]:
            cost = under_way.pop(trial).cost()
            study.tell(trial, [float(cost.macs % 1000), float(cost.params)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["known-cost", "nsga2", "tpe"])
def test_architectures_of_random_batches_beside_trials_under_way_have_no_repeat(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Batches of 1 to 16 while 0 to 60 are under way; trials end in a random order."""
    total = 300 if request.config.getoption("whole") else 48
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    rng, ids, under_way = random.Random(0), list[str](), dict[int, Arch]()
    study = optuna.create_study(directions=["maximize", "minimize"])
    sampler = make_sampler(name, space, Bounds(macs=band), 0, lambda: set(ids), objectives=("proxy_score", "params"))
    while len(ids) < total:
        for one in sampler.propose_many(study, len(ids), rng.randint(1, 16)):
            distributions, attrs = sampler.distributions(one.params), dict(one.system_attrs)
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING, params=one.params, distributions=distributions, system_attrs=attrs
                )
            )
            under_way[len(ids)] = one.arch
            ids.append(one.arch.arch_id)
        for trial in rng.sample(sorted(under_way), max(0, len(under_way) - rng.randint(0, 60))):
            cost = under_way.pop(trial).cost()
            study.tell(trial, [float(cost.macs % 1000), float(cost.params)])
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["known-cost", "nsga2", "tpe", "random"])
def test_a_small_band_ends_with_a_shorter_batch_and_without_a_repeat(name: str) -> None:
    """Six architectures: mlp has one choice of its own."""
    stage = 'width = 64\ndepth = [1, 2]\nblock = ["mlp", "lka"]\nmlp_ratio = 4\nlka = { kernel = 21 }'
    space = Space(tomllib.loads(one_stage(stage)), "small.toml")
    ids: list[str] = []
    study = optuna.create_study(directions=["maximize", "minimize"])
    sampler = make_sampler(name, space, Bounds(), 0, lambda: set(ids), objectives=("proxy_score", "params"))
    for size, expected in ((4, 4), (16, 2), (3, 0)):
        found = sampler.propose_many(study, len(ids), size)
        assert len(found) == expected
        for one in found:
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING, params=one.params, distributions=sampler.distributions(one.params)
                )
            )
            ids.append(one.arch.arch_id)
    assert len(set(ids)) == 6


def make_study(space: Space, band: Band, complete: int, under_way: int) -> optuna.Study:
    """Uniform draws with two objectives, the last ones still running."""
    rng, study = random.Random(0), optuna.create_study(directions=["maximize", "minimize"])
    sampler = make_sampler("random", space, Bounds(macs=band), 0)
    for number in range(complete + under_way):
        params, arch = draw(space, Bounds(macs=band), rng)
        ending = {"values": [rng.gauss(arch.cost().macs / 1e9, 1), float(arch.cost().params)]}
        state = {"state": TrialState.RUNNING}
        distributions = sampler.distributions(params)
        study.add_trial(
            create_trial(params=params, distributions=distributions, **(ending if number < complete else state))
        )
    return study


@pytest.mark.parametrize("under_way", [0, 25])
def test_tpe_samples_what_optunas_own_does_with_the_constant_liar(under_way: int) -> None:
    """Optuna's is given a trial that is stored, since it writes to it."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    study = make_study(space, band, 40, under_way)
    every: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values) for name, values in space.parameters().items()
    }
    shared = {name: every[name] for name in always_asked(space)}
    asked = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    found = []
    for seed in range(4):
        ours = BASES["tpe"](seed)
        theirs, without = (TPESampler(seed=seed, multivariate=True, constant_liar=is_liar) for is_liar in (True, False))
        found.append(
            [
                sampler.sample_relative(study, asked, shared)
                | {
                    name: sampler.sample_independent(study, asked, name, every[name])
                    for name in sorted(every.keys() - shared)
                }
                for sampler in (ours, theirs, without)
            ]
        )
    assert all(one == liar for one, liar, _ in found)
    assert any(one != without for one, _, without in found) == bool(under_way)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_batch_is_what_single_asks_give_with_those_before_stored_as_running(name: str) -> None:
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    study, seen = make_study(space, band, 30, 5), set[str]()
    sampler = make_sampler(name, space, Bounds(macs=band), 0, lambda: seen)
    batch = sampler.propose_many(study, 35, 4)
    for number, expected in enumerate(batch, start=35):
        one = sampler.propose(study, number)
        assert one is not None
        assert one.params == expected.params
        seen.add(one.arch.arch_id)
        distributions, attrs = sampler.distributions(one.params), dict(one.system_attrs)
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=one.params, distributions=distributions, system_attrs=attrs)
        )
        study = copy.copy(study)  # without what Optuna remembers of its trials


def test_trials_asked_through_optuna_before_any_ends_are_distinct() -> None:
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    sampler = make_sampler("known-cost", space, Bounds(macs=band), 0, objectives=("proxy_score", "params"))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    trials = [study.ask() for _ in range(6)]
    archs = [
        space.sample(lambda name, choices, trial=trial: trial.suggest_categorical(name, choices))  # type: ignore[misc]  # a default that binds
        for trial in trials
    ]
    assert len({arch.arch_id for arch in archs}) == len(trials)
    assert all(band.contains(arch.cost().macs) for arch in archs)
