"""Sweep of the proxy's peak learning rate on three anchors, once; the winner is frozen for every candidate (archsearch/proxy/shipped/fashion-mnist.toml).

Usage: python tests/benchmarks/learning_rate.py [--data IMAGE_FOLDER] [--steps N]
Prints top-1 and training loss for each anchor and rate, and the rate with the best mean rank over the anchors.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from archsearch import build, paper
from archsearch.proxy import ProxyTask, choose_profile, shrink, train_and_score

ANCHORS = ("davit_tiny", "van_b2", "litv2_s")
RATES = (1e-3, 2e-3, 4e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    chosen = choose_profile(None, "cpu", arguments.data)
    task = ProxyTask.resolve(chosen, data=arguments.data, steps=arguments.steps)
    data, scale = task.load_data(), task.scale
    scores = np.zeros((len(ANCHORS), len(RATES)))
    for row, name in enumerate(ANCHORS):
        for column, rate in enumerate(RATES):
            recipe = replace(task.recipe, learning_rate=rate)
            torch.manual_seed(0)
            result = train_and_score(build(shrink(paper(name), scale, len(data.classes))), data, recipe, device="cpu")
            scores[row, column] = result.score
            print(
                f"{name:18s} lr {rate:g}  top-1 {result.score:.4f} +- {result.standard_error:.4f}  loss {result.train_loss:.4f}  {result.train_s:.0f} s",
                flush=True,
            )
    ranks = (-scores).argsort(axis=1).argsort(axis=1).mean(axis=0)
    print("mean top-1 by rate:", dict(zip(RATES, scores.mean(axis=0).round(4).tolist(), strict=True)))
    print("best mean rank: lr", RATES[int(ranks.argmin())])


if __name__ == "__main__":
    main()
