"""Readings of "Neural Spectral Capacity" (arXiv 2609.23087) against the published top-1 of timm's hierarchical networks.

Only the paper's abstract was available, which does not give the function of the singular values. Each reading here is a sum over weight matrices, of
random weights of variance 1 / inputs (`xavier`: 2 / (inputs + outputs)), by the Marchenko-Pastur law.

Usage: python tests/benchmarks/spectral_readings.py [--out FOLDER]     (two minutes: networks are built without weights)
"""

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import timm
import torch
from clock import Row, arguments, write
from numpy.typing import NDArray

from archsearch.blocks.spectral import Matrices, log_det, weight_matrices
from archsearch.metrics import estimate, kendall_tau
from archsearch.proxy.audit.against_timm import like_params_tau
from archsearch.proxy.audit.timm_networks import Network, timm_networks
from archsearch.space import Band

BANDS = ((1.5, 2.5), (3.5, 6.0), (7.0, 10.0))  # billion multiply-adds
SMOKE = ((0.25, 0.5),)
_POINTS = 2000  # of the quadrature

Squares = NDArray[np.float64]


def law(outputs: int, inputs: int) -> tuple[Squares, Squares]:
    """Squared singular values (n,), without the zeros, and their weights, which sum to 1."""
    root = math.sqrt(outputs / inputs)
    low, high = (1 - root) ** 2, (1 + root) ** 2
    angles = (np.arange(_POINTS) + 0.5) / _POINTS * math.pi
    squares = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    density = np.sin(angles) ** 2 / squares
    return squares, density / density.sum()


def integral(function: Callable[[Squares], Squares]) -> Callable[[int, int], float]:
    """Sum of a function over the squared singular values of a matrix."""

    @cache
    def of(outputs: int, inputs: int) -> float:
        squares, weights = law(outputs, inputs)
        return min(outputs, inputs) * float(weights @ function(squares))

    return of


@cache
def effective_rank(outputs: int, inputs: int) -> float:
    """exp of the entropy of the squared singular values over their sum (Roy and Vetterli 2007)."""
    return math.exp(integral(lambda squares: -(squares / outputs) * np.log(squares / outputs))(outputs, inputs))


@cache
def xavier_log_det(outputs: int, inputs: int) -> float:
    """As `log_det`, with Xavier's variance."""
    return integral(lambda squares: np.log1p(squares * 2 * inputs / (inputs + outputs)))(outputs, inputs)


READINGS: dict[str, Callable[[int, int], float]] = {
    "log(1 + s^2), kept": log_det,
    "log(1 + s^2), xavier": xavier_log_det,
    "log(1 + 10 s^2)": integral(lambda squares: np.log1p(10 * squares)),
    "log(1 + s)": integral(lambda squares: np.log1p(np.sqrt(squares))),
    "s": integral(np.sqrt),
    "s^2, the outputs": lambda outputs, inputs: outputs,
    "effective rank": effective_rank,
    "rank": lambda outputs, inputs: min(outputs, inputs),
}


def matrices_of(name: str) -> list[Matrices]:
    """The weight matrices of timm's network."""
    with torch.device("meta"):
        return list(weight_matrices(timm.create_model(name)))


def values(networks: Sequence[Network]) -> dict[str, NDArray[np.float64]]:
    """Of each reading, and of counting, for every network."""
    shapes = [matrices_of(network.name) for network in networks]
    counted = {"params": [one.params for one in networks], "macs": [one.macs for one in networks]}
    read = {
        name: [math.fsum(number * of(rows, columns) for number, rows, columns in own) for own in shapes]
        for name, of in READINGS.items()
    }
    return {name: np.array(found, dtype=np.float64) for name, found in {**counted, **read}.items()}


def rows_of(low: float, high: float) -> Iterator[Row]:
    """A row for each reading in a band, of the networks that were trained on ImageNet-1k alone."""
    inside = timm_networks(Band(round(low * 1e9), round(high * 1e9)))
    networks = [network for network in inside if network.top1_in1k is not None]
    families = [network.family for network in networks]
    target, params = (np.array([getattr(one, name) for one in networks]) for name in ("top1", "params"))
    for reading, found in values(networks).items():
        tau = estimate(kendall_tau, found, target, clusters=families)
        like = estimate(like_params_tau, found, target, params, clusters=families)
        taus = {"tau": tau.value, "tau_low": tau.low, "tau_high": tau.high}
        likes = {"tau_like_params": like.value, "tau_like_params_low": like.low, "tau_like_params_high": like.high}
        yield {"band": f"{low:g}G-{high:g}G", "count": len(networks), "reading": reading, **taus, **likes}


def main() -> None:
    """Compute, print, write."""
    warnings.simplefilter("ignore")  # timm's of its own names
    options = arguments(str(__doc__), add=lambda parser: argparse.Namespace())
    rows = []
    for low, high in SMOKE if options.smoke else BANDS:
        for row in rows_of(low, high):
            print(
                f"{row['band']:>9} {row['count']:>3} {row['reading']:<22} tau {row['tau']:.2f} ({row['tau_low']:.2f} to {row['tau_high']:.2f})"
                f"  like params {row['tau_like_params']:.2f} ({row['tau_like_params_low']:.2f} to {row['tau_like_params_high']:.2f})"
            )
            rows.append(row)
    write(options.out, "spectral_readings", rows)


if __name__ == "__main__":
    main()
