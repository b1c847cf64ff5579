"""Exact costs as arithmetic: what one layer takes in multiply-adds and parameters, and how much it writes, without a tensor.

Convention: fvcore's, for one image in eval mode, with attention products and deformable convolution counted. One multiply-add is 1 MAC; a LayerNorm
charges 5 an element, an eval BatchNorm 2; biases, softmax, activation functions, additions and average pooling are free.

`activations` are the elements that convolutions, linear layers and plain matrix products write (Radosavovic et al., arXiv 2003.13678, for convolutions): what
fvcore's ActivationCountAnalysis counts, so timm's `macts`, with deformable convolution counted. Fused attention writes neither of its products. timm's
published tables were counted with attention in parts, which adds queries x keys a head and queries x channels for each.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """MACs of one image (`norm_macs` of them in norms, which FlopCounterMode leaves out), parameters, and elements written for one image."""

    macs: int = 0
    params: int = 0
    norm_macs: int = 0
    activations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.macs + other.macs,
            self.params + other.params,
            self.norm_macs + other.norm_macs,
            self.activations + other.activations,
        )

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.macs * times, self.params * times, self.norm_macs * times, self.activations * times)

    __rmul__ = __mul__


def linear(positions: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """A Linear or 1x1 convolution, by default with bias, applied at `positions` tokens."""
    weights = inputs * outputs
    return Cost(positions * weights, weights + outputs * bias, activations=positions * outputs)


def mlp(positions: int, width: int, hidden: int) -> Cost:
    """A Linear to `hidden` channels and one back."""
    return linear(positions, width, hidden) + linear(positions, hidden, width)


def conv(positions: int, inputs: int, outputs: int, kernel: int, *, groups: int = 1) -> Cost:
    """A square convolution with bias; `positions` are output positions."""
    weights = kernel * kernel * inputs * outputs // groups
    return Cost(positions * weights, weights + outputs, activations=positions * outputs)


def depthwise(positions: int, channels: int, kernel: int) -> Cost:
    """A depthwise convolution with bias, one filter a channel."""
    return conv(positions, channels, channels, kernel, groups=channels)


def layer_norm(positions: int, channels: int) -> Cost:
    """An affine LayerNorm over channels: 5 MACs an element."""
    macs = 5 * positions * channels
    return Cost(macs, 2 * channels, macs)


def batch_norm(positions: int, channels: int) -> Cost:
    """An affine BatchNorm in eval mode: 2 MACs an element."""
    macs = 2 * positions * channels
    return Cost(macs, 2 * channels, macs)


def self_attention(positions: int, keys: int, width: int) -> Cost:
    """Attention of `positions` tokens to `keys` each, with its qkv and output projections, which run on every position."""
    return linear(positions, width, 3 * width) + attention(positions, keys, width) + linear(positions, width, width)


def attention(queries: int, keys: int, channels: int) -> Cost:
    """Both products of fused softmax attention (query-key and weight-value) over all heads together."""
    return Cost(2 * queries * keys * channels)
