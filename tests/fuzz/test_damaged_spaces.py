"""Damaged spaces: each is an architecture or a set of them, or is refused in one sentence within seconds."""

import random
from pathlib import Path

import pytest
from support.fuzz import damaged_toml, fault_of_call

from archsearch.report import SpaceQuery, sample_archs, space_document
from archsearch.space import Arch, load_space, paper_names, spaces_folder

_TINY = (Path(__file__).parents[1] / "data" / "tiny.toml").read_text()
_COUNTED = 12  # every so many of the good ones is counted, which takes longest


def _texts() -> list[str]:
    """The spaces that are damaged: a tiny one as often as all papers' models together, the default space now and then."""
    papers = [(spaces_folder() / "papers" / f"{name}.toml").read_text() for name in paper_names()]
    everything = (Path(__file__).parents[1] / "data" / "everything.toml").read_text()
    return [*papers, *[_TINY] * len(papers), everything, (spaces_folder() / "hybrid.toml").read_text()]


def _use(path: Path, rng: random.Random, *, is_counted: bool) -> None:
    """What every command does with a space."""
    space = load_space(path)
    arch = space.sample(lambda name, choices: rng.choice(list(choices)))
    assert Arch.from_dict(arch.to_dict()) == arch
    assert all((repr(space), repr(arch), arch.arch_id, arch.cost().macs, space.size))
    if is_counted:
        query = SpaceQuery(space=str(path), budget_macs=arch.cost().macs, tolerance=rng.choice((0, 0.05, 0.9)))
        assert space_document(query)["architectures"] >= 1
        assert sample_archs(query, 3, seed=0)[0].count >= 1


@pytest.mark.slow
def test_3000_damaged_spaces(tmp_path: Path) -> None:
    rng, texts, path = random.Random(7), _texts(), tmp_path / "mine.toml"
    faults = []
    for number in range(3000):
        path.write_bytes(damaged_toml(texts[number % len(texts)], rng))
        fault = fault_of_call(lambda: _use(path, rng, is_counted=number % _COUNTED == 0))  # noqa: B023  # called at once
        if fault:
            faults.append(f"{number}: {fault}\n{path.read_bytes()[:3000]!r}")
    assert not faults, f"{len(faults)} faults, such as\n" + "\n".join(faults[:5])
