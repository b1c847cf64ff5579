"""A run's samplers as objects of their own."""

import pickle

import optuna
import pytest

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
