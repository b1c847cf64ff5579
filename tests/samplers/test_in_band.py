"""A run's samplers as objects of their own."""

import pickle

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from archsearch import load_space
from archsearch.samplers import SAMPLERS, make_sampler
from archsearch.space import Arch, Band


def images_per_s(arch: Arch) -> float:
    return 1e12 / arch.cost().macs


def features(arch: Arch) -> dict[str, float]:
    return {"size": float(arch.cost().params)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_pickled_sampler_goes_on_the_same(name: str) -> None:
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    sampler = make_sampler(
        name,
        space,
        band,
        0,
        objectives=("proxy_score", "throughput_img_s", "latency_ms", "params", "macs"),
        predict=images_per_s,
        features=features,
    )
    again = pickle.loads(pickle.dumps(sampler))
    study = optuna.create_study(directions=["maximize", "maximize", "minimize", "minimize", "minimize"])
    first, second = (each.propose(study, 0) for each in (sampler, again))
    assert first is not None
    assert second is not None
    assert first.params == second.params


@pytest.mark.parametrize("name", ["known-cost", "nsga2", "random"])
def test_batches_have_no_architecture_twice_and_begin_with_what_propose_gives(name: str) -> None:
    """Batches of several sizes while others are under way."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)
    study = optuna.create_study(directions=["maximize", "minimize"])
    seen: set[str] = set()
    sampler = make_sampler(name, space, band, 0, lambda: seen, objectives=("proxy_score", "params"))
    under_way: dict[int, Arch] = {}
    for size in (1, 4, 16, 8):
        number = len(study.trials)
        first, batch = sampler.propose(study, number), sampler.propose_many(study, number, size)
        assert first is not None
        assert (first.params, len(batch)) == (batch[0].params, size)
        again = make_sampler(name, space, band, 0, lambda: seen, objectives=("proxy_score", "params"))
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
