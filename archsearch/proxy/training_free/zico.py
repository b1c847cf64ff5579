"""ZiCo: how steady the size of the gradients is across batches, before any training.

Li, Yang, Bhardwaj and Marculescu, "ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients", ICLR 2023, arXiv 2301.11300, section 3.
Weights whose gradient has the same size in all batches have no coefficient of variation and are left out, and so are layers without any other.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def zico(gradients: Sequence[Sequence[Tensor]]) -> float:
    """Sum over layers of log(sum over weights of mean |g| / standard deviation of |g|) across batches; `gradients[batch][layer]`."""
    total = 0.0
    for layer in zip(*gradients, strict=True):
        absolute = torch.stack([gradient.detach().flatten() for gradient in layer]).abs()
        mean, deviation = absolute.mean(0), absolute.std(0, correction=0)
        varies = deviation > 0
        if varies.any():
            total += math.log(float((mean[varies] / deviation[varies]).double().sum()))
    return total
