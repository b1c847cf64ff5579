"""Samplers on table problems: how much of the full front's hypervolume they have after some evaluations, and what an ask costs.

    python tests/benchmarks/samplers.py [--only known-cost tpe ...] [--problems cifar10 ...] [--seeds 0-19] [--evaluations 200]
                                        [--workers 1 4 16]

Every evaluation is a look-up and counts, a repeated one too. Parts can be run apart and in any order: rows of the same problem, sampler and seed are
replaced in the file, others stay, and `--new` leaves out runs that the file already has. All samplers have Optuna's defaults but for what
their names say, and `known-cost` is given the table's candidates and the objectives that are known beforehand, not the front; `known-cost-learned` has to
learn the candidates from its trials. `known-cost+...` is also given inputs for every candidate (table_inputs.py); `+donor` is for NAS-Bench-201. Where
evaluations are noisy shares are of the true values, and `known-cost-untold` is not given the standard errors. Times of an ask are the processor's, so that
other work on the machine does not count.

With several `--workers` a run is simulated: evaluations take about 1 (normal, a spread of 30 %) and end in the order of their durations. Whenever nothing
asked for is left, the sampler is asked for as many candidates as workers are free, or for an eighth of the workers where fewer are: `known-cost` at once,
from one fit, the others one after another, as Optuna does it. What is under way when the last evaluation ends does not count.

`botorch-...` and `ax` run only when `--only` names them: rival_samplers.py says what they are and how they are installed.
"""

import argparse
import heapq
import importlib
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pyarrow.parquet as pq
from clock import Row, arguments, host_key, write
from hpo_bench import hpo_bench
from hybrids import TABLE, HybridTable
from nas_bench_201 import DATASETS, nas_bench_201
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from table_inputs import INPUTS, TableInputs
from table_problem import TableProblem

from archsearch.report import make_console, make_table, show
from archsearch.samplers import STANDARD_ERRORS, KnownCostSampler

NAME = "samplers"
NOISE, KNOWN_NOISE = 0.02, 0.011
UNTOLD = ("known-cost-untold",)  # samplers that are not told the standard errors
MARKS = (10, 25, 50, 100, 200)
SPREAD = 0.3  # of the durations
COLUMNS = ("problem", "sampler", "workers", "seeds", *(f"@{mark}" for mark in MARKS), "ms an ask", "repeats")


def hybrids(path: Path = TABLE, name: str = "hybrids") -> TableProblem:
    """Our own small hybrids: the score at the last rung of seed 0, throughput and parameters, of which the last two are known."""
    rows = HybridTable.load(path).rows
    return TableProblem(
        name=name,
        candidates=[row.choices for row in rows],
        values=np.array([(row.scores[-1].value, row.throughput_img_s, row.params) for row in rows]),
        directions=("maximize", "maximize", "minimize"),
        known=(1, 2),
    )


def noisy_hybrids() -> TableProblem:
    """The same where each score has a further normal error, of standard deviation 0.02, of which 0.011 is known."""
    exact = hybrids()

    def observe(row: int, seed: int) -> np.ndarray:
        score, *known = exact.values[row]
        return np.array([score + np.random.default_rng((seed, row)).normal(0, NOISE), *known])

    return replace(exact, name="hybrids-noisy", observe=observe, standard_error=lambda _: KNOWN_NOISE)


PROBLEMS: dict[str, Callable[[], TableProblem]] = {
    **{dataset: partial(nas_bench_201, dataset) for dataset in DATASETS},
    **{f"{dataset}-as-numbers": partial(nas_bench_201, dataset, as_numbers=True) for dataset in DATASETS},
    **{f"hpobench-{dataset}": partial(hpo_bench, dataset) for dataset in ("vehicle", "segment")},
    "hybrids": hybrids,
    "hybrids-noisy": noisy_hybrids,
    **{f"{dataset}-one-training": partial(nas_bench_201, dataset, is_noisy=True) for dataset in DATASETS},
}
OWN: dict[str, Callable[[TableProblem, int], BaseSampler]] = {
    "random": lambda _, seed: RandomSampler(seed=seed),
    "nsga2-20": lambda _, seed: NSGAIISampler(seed=seed, population_size=20),
    "nsga2-50": lambda _, seed: NSGAIISampler(seed=seed, population_size=50),
    "tpe": lambda _, seed: TPESampler(seed=seed),
    "tpe-multivariate-group": lambda _, seed: TPESampler(seed=seed, multivariate=True, group=True),
    "gp": lambda _, seed: GPSampler(seed=seed),
    "known-cost": lambda problem, seed: KnownCostSampler(problem.known_functions(), problem.candidates, seed),
    "known-cost-untold": lambda problem, seed: KnownCostSampler(problem.known_functions(), problem.candidates, seed),
    "known-cost-learned": lambda problem, seed: KnownCostSampler(problem.known_functions(), seed=seed),
}


