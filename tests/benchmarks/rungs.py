"""Samplers with and without rungs on the table of our own small hybrids: hypervolume against training images, and what rungs threw away wrongly.

Usage: python tests/benchmarks/rungs.py [--seeds N] [--evaluations N] [--rungs 0,1,2]

Nothing is trained: tests/data/hybrid_table.parquet holds every hybrid's curve. Objectives are score, images/s and parameters; hypervolume is the share of
that of the whole table's front (each objective scaled over the table, reference 1.1). A hybrid met again costs no images, as in a run of archsearch.
Only final scores count towards a hypervolume. `to goal`: median of the images at which a search reaches the mean last hypervolume of NSGA-II without
rungs, and its share of the images that took. `known-cost` knows the parameters only, `known-cost-speed` the images/s too, as after a good calibration.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from clock import arguments, write
from hybrids import TABLE, Hybrid, HybridTable, front
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from archsearch.report import make_console, make_table, show
from archsearch.results import Direction
from archsearch.samplers import KnownCostSampler
from archsearch.search import Curve, goes_on

DIRECTIONS: list[Direction] = ["maximize", "maximize", "minimize"]
Row = dict[str, Any]


def _known(table: HybridTable, seed: int, *, speed: bool) -> BaseSampler:
    known: dict[int, Callable[[dict[str, Any]], float]] = {2: lambda choices: float(table.of(choices).params)}
    if speed:
        known[1] = lambda choices: table.of(choices).throughput_img_s
    return KnownCostSampler(known, [row.choices for row in table.rows], seed=seed)


SAMPLERS: dict[str, Callable[[HybridTable, int], BaseSampler]] = {
    "random": lambda table, seed: RandomSampler(seed=seed),
    "nsga2": lambda table, seed: NSGAIISampler(seed=seed, population_size=20),
    "tpe": lambda table, seed: TPESampler(seed=seed),
    "known-cost": partial(_known, speed=False),
    "known-cost-speed": partial(_known, speed=True),
}


@dataclass(frozen=True)
class Point:
    """After a trial: images trained so far, and the share of the full front's hypervolume."""

    images: int
    share: float


