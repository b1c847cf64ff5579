"""Further seeds for a front whose scores are noisy: the same number of trainings spent evenly, or where the order of the front is least certain.

    python tests/benchmarks/front_seeds.py [--seeds 0-59] [--trials 60 150] [--numbers 3]

Nothing is trained: the scores of tests/data/hybrid_table.parquet count as the true ones, and each training gives one with a normal error, of standard
deviation 0.018 from its seed and 0.011 from its evaluation set. The trials are those of a known-cost search with such scores. Every way to spend gets
the same errors: the n-th training of a trial gives the same score.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from clock import Row, arguments, write
from samplers import hybrids, parse_seeds
from table_problem import TableProblem

from archsearch.metrics import Array, is_dominated
from archsearch.report import make_console, make_table, show
from archsearch.results import FrontChances, mean_score
from archsearch.samplers import KnownCostSampler
from archsearch.search.engine.front_work import next_training

NAME = "front_seeds"
OBJECTIVES = ("proxy_score", "throughput_img_s", "params")
SEED_SD, STANDARD_ERROR = 0.018, 0.011
MOST = 100  # trainings of one trial
COLUMNS = (
    *("trials", "seeds", "judged by", "spent", "searches", "front", "true front"),
    *("wrong members", "to even", "hypervolume", "to even ", "chance", "truly in", "Brier score"),
)


@dataclass(kw_only=True)
class Search:
    """The trials of one search: rows of the table, true values, and the scores (N, MOST) that their trainings give; `scores[i, 0]` is the first."""

    problem: TableProblem
    places: list[int]
    scores: Array
    trained: list[int] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """As a run's trials."""
        return [self._row(trial) for trial in range(len(self.places))]

    def _row(self, trial: int) -> Row:
        number = 1 + self.trained.count(trial)
        scores = self.scores[trial, :number].tolist()
        _, img_s, params = self.problem.values[self.places[trial]]
        several = number > 1
        return {
            "trial": trial,
            "state": "complete",
            "reused_from": None,
            "outside": None,
            "proxy_score": scores[0],
            "proxy_score_se": STANDARD_ERROR,
            "proxy_seeds": number if several else None,
            "proxy_score_mean": statistics.fmean(scores) if several else None,
            "proxy_score_sd": statistics.stdev(scores) if several else None,
            "throughput_img_s": img_s,
            "params": params,
            **dict.fromkeys(("device", "dtype", "mode", "batch_size", "image_size", "in_chans", "proxy_id")),
            "throughput_id": "table",
        }

    def front(self, scores: Sequence[float]) -> set[int]:
        """The trials on the front with these scores."""
        costs = self.problem.values[self.places][:, 1:] * (-1, 1)
        return set(np.flatnonzero(~is_dominated(np.column_stack((-np.array(scores), costs)))).tolist())


def make_search(problem: TableProblem, trials: int, seed: int) -> Search:
    """A search with noisy scores."""
    errors = np.random.default_rng(seed).normal(0, np.hypot(SEED_SD, STANDARD_ERROR), (len(problem.values), MOST))
    study = optuna.create_study(
        directions=problem.directions, sampler=KnownCostSampler(problem.known_functions(), problem.candidates, seed)
    )
    places = []
    for _ in range(trials):
        trial = study.ask()
        place = problem.ask(trial)
        study.tell(trial, [problem.values[place, 0] + errors[place, 0], *problem.values[place, 1:]])
        places.append(place)
    return Search(problem=problem, places=places, scores=problem.values[places, :1] + errors[places])


def spend_none(search: Search, number: int) -> None:
    """No further training."""


def spend_evenly(search: Search, number: int) -> None:
    """Every member of the front by the first scores is trained with so many seeds."""
    search.trained = sorted(search.front(search.scores[:, 0].tolist())) * (number - 1)


def spend_by_worth(search: Search, number: int) -> None:
    """As many trainings one by one, as a run spends them."""
    for _ in range((number - 1) * len(search.front(search.scores[:, 0].tolist()))):
        chosen = next_training(search.rows(), OBJECTIVES, number)
        assert chosen is not None
        search.trained.append(chosen["trial"])


SPENDINGS: dict[str, Callable[[Search, int], None]] = {
    "none": spend_none,
    "evenly": spend_evenly,
    "by worth": spend_by_worth,
}


