"""ZiCo (Li et al., ICLR 2023) and the trainability of AZ-NAS (Lee and Ham, CVPR 2024): what gradients say of a network before it is trained."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def zico(gradients: Sequence[Sequence[Tensor]]) -> float:
    """Sum over layers of log(sum over weights of mean |g| / standard deviation of |g|) across batches; `gradients[batch][layer]`.

    Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, section 3. Weights whose gradient is the same in all
    batches have no coefficient of variation and are left out, layers without any other too.
    """
    total = 0.0
    for layer in zip(*gradients, strict=True):
        absolute = torch.stack([gradient.detach().flatten() for gradient in layer]).abs()
        mean, deviation = absolute.mean(0), absolute.std(0, correction=0)
        varies = deviation > 0
        if varies.any():
            total += math.log(float((mean[varies] / deviation[varies]).double().sum()))
    return total
