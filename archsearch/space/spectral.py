"""The spectral capacity of an architecture: a score of weight shapes alone; `archsearch.blocks.spectral` says what it is."""

import math

from archsearch.blocks import layer_capacities
from archsearch.space.arch import Arch, Placed


def spectral_capacity(arch: Arch) -> float:
    """Sum over weight matrices of log det(1 + W W^T) at random initialisation, in nats, exactly rounded: equal to that of the built network.

    No tensor is made but for layers that were never seen at their shape; then it takes microseconds.
    """
    return math.fsum(value for placed in arch.layers() for value in layer_capacities(placed.layer, placed.shape))


def layer_spectral_capacity(placed: Placed) -> float:
    """That of one layer at its place: a score for `InBand.best`, `draw` and `quantiles`."""
    return math.fsum(layer_capacities(placed.layer, placed.shape))
