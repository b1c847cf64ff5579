"""Trials that someone put into a run's study through Optuna: what they ask for, as a proposal of the run."""

import random

from optuna.trial import FrozenTrial

from archsearch.errors import UserError
from archsearch.samplers import Proposal
from archsearch.space import Bounds, Space, draw, propose
from archsearch.units import format_count

_FIXED_PARAMS = "fixed_params"  # where Optuna's `enqueue_trial` keeps them


def enqueued_proposal(trial: FrozenTrial, space: Space, bounds: Bounds) -> Proposal:
    """The architecture that a waiting trial asks for; parameters that it leaves open are drawn inside the bounds.

    Raises UserError for a parameter or a choice that the space does not have, and where no such architecture lies inside the bounds.
    """
    fixed_params = trial.system_attrs.get(_FIXED_PARAMS, {})
    asked = {**trial.params, **(fixed_params if isinstance(fixed_params, dict) else {})}
    fixed = space.fixed(
        {name: value if isinstance(value, str | int | float) else str(value) for name, value in asked.items()}
    )
    rng = random.Random(trial.number)
    params, arch = propose(space, fixed.fixed_names, rng)
    if params.keys() <= fixed.fixed_names.keys():
        cost = arch.cost()
        if not bounds.contains(cost):
            has = f"{format_count(cost.macs)} MACs and {format_count(cost.params)} parameters"
            raise UserError(f"its {has} are outside the band of {bounds}")
        return Proposal(params=params, arch=arch)
    drawn, _ = draw(fixed, bounds, rng)
    params, arch = propose(space, {**fixed.fixed_names, **drawn}, rng)
    return Proposal(params=params, arch=arch)
