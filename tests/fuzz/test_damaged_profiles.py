"""Damaged profiles: each gives a small copy of papers' models and a training, or is refused in one sentence within seconds."""

import random
from pathlib import Path

import pytest
from support.fuzz import damaged_toml, fault_of_call

from archsearch.proxy import load_profile, profile_names, profile_text, shrink
from archsearch.proxy.training.recipe import rung_steps
from archsearch.report import profile_document, to_json
from archsearch.space import paper, paper_names


def _use(path: Path, rng: random.Random) -> None:
    """What `archsearch proxies FILE` and a run do with a profile before they train."""
    profile = load_profile(str(path))
    to_json(profile_document(profile))
    recipe = profile.recipe
    assert all(0 <= recipe.learning_rate_at(step) <= recipe.learning_rate for step in {0, recipe.steps - 1})
    assert rung_steps(recipe.steps, profile.rungs or (1,)) is not None
    small = shrink(paper(rng.choice(paper_names())), profile.scale, 10)
    assert small.cost().macs > 0


@pytest.mark.slow
def test_1000_damaged_profiles(tmp_path: Path) -> None:
    rng, path = random.Random(11), tmp_path / "mine.toml"
    texts = [profile_text(name) for name in profile_names()]
    faults = []
    for number in range(1000):
        path.write_bytes(damaged_toml(texts[number % len(texts)], rng))
        fault = fault_of_call(lambda: _use(path, rng))
        if fault:
            faults.append(f"{number}: {fault}\n{path.read_bytes()[:3000]!r}")
    assert not faults, f"{len(faults)} faults, such as\n" + "\n".join(faults[:5])
