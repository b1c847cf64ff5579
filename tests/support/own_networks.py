"""A module of networks outside the package, written into a folder, and an import system that forgets it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE = "nets_of_a_test"
TEXT = """
import torch
from torch import nn


def small(num_classes=10, in_chans=3):
    stem = nn.Conv2d(in_chans, 8, 4, 4)
    return nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def seven():
    return small(7)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.memory = nn.LSTM(16, 4, batch_first=True)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.memory(self.attention(tokens, tokens, tokens, need_weights=False)[0])[0].mean(1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small()

    def forward(self, x):
        return (self.network(x), 0) if self.training else self.network(x)


def raises():
    raise ValueError("no weights here")


def text():
    return "a network"


def maps():
    return nn.Conv2d(3, 8, 3)


def breaks():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 10))


def needs(depth, num_classes):
    return small(num_classes)


number = 3
"""


@contextlib.contextmanager
def own_module(folder: Path, text: str = TEXT) -> Iterator[str]:
    """The module's name, while it lies in a folder, which must be the current one; both are forgotten at the end, as by another process."""
    (folder / f"{MODULE}.py").write_text(text)
    path = list(sys.path)
    sys.modules.pop(MODULE, None)
    try:
        yield MODULE
    finally:
        sys.path[:] = path
        sys.modules.pop(MODULE, None)
        sys.path_importer_cache.pop(str(folder), None)
