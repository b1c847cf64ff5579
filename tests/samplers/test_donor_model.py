"""Models of earlier runs' scores: what they predict in another budget and another space, and what a run's sampler makes of them."""

import random
from collections.abc import Callable

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from archsearch.metrics import kendall_tau
from archsearch.samplers import ArchDonor, make_sampler
from archsearch.space import Arch, Band, Bounds, Params, draw, load_space, paper

HYBRID = load_space("hybrid")
SMALL, LARGE = (Bounds(macs=Band.around(budget, 0.05)) for budget in (2_000_000_000, 4_500_000_000))


def archs(bounds: Bounds, number: int, seed: int) -> list[Arch]:
    rng = random.Random(seed)
    return [draw(HYBRID, bounds, rng)[1] for _ in range(number)]


def score(arch: Arch) -> float:
    """Grows with the depth of the third stage, and with LITv2's blocks in the last."""
    return 0.5 + 0.02 * arch.stages[2].depth + 0.05 * (arch.stages[3].block == "hilo")


def test_what_an_earlier_run_says_holds_at_another_budget() -> None:
    before, now = archs(SMALL, 80, 0), archs(LARGE, 60, 1)
    donor = ArchDonor(HYBRID, before, [score(arch) for arch in before])
    scores = np.array([score(arch) for arch in now])
    assert kendall_tau(donor.predict(now), scores) > 0.5
    reversed_ = ArchDonor(HYBRID, before, [-score(arch) for arch in before])
    assert kendall_tau(reversed_.predict(now), scores) < -0.5


def test_architectures_that_the_space_has_no_names_for_are_told_apart_by_their_costs() -> None:
    before = [paper(name) for name in ("van_b0", "van_b1", "van_b2", "davit_tiny", "litv2_s")]
    small = load_space("van_b0")
    assert not small.parameters()
    donor = ArchDonor(small, before, [float(arch.cost().macs) for arch in before])
    predicted = donor.predict(before)
    assert np.argmin(predicted) == 0
    assert np.isfinite(predicted).all()


def proposals(evaluate: Callable[[Arch], float], donors: list[ArchDonor], number: int) -> list[float]:
    """Scores of the first candidates that a run's sampler proposes, each told before the next."""
    sampler = make_sampler("known-cost", HYBRID, LARGE, 0, objectives=("proxy_score", "params"), donors=donors)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    found = []
    for trial in range(number):
        proposal = sampler.propose(study, trial)
        assert proposal is not None
        found.append(evaluate(proposal.arch))
        study.add_trial(_complete(sampler.distributions, proposal.params, [found[-1], proposal.arch.cost().params]))
    return found


def _complete(
    distributions: Callable[[Params], dict[str, optuna.distributions.BaseDistribution]],
    params: Params,
    values: list[float],
) -> optuna.trial.FrozenTrial:
    return create_trial(state=TrialState.COMPLETE, params=params, distributions=distributions(params), values=values)


def test_the_sampler_uses_an_earlier_run_at_once() -> None:
    before = archs(SMALL, 80, 0)
    donor = ArchDonor(HYBRID, before, [score(arch) for arch in before])
    alone, guided = proposals(score, [], 5), proposals(score, [donor], 5)
    assert np.mean(guided) > np.mean(alone)
