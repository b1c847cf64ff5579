"""BoTorch and Ax as rivals of our sampler on the tables of samplers.py, behind Optuna's interface.

    pip install ax-platform==1.3.1    # brings botorch 0.18.1; neither belongs to the project's own extras
    python tests/benchmarks/samplers.py --only botorch-4 --evaluations 50 --seeds 100-109

Rows of the table are what both choose from. Parameters are one-hot, as every one of NAS-Bench-201 is a category.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.model import Model, ModelList
from botorch.models.transforms.input import FilterFeatures
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from gpytorch.mlls import ExactMarginalLogLikelihood
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from table_problem import REFERENCE, Params, TableProblem
from torch import Tensor

_MARGIN = 0.1  # of the range: how far the reference lies beyond the worst value, as in our sampler
_ROWS_AT_ONCE = 256  # the quickest of 256, 2,048 and all


class _RowSampler(BaseSampler):
    """Chooses all parameters of a trial at once, as those of a row."""

    def __init__(self, problem: TableProblem, seed: int) -> None:
        self._problem, self._seed = problem, seed

    def choose(self, study: Study, number: int) -> Params:
        """The candidate of trial `number`."""
        raise NotImplementedError

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All names of the table."""
        return dict(self._problem.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The chosen row."""
        return self.choose(study, trial.number)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never asked for: every row has all names."""
        raise NotImplementedError


class BoTorchSampler(_RowSampler):
    """BoTorch's SingleTaskGP for each unknown objective and its exact expected hypervolume improvement, over all rows not yet tried.

    Known objectives are deterministic models that read them from the table. Hyperparameters, priors, standardisation and the fit are BoTorch's defaults.
    The first `start` rows are drawn at random. The analytic acquisition, not qLogNEHVI: a table has no noise, and 128 samples on 15,625 rows take 15 s.
    """

    def __init__(self, problem: TableProblem, seed: int, *, start: int) -> None:
        super().__init__(problem, seed)
        self._start = start
        values = torch.tensor([-1.0 if way == "minimize" else 1.0 for way in problem.directions]) * torch.tensor(
            problem.values
        )
        low, high = values.amin(dim=0), values.amax(dim=0)
        self._known = list(problem.known)
        self._unknown = [column for column in range(values.shape[1]) if column not in self._known]
        one_hot = torch.tensor(
            [
                [params[name] == choice for name, found in problem.distributions.items() for choice in found.choices]
                for params in problem.candidates
            ],
            dtype=torch.double,
        )
        self._width = one_hot.shape[1]
        # Maximised; known ones from 0 to 1. The acquisition takes no deviation below 3e-5, which is then nothing.
        self._values = values
        self._values[:, self._known] = ((values - low) / (high - low))[:, self._known]
        self._inputs = torch.cat((one_hot, self._values[:, self._known]), dim=1)

    def choose(self, study: Study, number: int) -> Params:
        """A random row at first, then the one of most expected improvement."""
        trials = study.get_trials(deepcopy=False)
        tried = [self._problem.row(trial.params) for trial in trials if trial.params]
        ended = [self._problem.row(trial.params) for trial in trials if trial.state == TrialState.COMPLETE]
        if len(tried) < self._start:
            generator = np.random.default_rng((self._seed, number))
            free = np.setdiff1d(np.arange(len(self._inputs)), tried)
            return self._problem.candidates[int(generator.choice(free))]
        scores = self._scores(ended)
        scores[tried] = -torch.inf
        return self._problem.candidates[int(scores.argmax())]

    def _scores(self, rows: Sequence[int]) -> Tensor:
        """Expected hypervolume improvement of every row of the table, after these."""
        values = self._values[rows][:, self._unknown + self._known]
        low, high = values.amin(dim=0), values.amax(dim=0)
        low[len(self._unknown) :], high[len(self._unknown) :] = 0.0, 1.0
        reference = low - _MARGIN * (high - low)
        acquisition = ExpectedHypervolumeImprovement(
            ModelList(*self._models(rows)), reference.tolist(), FastNondominatedPartitioning(reference, values)
        )
        with torch.no_grad():
            return torch.cat([acquisition(some) for some in torch.split(self._inputs.unsqueeze(1), _ROWS_AT_ONCE)])

    def _models(self, rows: Sequence[int]) -> list[Model]:
        """One of each objective, the unknown ones first."""
        models: list[Model] = []
        for column in self._unknown:
            parameters = FilterFeatures(feature_indices=torch.arange(self._width))
            model = SingleTaskGP(self._inputs[rows], self._values[rows][:, [column]], input_transform=parameters)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            models.append(model)
        for place in range(self._width, self._inputs.shape[1]):
            models.append(GenericDeterministicModel(lambda inputs, place=place: inputs[..., place : place + 1]))
        return models


class AxSampler(_RowSampler):
    """Ax's client with its default strategy: the centre, Sobol to five trials, then its own choice of BoTorch's models and acquisition.

    It models all objectives, as Ax has no known ones. Thresholds are the reference by which the benchmark judges, which Ax would have to guess otherwise.
    """

    def __init__(self, problem: TableProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._trials: dict[int, int] = {}  # Ax's number of each of Optuna's
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(
            parameters=[
                ChoiceParameterConfig(name=name, values=list(found.choices), parameter_type="str", is_ordered=False)
                for name, found in problem.distributions.items()
            ]
        )
        signs, thresholds = [], []
        for column, way in enumerate(problem.directions):
            low, high = problem.values[:, column].min(), problem.values[:, column].max()
            signs.append(f"{'-' if way == 'minimize' else ''}value_{column}")
            worst = low + REFERENCE * (high - low) if way == "minimize" else high - REFERENCE * (high - low)
            thresholds.append(f"value_{column} {'<=' if way == 'minimize' else '>='} {worst}")
        self._client.configure_optimization(objective=", ".join(signs), outcome_constraints=thresholds)

    def choose(self, study: Study, number: int) -> Params:
        """What Ax proposes."""
        ((trial, params),) = self._client.get_next_trials(max_trials=1).items()
        self._trials[number] = trial
        return dict(params)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell Ax."""
        assert values is not None
        found = {f"value_{column}": float(value) for column, value in enumerate(values)}
        self._client.complete_trial(trial_index=self._trials[trial.number], raw_data=found)