def _rival(kind: str, problem: TableProblem, seed: int, **options: Any) -> BaseSampler:
    """Of a library that need not be installed; where it is not, the script ends."""
    try:
        module = importlib.import_module("rival_samplers")
    except ModuleNotFoundError as error:
        raise SystemExit(f"samplers.py: {error.name} is not installed; rival_samplers.py says how it is") from None
    sampler: BaseSampler = getattr(module, kind)(problem, seed, **options)
    return sampler


RIVALS: dict[str, Callable[[TableProblem, int], BaseSampler]] = {
    "botorch-4": partial(_rival, "BoTorchSampler", start=4),
    "botorch-14": partial(_rival, "BoTorchSampler", start=14),
    "ax": partial(_rival, "AxSampler"),
}


def _with_inputs(
    make: Callable[[TableProblem, int], TableInputs], problem: TableProblem, seed: int
) -> KnownCostSampler:
    """known-cost with inputs that it is given for the whole table."""
    return KnownCostSampler(problem.known_functions(), problem.candidates, seed, inputs=make(problem, seed))


GIVEN = {f"known-cost+{name}": partial(_with_inputs, make) for name, make in INPUTS.items()}
SAMPLERS = OWN | RIVALS | GIVEN


class Run(NamedTuple):
    """One search."""

    problem: str
    sampler: str
    seed: int
    workers: int

    @classmethod
    def of(cls, row: Row) -> "Run":
        """The run that a row of the file is of."""
        return cls(row["problem"], row["sampler"], row["seed"], row["workers"])


