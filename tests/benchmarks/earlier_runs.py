"""What an earlier run is worth to the known-cost sampler: shares of the full front's hypervolume with its scores, without them, and with them reversed.

    python tests/benchmarks/earlier_runs.py [--problems hybrids hybrids-2 imagenet16-120] [--seeds 0-19] [--evaluations 75]

    hybrids          the table of small hybrids; the earlier run is 50 of the second table, the same space at a smaller budget, others for each seed
    hybrids-2        that second table; the earlier run is 50 of the first one
    imagenet16-120   NAS-Bench-201; the earlier run is one of 100 evaluations of the known-cost sampler on CIFAR-10, another for each seed

The scores of the earlier run are modelled as `archsearch run --from` does it. None of the candidates was in the earlier run but those of NAS-Bench-201,
whose figures on the other data set are another objective: nothing is reused, every evaluation counts. The proxy of the two tables of hybrids is the same.
"""

import argparse
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hybrid_table
import optuna
from clock import Row, arguments, write
from hybrids import SECOND_TABLE, HybridTable
from nas_bench_201 import nas_bench_201
from samplers import hybrids, search
from table_problem import TableProblem

from archsearch import load_space
from archsearch.metrics import Array
from archsearch.report import make_console, make_table, show
from archsearch.samplers import ArchDonor, DonorModel, KnownCostSampler
from archsearch.space import Params

NAME = "earlier_runs"
KINDS = ("none", "earlier run", "reversed")
MARKS = (5, 10, 15, 25, 50)
TARGET_AT = 50  # evaluations of the sampler without an earlier run
DONOR_EVALUATIONS, DONOR_SEED = 100, 100
DONOR_HYBRIDS = 50
COLUMNS = ("problem", "scores of", "seeds", *(f"@{mark}" for mark in MARKS), "evaluations to reach @50 of none")

Predict = Callable[[Sequence[Params]], Array]


class Predictions:
    """Predictions of an earlier run's model as the sampler's input."""

    names = ("earlier run",)
    estimates = frozenset(names)

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def __call__(self, candidates: Sequence[Params]) -> Array:
        return self._predict(candidates)[:, None]


def first_hybrids() -> tuple[TableProblem, Callable[[int, float], Predict]]:
    """The first table with the second as the earlier run."""
    return hybrids(), _from_archs(hybrid_table.every(), hybrid_table.smaller(), SECOND_TABLE)


def second_hybrids() -> tuple[TableProblem, Callable[[int, float], Predict]]:
    """The second table with the first as the earlier run."""
    return hybrids(SECOND_TABLE, "hybrids-2"), _from_archs(
        hybrid_table.smaller(), hybrid_table.every(), hybrid_table.TABLE
    )


def _from_archs(own: hybrid_table.Hybrids, others: hybrid_table.Hybrids, path: Path) -> Callable[[int, float], Predict]:
    """For a seed and a sign of the scores: the model of another table's architectures as a function of this one's parameters."""
    space, table = load_space(hybrid_table.SPACE), HybridTable.load(path)
    archs = {tuple(sorted(params.items())): arch for params, arch in own}
    found = [(arch, table.of(params).scores[-1].value) for params, arch in others]

    def make(seed: int, sign: float) -> Predict:
        some = random.Random(seed).sample(found, DONOR_HYBRIDS)
        donor = ArchDonor(space, [arch for arch, _ in some], [sign * score for _, score in some])
        return lambda candidates: donor.predict([archs[tuple(sorted(params.items()))] for params in candidates])

    return make


def nas_bench() -> tuple[TableProblem, Callable[[int, float], Predict]]:
    """ImageNet16-120 with runs on CIFAR-10; both minimise the error, so predictions of it are estimates of it."""
    problem, other = nas_bench_201("imagenet16-120"), nas_bench_201("cifar10")
    runs: dict[int, list[int]] = {}

    def make(seed: int, sign: float) -> Predict:
        if seed not in runs:
            sampler = KnownCostSampler(other.known_functions(), other.candidates, DONOR_SEED + seed)
            runs[seed], _ = search(other, sampler, DONOR_EVALUATIONS)
        rows = runs[seed]
        scores = (-sign * other.values[rows, 0]).tolist()
        donor = DonorModel(
            other.distributions, [other.candidates[row] for row in rows], other.values[rows][:, 1:], scores
        )

        def predict(candidates: Sequence[Params]) -> Array:
            costs = problem.values[[problem.row(params) for params in candidates]][:, 1:]
            return -donor.predict(candidates, costs)

        return predict

    return problem, make


PROBLEMS = {"hybrids": first_hybrids, "hybrids-2": second_hybrids, "imagenet16-120": nas_bench}
SIGNS = {"earlier run": 1.0, "reversed": -1.0}


def rows_of(
    problem: TableProblem, make: Callable[[int, float], Predict], kind: str, seed: int, evaluations: int
) -> Iterator[Row]:
    """The share after every evaluation of a search."""
    inputs = Predictions(make(seed, SIGNS[kind])) if kind in SIGNS else None
    sampler = KnownCostSampler(problem.known_functions(), problem.candidates, seed, inputs=inputs)
    tried, _ = search(problem, sampler, evaluations, seed=seed)
    for number in range(1, evaluations + 1):
        share = problem.share(tried[:number])
        yield {"problem": problem.name, "earlier": kind, "seed": seed, "evaluations": number, "share": share}


def summary(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each problem and kind: shares, and how many evaluations it takes to the share that the sampler alone has at 50; mean +- standard error."""
    curves: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        curves[row["problem"], row["earlier"]][row["seed"]].append(row["share"])
    for (problem, kind), found in curves.items():
        alone = curves[problem, KINDS[0]].values()
        length = len(next(iter(found.values())))
        target = statistics.fmean(curve[min(TARGET_AT, length) - 1] for curve in alone)
        shares = [
            _spread([curve[mark - 1] for curve in found.values()], 4) if mark <= length else "-" for mark in MARKS
        ]
        yield [problem, kind, str(len(found)), *shares, _spread([reach(curve, target) for curve in found.values()], 1)]


def reach(curve: Sequence[float], target: float) -> float:
    """Evaluations until a share is reached; one more than there were where it is not."""
    return next((number for number, share in enumerate(curve, start=1) if share >= target), len(curve) + 1)


def _spread(values: Sequence[float], digits: int) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} +-{error:.{digits}f}"


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument(
        "--seeds", type=_seeds, default=range(20), metavar="A-B", help="both ends included (default 0-19)"
    )
    parser.add_argument("--evaluations", type=int, default=75)


def main() -> None:
    """Search, write after every problem, print."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.problems, options.seeds, options.evaluations = ["hybrids"], range(2), 6
    rows: list[Row] = []
    for name in options.problems:
        problem, make = PROBLEMS[name]()
        for kind in KINDS:
            rows += [row for seed in options.seeds for row in rows_of(problem, make, kind, seed, options.evaluations)]
        write(options.out, NAME, rows)
    show(make_console(), make_table(COLUMNS, summary(rows), left=("problem", "scores of")))


if __name__ == "__main__":
    main()
