"""Classifier heads: from the last map to logits."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import ChannelNorm, init_linears, to_tokens
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear
from archsearch.blocks.registry import register


class PoolClassifier(nn.Module):
    """Mean over positions, a LayerNorm where the paper's stands here, and Linear."""

    def __init__(self, width: int, num_classes: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.fc = nn.Linear(width, num_classes)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return apply_linear(self.fc, self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), what the classifier gets."""
        features: Tensor = self.norm(to_tokens(x).mean((1, 2)))
        return features


@register
@dataclass(frozen=True, kw_only=True)
class PoolHead(Layer):
    """Mean over all positions with a LayerNorm `before` it (most papers) or `after` it (DaViT), then a Linear classifier."""

    kind: ClassVar[str] = "pool"
    role: ClassVar[Role] = "head"
    num_classes: int
    norm: str = choice("before", doc="where the LayerNorm stands: before or after the mean")
    eps: float = choice(1e-5, doc="the LayerNorm's epsilon")

    def check(self, shape: Shape) -> None:
        """The norm stands before or after."""
        if self.norm not in ("before", "after"):
            raise LayerError("norm", f"norm {self.norm!r} is neither 'before' nor 'after'")

    def out(self, shape: Shape) -> Shape:
        """Logits, as a map of one position."""
        return Shape(self.num_classes, 1, 1)

    def canonical(self, shape: Shape) -> Layer:
        """On a map of one position both places of the norm are the same."""
        return replace(self, norm="before") if shape.positions == 1 else self

    def cost(self, shape: Shape) -> Cost:
        """5C for each normed position and KC; the mean is free."""
        normed = shape.positions if self.norm == "before" else 1
        return cost.layer_norm(normed, shape.channels) + cost.linear(1, shape.channels, self.num_classes)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """(B, C, H, W) -> (B, num_classes): children `norm` and `head`."""
        norms = [ChannelNorm(shape.channels, eps=self.eps), nn.Identity()]
        if self.norm == "after":
            norms = [nn.Identity(), nn.LayerNorm(shape.channels, eps=self.eps)]
        return _in_order(norms[0], PoolClassifier(shape.channels, self.num_classes, norms[1]))


class TokenClassifier(nn.Module):
    """Linear on the token that heads the map, or on the mean of the tokens that head its windows."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, tokens, 1 + n) -> (B, num_classes)."""
        return apply_linear(self.fc, self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, tokens, 1 + n) -> (B, C), the token or the mean of several."""
        return to_tokens(x)[:, :, 0].mean(1)


@register
@dataclass(frozen=True, kw_only=True)
class TokenHead(Layer):
    """A Linear classifier on the token that heads the map: PVT's and LIT-Ti's class token, the messenger of MSG-Transformer's only window.

    Of several windows the mean of the messengers: our rule, the paper's code ends with one window at its own size and gives logits a window at others.
    """

    kind: ClassVar[str] = "token"
    role: ClassVar[Role] = "head"
    paper: ClassVar[str] = "PVT, LIT, MSG-Transformer"
    takes_tokens: ClassVar[bool] = True
    num_classes: int
    eps: float = choice(1e-5, doc="the LayerNorm's epsilon")

    def check(self, shape: Shape) -> None:
        """A token must arrive."""
        if not shape.tokens:
            found = f"a map without a token ({shape.sides})"
            raise LayerError(
                "kind",
                f"a token head reads one token or more beside the map and gets {found}; it takes a class token or messengers",
            )

    def out(self, shape: Shape) -> Shape:
        """Logits, as a map of one position."""
        return Shape(self.num_classes, 1, 1)

    def cost(self, shape: Shape) -> Cost:
        """5C for every position, as the papers' code normalises all, and KC."""
        return cost.layer_norm(shape.positions, shape.channels) + cost.linear(1, shape.channels, self.num_classes)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """(B, C, tokens, 1 + n) -> (B, num_classes): children `norm` and `head`."""
        return _in_order(ChannelNorm(shape.channels, eps=self.eps), TokenClassifier(shape.channels, self.num_classes))


def _in_order(norm: nn.Module, head: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=norm, head=head))