def judge(search: Search) -> Iterator[tuple[str, set[int], Array]]:
    """The front of all mean scores, that of the first front's members by theirs, and of the trials whose chance is at least a half; with all chances."""
    rows = search.rows()
    means = np.array([mean_score(row) for row in rows])
    first = search.front(search.scores[:, 0].tolist())
    members = [trial in first for trial in range(len(rows))]
    chances = FrontChances(rows, OBJECTIVES).chances()
    yield "mean", search.front(means.tolist()), chances
    yield "mean of members", search.front(np.where(members, means, -1.0).tolist()) & first, chances
    yield "chance", set(np.flatnonzero(chances >= 0.5).tolist()), chances


def rows_of(problem: TableProblem, trials: int, number: int, seed: int) -> Iterator[Row]:
    """One row for each way to spend and to judge."""
    first = make_search(problem, trials, seed)
    true = first.front(problem.values[first.places, 0].tolist())
    is_true = np.array([trial in true for trial in range(trials)])
    for name, spend in SPENDINGS.items():
        search = Search(problem=problem, places=first.places, scores=first.scores)
        spend(search, number)
        for judged_by, front, chances in judge(search):
            yield {
                "trials": trials,
                "number": number,
                "spent": name,
                "judged_by": judged_by,
                "seed": seed,
                "trainings": len(search.trained),
                "front": len(front),
                "true_front": len(true),
                "wrongly_in": len(front - true),
                "wrongly_out": len(true - front),
                "share": problem.share([search.places[trial] for trial in front]) if front else 0.0,
                "chance": float(np.mean(chances[sorted(front)])) if front else None,
                "brier": float(np.mean((chances - is_true) ** 2)),
            }


def summary(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each way to spend and to judge: means, and differences from even spending, over searches, with standard errors."""
    groups: dict[tuple[int, int, str, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        groups[row["trials"], row["number"], row["judged_by"], row["spent"]][row["seed"]] = row
    for (trials, number, judged_by, spent), found in groups.items():
        even = groups[trials, number, judged_by, "evenly"]
        wrong = [(_wrong(row), _wrong(even[seed])) for seed, row in found.items()]
        shares = [(row["share"], even[seed]["share"]) for seed, row in found.items()]
        yield [
            str(trials),
            str(number),
            judged_by,
            spent,
            str(len(found)),
            f"{statistics.fmean(row['front'] for row in found.values()):.1f}",
            f"{statistics.fmean(row['true_front'] for row in found.values()):.1f}",
            *_with_difference(wrong, ".1f"),
            *_with_difference(shares, ".4f"),
            f"{statistics.fmean(row['chance'] for row in found.values() if row['front']):.3f}",
            f"{statistics.fmean(1 - row['wrongly_in'] / row['front'] for row in found.values() if row['front']):.3f}",
            f"{statistics.fmean(row['brier'] for row in found.values()):.3f}",
        ]


def _wrong(row: Row) -> int:
    return int(row["wrongly_in"] + row["wrongly_out"])


def _with_difference(pairs: Sequence[tuple[float, float]], pattern: str) -> tuple[str, str]:
    """The mean of the first ones, and that of the differences from the second with its standard error."""
    differences = [one - other for one, other in pairs]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    mean = statistics.fmean(differences)
    return f"{statistics.fmean(one for one, _ in pairs):{pattern}}", f"{mean:+{pattern}} +-{error:{pattern}}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=parse_seeds, default=range(60), metavar="A-B", help="searches (default 0-59)")
    parser.add_argument(
        "--trials", nargs="+", type=int, default=[60, 150], metavar="N", help="of a search (default 60 150)"
    )
    parser.add_argument("--numbers", nargs="+", type=int, default=[3], metavar="N", help="seeds asked for (default 3)")


def main() -> None:
    """Search and spend, write, print."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.seeds, options.trials, options.numbers = range(2), [20], [2]
    problem = hybrids()
    rows = [
        row
        for trials in options.trials
        for number in options.numbers
        for seed in options.seeds
        for row in rows_of(problem, trials, number, seed)
    ]
    write(options.out, NAME, rows)
    show(make_console(), make_table(COLUMNS, summary(rows), left=("judged by", "spent")))


if __name__ == "__main__":
    main()