def search(table: HybridTable, sampler: BaseSampler, *, with_rungs: bool, evaluations: int) -> tuple[list[Point], int]:
    """One search through Optuna; its course, and how many it stopped."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    seen: dict[tuple[Any, ...], Curve] = {}
    finished: list[Hybrid] = []
    points, images, stopped = [], 0, 0
    for _ in range(min(evaluations, len(table.rows))):
        trial = study.ask()
        hybrid = table.of({name: trial.suggest_categorical(name, values) for name, values in table.choices.items()})
        key = tuple(hybrid.choices.values())
        if key not in seen:
            seen[key], spent = _train(hybrid, trial.number, list(seen.values()), with_rungs=with_rungs)
            images += spent
        done = len(seen[key].scores)
        trial.set_user_attr(
            "learning_curve", {str(n): s.value for n, s in zip(hybrid.images, hybrid.scores[:done], strict=False)}
        )
        if done < len(hybrid.scores) and with_rungs:
            trial.set_user_attr("measured", {"1": hybrid.throughput_img_s})
            study.tell(trial, state=TrialState.PRUNED)
            stopped += 1
        else:
            study.tell(trial, [hybrid.scores[-1].value, hybrid.throughput_img_s, hybrid.params])
            finished.append(hybrid)
        points.append(Point(images, table.share(finished)))
    return points, stopped


def _train(hybrid: Hybrid, trial: int, others: Sequence[Curve], *, with_rungs: bool) -> tuple[Curve, int]:
    """The curve as far as it is trained, and the images that took."""
    if not with_rungs:
        return hybrid.curve(trial, len(hybrid.scores)), hybrid.images[-1]
    for done in range(1, len(hybrid.scores)):
        curve = hybrid.curve(trial, done)
        if not goes_on(curve, others).goes_on:
            return curve, hybrid.images[done - 1]
    return hybrid.curve(trial, len(hybrid.scores)), hybrid.images[-1]


def replay(table: HybridTable, number: int, seed: int) -> Row:
    """Hybrids in random order through the rungs: members of the front of their final scores that were stopped, and images saved."""
    rows = random.Random(seed).sample(table.rows, number)
    curves: list[Curve] = []
    spent = 0
    for trial, row in enumerate(rows):
        curve, images = _train(row, trial, curves, with_rungs=True)
        curves.append(curve)
        spent += images
    is_front = front(rows)
    lost = [
        len(curve.scores) < len(row.scores) for curve, row, member in zip(curves, rows, is_front, strict=True) if member
    ]
    kept = [row for row, curve in zip(rows, curves, strict=True) if len(curve.scores) == len(row.scores)]
    return {
        "members": len(lost),
        "lost": sum(lost),
        "stopped": len(rows) - len(kept),
        "images_share": spent / sum(row.images[-1] for row in rows),
        "hypervolume_share": table.share(kept) / table.share(rows),
    }


def at_rungs(table: HybridTable, rungs: Sequence[int]) -> HybridTable:
    """The table with some of its rungs only; the last must be the full training."""

    def cut(row: Hybrid) -> Hybrid:
        return replace(row, scores=tuple(row.scores[k] for k in rungs), images=tuple(row.images[k] for k in rungs))

    return HybridTable([cut(row) for row in table.rows])


def _one(task: tuple[Path, tuple[int, ...], str, bool, int, int]) -> list[Row]:
    path, rungs, name, with_rungs, seed, evaluations = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = at_rungs(HybridTable.load(path), rungs)
    points, stopped = search(table, SAMPLERS[name](table, seed), with_rungs=with_rungs, evaluations=evaluations)
    facts = {"sampler": name, "rungs": with_rungs, "seed": seed, "stopped": stopped}
    return [
        {**facts, "trial": number, "images": point.images, "share": point.share} for number, point in enumerate(points)
    ]


def images_to(rows: Sequence[Row], share: float) -> float:
    """Images at which a course first reaches a share; infinite if it never does."""
    return min((row["images"] for row in rows if row["share"] >= share), default=float("inf"))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument(
        "--rungs", default="0,2", help="which rungs of the table's curves, the full one last (default 0,2: 1/8 and all)"
    )
    parser.add_argument("--only", default=",".join(SAMPLERS), help="samplers")
    parser.add_argument("--processes", type=int, default=2)


def main() -> None:
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.seeds, options.evaluations, options.only, options.processes = 1, 20, "nsga2,known-cost", 1
    rungs = tuple(map(int, options.rungs.split(",")))
    table = at_rungs(HybridTable.load(options.table), rungs)
    orders = 3 if options.smoke else 100
    replays = [replay(table, min(200, len(table.rows)), seed) for seed in range(orders)]
    console = make_console()
    console.print(_replayed(table, replays))
    tasks = [
        (options.table, rungs, name, with_rungs, seed, options.evaluations)
        for seed in range(options.seeds)
        for name in options.only.split(",")
        for with_rungs in (False, True)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        rows = [row for course in pool.map(_one, tasks) for row in course]
    show(console, make_table(["sampler", "rungs", *_COLUMNS], _summary(rows, options.evaluations), left=["sampler"]))
    write(options.out, "rungs", rows, replay=replays, which_rungs=rungs)


def _replayed(table: HybridTable, replays: Sequence[Row]) -> str:
    """The results of the replays, in words."""
    members, lost = sum(row["members"] for row in replays), sum(row["lost"] for row in replays)
    stopped, images, volume = (
        statistics.fmean(row[key] for row in replays) for key in ("stopped", "images_share", "hypervolume_share")
    )
    return (
        f"{len(table.rows)} hybrids, rungs of {', '.join(map(str, table.rows[0].images))} images. {len(replays)} random orders of "
        f"{min(200, len(table.rows))}: {lost} of {members} members of the final fronts were stopped ({lost / members:.2%}); "
        f"{stopped:.1f} stopped an order, {images:.2f} of the images of full trainings, {volume:.4f} of their hypervolume"
    )


_COLUMNS = ["@25", "@50", "@100", "last", "images", "stopped", "to goal", "share"]


def _summary(rows: Sequence[Row], evaluations: int) -> list[list[str]]:
    """Medians of images, means of shares."""

    def courses(name: str, with_rungs: bool) -> list[list[Row]]:
        chosen = [row for row in rows if row["sampler"] == name and row["rungs"] == with_rungs]
        return [[row for row in chosen if row["seed"] == seed] for seed in sorted({row["seed"] for row in chosen})]

    base = courses("nsga2", False)
    goal = statistics.fmean(course[-1]["share"] for course in base) if base else 1.0
    base_images = statistics.fmean(course[-1]["images"] for course in base) if base else 1.0
    lines = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        for with_rungs in (False, True):
            runs = courses(name, with_rungs)
            needed = statistics.median(images_to(course, goal) for course in runs)
            lines.append(
                [
                    name,
                    "yes" if with_rungs else "no",
                    *(
                        _mean([course[min(at, len(course)) - 1]["share"] for course in runs])
                        for at in (25, 50, 100, evaluations)
                    ),
                    f"{statistics.fmean(course[-1]['images'] for course in runs):.0f}",
                    f"{statistics.fmean(course[-1]['stopped'] for course in runs):.0f}",
                    f"{needed:.0f}",
                    f"{needed / base_images:.2f}",
                ]
            )
    return lines


def _mean(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f}±{error:.3f}"


if __name__ == "__main__":
    main()
