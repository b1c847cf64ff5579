"""Profiles as files: the shipped ones, the user's own, what is refused, and what makes another proxy id."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.settings import settings_for

from archsearch.errors import UserError
from archsearch.proxy import ProxyTask, choose_profile, load_profile, profile_names, profile_text, shrink
from archsearch.proxy.profiles import parse_profile
from archsearch.space import paper

TEXT = profile_text("fashion-mnist")


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_is_documented_and_allows_the_papers_models(name: str) -> None:
    profile = load_profile(name)
    assert profile.title
    assert profile.name == name
    for model in ("davit_tiny", "van_b2", "pvt_small"):
        small = shrink(paper(model), profile.scale, 10)
        assert small.image_size == profile.recipe.image_size
        divisor = profile.scale.width_divisor
        assert small.stages[-1].width == pytest.approx(paper(model).stages[-1].width / divisor, rel=0.1)


def test_data_and_device_choose_the_profile_unless_it_is_named() -> None:
    assert choose_profile(None, "cuda", None).name == "fashion-mnist"
    assert choose_profile(None, "cpu", "pictures").name == "cpu-small"
    assert choose_profile(None, "cuda", "pictures").name == "imagenet-short"
    with pytest.raises(UserError, match="--proxy imagenet-long: trains on images of your own; say which by --data"):
        choose_profile("imagenet-long", "cpu", None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 200", "step = 200", "unknown key 'step', did you mean 'steps'"),
        ("steps = 200", "steps = 200.5", "recipe.steps is 200.5; it must be int"),
        ("steps = 200", "steps = 0", "steps is 0; allowed is 1 to"),
        ("rungs = [1, 8]", "rungs = [8, 1]", "write positive whole numbers that increase"),
        ('dtype = "float32"', 'dtype = "half"', "recipe.dtype is 'half'; it must be 'float32' or 'bfloat16'"),
        ("image_size = 32", "image_size = true", "profile.image_size is True"),
        ("image_size = 32", "", "'image_size' is missing"),
        ("[recipe]", "[images]\ntrain = 0\n[recipe]", "images.train is 0"),
        ('data = "fashion-mnist"', 'data = "imagenet"', "data is 'imagenet'; allowed is"),
        ("[profile]", "[profile", "not valid TOML"),
        ("stem_stride = 2", "stem_stride = 0", "profile.stem_stride is 0; allowed is 1 to 32"),
        ("stem_stride = 2", "stem_stride = 33", "profile.stem_stride is 33; allowed is 1 to 32"),
        ("width_divisor = 4", "width_divisor = 0", "profile.width_divisor is 0; allowed is 1 to 1024"),
        ("window_numerator = 4", f"window_numerator = 1{'0' * 400}", "profile.window_numerator is 1000"),
        ("window_denominator = 7", "window_denominator = 0", "profile.window_denominator is 0"),
        ("image_size = 32", f"image_size = 1{'0' * 400}", "allowed is 1 to 1024"),
        (
            "learning_rate = 2e-3",
            f"learning_rate = 1{'0' * 400}",
            "learning_rate is inf; allowed is above 0, at most 1000",
        ),
        ("learning_rate = 2e-3", "learning_rate = nan", "learning_rate is nan; allowed is above 0"),
        ("steps = 200", "steps = 200\nseed = -1", "seed is -1; allowed is 0 to"),
        ("rungs = [1, 8]", f"rungs = [1, 0x{'f' * 5000}]", "write positive whole numbers that increase"),
        ("title = ", "title = 3 #", "title is 3; allowed is one line"),
    ],
)
def test_a_wrong_file_is_refused_with_where_what_and_what_is_allowed(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as caught:
        parse_profile(TEXT.replace(old, new, 1), "mine.toml")
    assert "mine.toml" in str(caught.value)
    assert words in str(caught.value)


def test_a_stem_that_leaves_nothing_of_the_small_image_is_refused() -> None:
    profile = parse_profile(TEXT.replace("stem_stride = 2", "stem_stride = 31"), "mine.toml")
    with pytest.raises(UserError, match="stage"):
        shrink(paper("pvt_tiny"), profile.scale, 10)


def test_an_unknown_name_gets_the_nearest_as_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'cpu-small'"):
        load_profile("cpu_small")


def test_every_change_of_a_training_changes_the_proxy_id(tmp_path: Path) -> None:
    """The shipped profile keeps its id; every other value of any field of the recipe or the scale gives another one."""
    shipped = settings_for()["proxy_id"]
    ids = {shipped}
    changes = {
        "steps = 200": "steps = 100",
        "batch_size = 32": "batch_size = 16",
        "learning_rate = 2e-3": "learning_rate = 1e-3",
        'dtype = "float32"': 'dtype = "bfloat16"',
        'augment = "shift"': 'augment = "crop"',
        "[recipe]": "[recipe]\nweight_decay = 0.1",
        "[recipe]\n": "[recipe]\nclip = 2\n",
        "stem_stride = 2 ": "stem_stride = 4 ",
        "width_divisor = 4": "width_divisor = 2",
        "window_numerator = 4": "window_numerator = 7",
    }
    for number, (old, new) in enumerate(changes.items()):
        assert old in TEXT
        path = tmp_path / f"{number}.toml"
        path.write_text(TEXT.replace(old, new, 1))
        ids.add(settings_for(str(path))["proxy_id"])
    assert len(ids) == 1 + len(changes)
    assert shipped == (
        "fashion-mnist-12k@32px/stem2/grids16-8-4-2/windows4of7/width1of4/200steps/batch32/lr0.002/float32/v1"
    )
    same = tmp_path / "same.toml"
    same.write_text(TEXT + "label_smoothing = 0.1\n")
    assert settings_for(str(same))["proxy_id"] == shipped


def test_a_compiled_training_marks_the_proxy_id_and_an_eager_one_leaves_no_trace(tmp_path: Path) -> None:
    settings = {}
    for mode in ("", "eager", "compile", "compile-blocks"):
        path = tmp_path / f"{mode}.toml"
        path.write_text(TEXT + (f'mode = "{mode}"\n' if mode else ""))
        settings[mode] = settings_for(str(path))
    assert settings[""] == settings["eager"]
    assert "mode" not in settings["eager"]["proxy"]["recipe"]
    assert len({each["proxy_id"] for each in settings.values()}) == 3
    assert ProxyTask.from_dict(settings["compile"]).recipe.mode == "compile"


def test_a_profile_brings_its_rungs_and_a_recipe_of_another_size_is_refused() -> None:
    assert load_profile("imagenet-long").rungs == (1, 4, 16)
    recipe = load_profile("fashion-mnist").recipe
    assert replace(recipe, image_size=32) == recipe
    with pytest.raises(UserError, match=r"recipe\.image_size is 64, profile\.image_size 32"):
        parse_profile(TEXT + "image_size = 64\n", "mine.toml")
