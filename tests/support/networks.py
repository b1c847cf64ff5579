"""The networks that the tests of built models run on: papers' models and random hybrids, by name."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from archsearch import Arch, load_space, paper, paper_names
from archsearch.space import propose

# One model of each family, and of each head.
FAMILIES = (
    *("crossformer_tiny", "davit_tiny", "lit_ti", "lit_s", "litv2_s", "msg_transformer_tiny", "pvt_tiny", "swin_tiny"),
    *("twins_pcpvt_small", "twins_svt_small", "van_b0"),
)
# Two small networks that have every block, downsample, head and kind of token between them: each family for a fifth of the time.
MIXED = ("mixed-a", "mixed-b")
_HYBRIDS = 50
_DATA = Path(__file__).parents[1] / "data"


def arch_of(name: str) -> Arch:
    """A paper's model, one of MIXED, or `hybrid-SEED` of the space of hybrids; `NAME-short` has two blocks a stage at most: all but the repeats."""
    whole = name.removesuffix("-short")
    if whole.startswith("hybrid-"):
        rng = random.Random(int(whole.removeprefix("hybrid-")))
        arch = propose(load_space("hybrid"), {}, rng)[1]
    elif whole in MIXED:
        arch = load_space(str(_DATA / f"{whole.replace('-', '_')}.toml")).arch()
    else:
        arch = paper(whole)
    if whole == name:
        return arch
    return replace(arch, stages=tuple(replace(stage, depth=min(stage.depth, 2)) for stage in arch.stages))


def parametrize_names(
    metafunc: pytest.Metafunc, names: Sequence[str], quick: Sequence[str], *, all_short: bool = False
) -> None:
    """The argument `name`: of `names`, all slow but for `quick`; with `--whole` every paper's model and 50 hybrids, all slow."""
    if metafunc.config.getoption("--whole"):
        end = "-short" if all_short else ""
        names, quick = [*paper_names(), *(f"hybrid-{seed}" for seed in range(_HYBRIDS))], []
        names = [name + end for name in names]
    metafunc.parametrize(
        "name", [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]
    )
