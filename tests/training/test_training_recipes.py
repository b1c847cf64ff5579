"""Recipes: every paper's is whole, says its source, and is found for its models and for what shares its blocks."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import archsearch
from archsearch.errors import UserError
from archsearch.space import load_space, paper, paper_names, paper_table
from archsearch.training import TrainingRecipe, choose_recipe, load_recipe, recipe_names

FOLDER = Path(archsearch.__file__).parent / "training" / "recipes"
# What the specifications state, figure by figure.
STATED = {
    "davit": {"epochs": 300, "cooldown_epochs": 10, "batch_size": 1024, "learning_rate": 1e-3, "clip": 1.0},
    "lit": {"warmup_epochs": 20, "clip": 5.0, "repeats": 1, "scale_ends": True, "offset_rate": 0.01},
    "lit_ti": {"warmup_epochs": 5, "clip": 0.0, "learning_rate": 5e-4 * 1024 / 512},
    "litv2_384": {"epochs": 30, "weight_decay": 1e-8, "learning_rate": 2e-5, "batch_size": 512},
    "msg_transformer": {"warmup_epochs": 20, "clip": 5.0, "warmup_learning_rate": 2 * 5e-7, "min_learning_rate": 2 * 5e-6},
    "twins_svt": {"batch_size": 1024, "learning_rate": 1e-3, "min_learning_rate": 1e-5},
}  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_a_paper_writes_out_every_value_and_its_source(name: str) -> None:
    document = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    needed = {item.name for item in fields(TrainingRecipe)} - {
        "name",
        "drop_path_rate",
        "cooldown_epochs",
        "offset_rate",
    }
    assert needed <= document.keys()
    assert "arXiv" in document["source"]
    assert {key: getattr(load_recipe(name), key) for key in STATED.get(name, {})} == pytest.approx(STATED.get(name, {}))


def test_every_model_has_one_recipe_with_its_published_drop_path() -> None:
    owners = [
        model for name in recipe_names() for model in tomllib.loads((FOLDER / f"{name}.toml").read_text())["models"]
    ]
    assert sorted(owners) == paper_names()
    for model in paper_names():
        chosen = choose_recipe(paper(model))
        assert chosen.model == model
        published = paper_table(model).get("drop_path_rate")
        assert published is None or chosen.recipe.drop_path_rate == published
    assert [choose_recipe(paper(f"pvt_{size}")).recipe.clip for size in ("tiny", "medium")] == [0.0, 1.0]


def test_a_hybrid_gets_the_recipe_of_the_paper_whose_blocks_it_shares_most() -> None:
    space = load_space("hybrid")
    picks = {"block": "hilo", "depth": None}

    def pick(name: str, choices: list[object]) -> object:
        wanted = "lka" if name == "stages.1.block" else picks.get(name.rpartition(".")[2])
        return wanted if wanted in choices else choices[0]

    arch = space.sample(pick)  # type: ignore[arg-type]  # the choices' types are of no matter here
    chosen = choose_recipe(arch)
    assert chosen.recipe.name == "litv2"
    hilo = sum(stage.depth for stage in arch.stages if stage.block == "hilo")
    assert chosen.reason.startswith(f"{hilo} of its {sum(stage.depth for stage in arch.stages)} blocks")
    assert choose_recipe(arch, "van").recipe.name == "van"
    assert choose_recipe(arch, "pvt_large").recipe.clip == 1.0


def test_rates_grow_with_the_batch_and_warm_up_keeps_its_share() -> None:
    recipe = load_recipe("davit").fitted(epochs=31, batch_size=512, learning_rate=None)
    assert (recipe.epochs, recipe.cooldown_epochs, recipe.learning_rate) == (30, 1, 5e-4)
    assert recipe.warmup_epochs == pytest.approx(0.5)
    assert recipe.min_learning_rate == 1e-5
    assert load_recipe("lit").fitted(epochs=None, batch_size=512, learning_rate=None).min_learning_rate == 5e-6
    assert load_recipe("davit").fitted(epochs=None, batch_size=512, learning_rate=2e-3).learning_rate == 2e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epocs = 3", "unknown key 'epocs', did you mean 'epochs'"),
        ("epochs = 'three'", "epochs is 'three'; it must be int"),
        ("epochs = 0", "epochs is 0; allowed is a whole number from 1"),
        ("erasing = 2", "erasing is 2; allowed is 0 to 1"),
        ("models = 3", "models.models is 3"),
        ("models = { van_b9 = {} }", "models.van_b9"),
        ("epochs =", "not valid TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_recipe(str(tmp_path / "mine.toml"))