def search(
    problem: TableProblem,
    sampler: BaseSampler,
    evaluations: int,
    workers: int = 1,
    seed: int = 0,
    *,
    tells_errors: bool = True,
) -> tuple[list[int], list[float]]:
    """Rows of the table in the order in which their evaluations ended, and the processor's seconds of each ask, a batch's shared evenly."""
    study = optuna.create_study(directions=problem.directions, sampler=sampler)
    durations = random.Random(f"durations/{seed}")
    asked: deque[tuple[int, int]] = deque()  # trial and row of the table
    under_way: list[tuple[float, int, int]] = []  # when it ends, trial, row
    rows: list[int] = []
    seconds: list[float] = []
    now = 0.0
    while len(rows) < evaluations:
        while len(under_way) < workers:
            if not asked:
                start = time.process_time()
                asked.extend(_ask(problem, study, max(workers - len(under_way), workers // 8)))
                seconds += [(time.process_time() - start) / len(asked)] * len(asked)
            ends_at = now + max(0.1, durations.gauss(1, SPREAD))
            heapq.heappush(under_way, (ends_at, *asked.popleft()))
        now, trial, row = heapq.heappop(under_way)
        if problem.standard_error is not None and tells_errors:
            trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, trial)
            study._storage.set_trial_user_attr(trial_id, STANDARD_ERRORS, {"0": problem.standard_error(row)})
        study.tell(trial, problem.evaluate(row, seed).tolist())
        rows.append(row)
    return rows, seconds


def _ask(problem: TableProblem, study: optuna.Study, number: int) -> list[tuple[int, int]]:
    """So many new trials, running, with their rows of the table."""
    if number > 1 and isinstance(study.sampler, KnownCostSampler):
        first = len(study.get_trials(deepcopy=False))
        found = study.sampler.propose_many(study, first, number)
        for params in found:
            distributions: dict[str, BaseDistribution] = {name: problem.distributions[name] for name in params}
            study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        return [(first + place, problem.row(params)) for place, params in enumerate(found)]
    trials = [study.ask() for _ in range(number)]
    return [(trial.number, problem.ask(trial)) for trial in trials]


def rows_of(run: Run, problem: TableProblem, evaluations: int) -> Iterator[Row]:
    """One row a mark that the search reaches."""
    sampler, tells_errors = SAMPLERS[run.sampler](problem, run.seed), run.sampler not in UNTOLD
    tried, seconds = search(problem, sampler, evaluations, run.workers, run.seed, tells_errors=tells_errors)
    start = 0
    for mark in (mark for mark in (*MARKS, evaluations) if mark <= evaluations):
        if mark > start:
            yield {
                **run._asdict(),
                "evaluations": mark,
                "share": problem.share(tried[:mark]),
                "share_chosen": problem.share(problem.chosen(tried[:mark], run.seed)),
                "repeats": mark - len(set(tried[:mark])),
                "ask_ms": 1e3 * statistics.fmean(seconds[start:mark]),
                "ask_ms_max": 1e3 * max(seconds[start:mark]),
            }
        start = mark


def summary(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each problem, sampler and number of workers: shares as mean +- standard error over seeds."""
    groups: dict[tuple[str, int, int], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    order = list(SAMPLERS)
    for row in rows:
        groups[row["problem"], order.index(row["sampler"]), row["workers"]][row["evaluations"]].append(row)
    for (problem, place, workers), found in sorted(groups.items()):
        last = found[max(found)]
        shares = [_spread([row["share"] for row in found[mark]]) if mark in found else "-" for mark in MARKS]
        # A row's times are those since the mark before it.
        asks = np.average(
            [statistics.fmean(row["ask_ms"] for row in found[mark]) for mark in sorted(found)],
            weights=np.diff([0, *sorted(found)]),
        )
        repeats = statistics.fmean(row["repeats"] for row in last)
        yield [
            problem,
            order[place],
            str(workers),
            str(len(last)),
            *shares,
            f"{asks:.1f}",
            f"{repeats:.0f} of {max(found)}",
        ]


def _spread(shares: Sequence[float]) -> str:
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0
    return f"{statistics.fmean(shares):.4f} +-{error:.4f}"


def before(folder: Path) -> list[Row]:
    """What earlier calls left in the file; older ones had one worker and no noise, and did not say so."""
    path = folder / f"{NAME}-{host_key()}.parquet"
    return (
        [{"workers": 1, "share_chosen": row["share"], **row} for row in pq.read_table(path).to_pylist()]
        if path.exists()
        else []
    )


def parse_seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", choices=list(SAMPLERS), help="samplers (default: all but rivals and those with inputs)"
    )
    parser.add_argument(
        "--problems", nargs="+", choices=list(PROBLEMS), default=list(DATASETS), help="default: NAS-Bench-201"
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default=range(20), metavar="A-B", help="both ends included (default 0-19)"
    )
    parser.add_argument("--evaluations", type=int, default=max(MARKS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1], metavar="N", help="default 1")
    parser.add_argument("--new", action="store_true", help="only runs that the file does not have")


def main() -> None:
    """Search, write after every run, print."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.only, options.seeds, options.evaluations = options.only or ["random", "known-cost"], range(2), 25
    rows, console = before(options.out), make_console()
    done = {Run.of(row) for row in rows} if options.new else set()
    for name in options.problems:
        problem = PROBLEMS[name]()
        for sampler in options.only or OWN:
            runs = [Run(problem.name, sampler, seed, workers) for workers in options.workers for seed in options.seeds]
            for run in runs:
                if run not in done:
                    found = list(rows_of(run, problem, options.evaluations))
                    # Another call may have written meanwhile.
                    rows = [row for row in before(options.out) if Run.of(row) != run] + found
                    write(options.out, NAME, rows)
    show(console, make_table(COLUMNS, summary(rows), left=("problem", "sampler")))


if __name__ == "__main__":
    main()
