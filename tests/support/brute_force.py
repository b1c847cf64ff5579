"""Small spaces, and all their architectures by walking the choices: the oracle of the band's counting."""

import tomllib
from collections.abc import Iterable
from typing import Any

from archsearch.space import Band, Space

TINY = """
name = "tiny"
image_size = 64
[stem]
kind = ["patch", "cross-scale"]
cross-scale = { num_kernels = [2, 3] }
[[stages]]
width = [32, 48]
depth = [1, 2, 3]
block = ["lka", "lsa/gsa", "mlp"]
head_dim = 16
mlp_ratio = [2, 4]
lsa = { window = 7 }
gsa = { reduction = [2, 4] }
lka = { kernel = [9, 21] }
[[stages]]
width = [64, 80]
depth = [1, 2]
downsample = ["patch", "overlapping"]
patch = { norm = "before", pad = false }
block = ["mlp", "lka"]
mlp_ratio = 3
mlp = { conv = false }
lka = { kernel = 21 }
[head]
kind = "pool"
"""

TOKENS = """
name = "tokens"
image_size = 64
[stem]
kind = "patch"
patch = { kernel = 4, pad = false }
[[stages]]
width = 32
depth = [1, 2]
block = ["msg", "wmsa/swmsa", "msg/mlp"]
head_dim = 16
mlp_ratio = 2
msg = { window = [4, 8], shuffle = [1, 2] }
wmsa = { window = 4 }
swmsa = { window = 4 }
mlp = { conv = false }
[[stages]]
width = [32, 48]
depth = 2
downsample = ["messenger", "merging"]
block = ["msg", "sra"]
head_dim = 16
mlp_ratio = 2
msg = { window = [4, 8], shuffle = 1 }
sra = { reduction = [1, 2] }
positions = ["none", "learned"]
learned = { side = [0, 7] }
[[stages]]
width = 64
depth = [1, 2]
downsample = ["messenger", "patch"]
patch = { norm = "before", pad = false }
block = ["sra", "msa"]
head_dim = 16
mlp_ratio = 2
msa = { bias = false }
sra = { reduction = 1 }
positions = "learned"
learned = { class_token = true }
[head]
kind = "token"
"""


def every(space: Space) -> list[tuple[dict[str, Any], int]]:
    """Brute force: all parameter sets of a space with their MACs, by walking the conditional choices depth first."""
    found: list[tuple[dict[str, Any], int]] = []
    open_lists: list[dict[str, Any]] = [{}]
    while open_lists:
        fixed = open_lists.pop()
        pending: list[tuple[str, Any]] = []
        used: dict[str, Any] = {}

        def pick(
            name: str,
            choices: Any,
            fixed: dict[str, Any] = fixed,
            used: dict[str, Any] = used,
            pending: list[Any] = pending,
        ) -> Any:
            if name not in fixed:
                pending.append((name, choices))
            used[name] = fixed.get(name, choices[0])
            return used[name]

        arch = space.sample(pick)
        if pending:
            name, choices = pending[0]
            open_lists.extend({**fixed, name: value} for value in choices)
        else:
            found.append((used, arch.cost().macs))
    return found


def middle(numbers: Iterable[int], unit: str = "MACs", share: float = 0.25) -> Band:
    """A band round the median whose ends are numbers that occur."""
    ordered = sorted(numbers)
    low, high = (round(len(ordered) * part) for part in (0.5 - share, 0.5 + share))
    return Band(ordered[low], ordered[min(high, len(ordered) - 1)], unit)


def small() -> Space:
    """A part of TINY: 240 parameter sets."""
    return Space(tomllib.loads(TINY), "tiny.toml").fixed(
        {"stem.kind": "patch", "stages.1.mlp_ratio": 2, "stages.2.downsample": "patch", "stages.1.width": "48"}
    )
