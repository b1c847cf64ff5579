"""Official checkpoints: every paper's model loads its own repository's state dict and saves it unchanged, and errors name everything else."""

import argparse
import json
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.official import official_input, official_tensor
from support.official_keys import OFFICIAL, Entry
from torch import Tensor, nn

from archsearch import UserError, build, paper, paper_names
from archsearch.models import (
    CheckpointWarning,
    key_pattern,
    load_official,
    official_keys,
    read_checkpoint,
    save_official,
)

DATA = Path(__file__).parents[1] / "data"
COUNTS = json.loads((DATA / "papers.json").read_text())
COUNTS["swin_base_384"] = {"params": 87_903_584}  # by the closed form of tests/models/test_exact.py
KEYS = json.loads((DATA / "keys.json").read_text())
LOGITS = np.load(DATA / "logits_float64.npz")
DTYPES = {"float32": torch.float32, "int64": torch.int64}
State = dict[str, Tensor]


def smallest_of_each_pattern() -> set[str]:
    smallest: dict[str, str] = {}
    for name in sorted(paper_names(), key=lambda name: int(COUNTS[name]["params"])):
        smallest.setdefault(key_pattern(name), name)
    return set(smallest.values())


def one_a_pattern(names: list[str]) -> list[Any]:
    """All names, the smallest of each key pattern in the plain run and the others as slow."""
    plain = smallest_of_each_pattern()
    return [name if name in plain else pytest.param(name, marks=pytest.mark.slow) for name in names]


def index_map(side: int) -> Tensor:
    """Rows of the bias table between the tokens of a square, as the specifications write them."""
    row, column = np.divmod(np.arange(side**2), side)
    index = (row[:, None] - row + side - 1) * (2 * side - 1) + column[:, None] - column + side - 1
    return torch.from_numpy(index)


def shift_mask(side: int, window: int = 7) -> Tensor:
    """Swin's mask of a square map with windows shifted by half a side, window by window and pair by pair."""
    band = np.digitize(np.arange(side), [side - window, side - window // 2])
    region = 3 * band[:, None] + band
    corners = [(top, left) for top in range(0, side, window) for left in range(0, side, window)]
    windows = np.stack([region[top : top + window, left : left + window].reshape(window**2) for top, left in corners])
    return torch.from_numpy(np.where(windows[:, :, None] == windows[:, None], 0, -100).astype(np.float32))


def cheap_tensor(key: str, entry: Entry) -> Tensor:
    """The official value of an entry that the model computes; for any other a number that depends on the key, expanded without memory."""
    shape, dtype, _ = entry
    if key.endswith("relative_position_index"):
        return index_map(math.isqrt(shape[0]))
    if key.endswith("attn_mask"):
        window = math.isqrt(shape[1])
        return shift_mask(window * math.isqrt(shape[0]), window)
    return torch.tensor(zlib.crc32(key.encode()) % 997 + 1, dtype=DTYPES[dtype]).expand(shape)


def cheap_state(name: str) -> State:
    return {key: cheap_tensor(key, entry) for key, entry in OFFICIAL[name]().items()}


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    different = [
        key for key in got if got[key].dtype != expected[key].dtype or not torch.equal(got[key], expected[key])
    ]
    assert different == []


@pytest.fixture(scope="module")
def van() -> State:
    return cheap_state("van_b0")


# --- the oracle itself ----------------------------------------------------------------------------------------------


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def measured(text: str) -> Entry:
    """`96 3 4 4` is a float32 parameter of that shape, `int64 49 49` a buffer."""
    dtype, *sides = text.split() if text[:1].isalpha() else ("float32", *text.split())
    return tuple(map(int, sides)), dtype, "buffer" if text[:1].isalpha() else "parameter"


@pytest.mark.parametrize("name", KEYS)
def test_specified_keys_are_the_official_models(name: str) -> None:
    assert OFFICIAL[name]() == {key: measured(text) for key, text in flat(KEYS[name])}


@pytest.mark.parametrize("name", OFFICIAL)
def test_specified_shapes_sum_to_the_measured_parameters(name: str) -> None:
    shapes = [shape for shape, _, kind in OFFICIAL[name]().values() if kind == "parameter"]
    assert sum(map(math.prod, shapes)) == COUNTS[name]["params"]


# --- keys, both ways ------------------------------------------------------------------------------------------------


def test_every_paper_has_official_keys() -> None:
    assert set(paper_names()) == set(OFFICIAL)


@pytest.mark.parametrize("name", one_a_pattern(paper_names()))
def test_official_keys_and_shapes(name: str) -> None:
    assert official_keys(name) == {key: shape for key, (shape, _, _) in OFFICIAL[name]().items()}


@pytest.mark.parametrize("name", one_a_pattern(paper_names()))
def test_a_state_dict_is_loaded_and_saved_unchanged(name: str) -> None:
    state = cheap_state(name)
    assert_same(save_official(load_official(name, state)), state)


@pytest.mark.parametrize("name", one_a_pattern(["lit_s", "msg_transformer_tiny", "swin_tiny", "van_b0"]))
def test_a_new_model_has_the_official_state(name: str) -> None:
    state, expected = save_official(build(paper(name))), cheap_state(name)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
    }
    computed = [key for key in state if key.endswith(("relative_position_index", "attn_mask"))]
    assert_same({key: state[key] for key in computed}, {key: expected[key] for key in computed})
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_buffers_and_parameters_are_the_official_ones() -> None:
    model = load_official("van_b0", cheap_state("van_b0"))
    kinds = [kind for _, _, kind in OFFICIAL["van_b0"]().values()]
    assert (len(list(model.parameters())), len(list(model.buffers()))) == (
        kinds.count("parameter"),
        kinds.count("buffer"),
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


FIXTURES = [case.removesuffix("@224x224") for case in LOGITS.files if case.endswith("@224x224")]


# test_exact's logits check the keys of the other models too: the same mapping fills them.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "van_b0")) for name in FIXTURES]
)
def test_official_weights_by_official_keys_give_the_official_logits(name: str) -> None:
    state = cheap_state(name)
    for key, (shape, dtype, kind) in OFFICIAL[name]().items():
        if dtype == "float32" and (kind == "parameter" or "running" in key):
            state[key] = official_tensor(key, shape)
    with torch.inference_mode():
        logits = load_official(name, state).double().eval()(official_input(224, 224).double())[0].numpy()
    expected = LOGITS[f"{name}@224x224"]
    assert np.abs(logits - expected).max() <= 1e-9 * np.abs(expected).max()


def test_loading_is_building_and_filling(van: State) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_official("van_b0", van)
    assert torch.equal(torch.get_rng_state(), before), "loading uses no random numbers"
    built = build(paper("van_b0"))
    assert loaded.state_dict().keys() == built.state_dict().keys()
    strides = [(a.stride(), a.dtype, a.device) for a in loaded.parameters()]
    assert strides == [(a.stride(), a.dtype, a.device) for a in built.parameters()]


def test_the_model_shares_nothing_with_the_state_dict() -> None:
    state = {key: tensor.clone() for key, tensor in cheap_state("van_b0").items()}
    model = load_official("van_b0", state)
    saved = save_official(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert_same(state, cheap_state("van_b0"))
    assert_same(saved, state)


def test_half_precision_weights_become_the_models_type(van: State) -> None:
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in van.items()}
    assert_same(save_official(load_official("van_b0", half)), van)


# --- wrappers and files ---------------------------------------------------------------------------------------------


def with_prefix(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def prefixed(state: Mapping[str, Any]) -> dict[str, Any]:
    return with_prefix("module.", state)


OTHER = {"other": torch.zeros(1)}
PREFIX = "the prefix 'module.' of all keys was taken off"


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (prefixed, [PREFIX]),
        (lambda state: {"model": state, "epoch": 299}, []),
        (lambda state: {"state_dict": prefixed(state), "optimizer": {"lr": 0.1}}, [PREFIX]),
        (lambda state: prefixed({"model": state}), [PREFIX]),
        (lambda state: {"state_dict": {"model": prefixed(state)}}, [PREFIX]),
        (lambda state: {"model_ema": state, "epoch": 1}, ["the weights under 'model_ema' were taken"]),
        (lambda state: {"state_dict_ema": prefixed(state)}, ["the weights under 'state_dict_ema' were taken", PREFIX]),
        (lambda state: {"ema": state}, ["the weights under 'ema' were taken"]),
        (
            lambda state: {"model": state, "model_ema": OTHER},
            ["the weights under 'model' were taken, not those under 'model_ema'"],
        ),
        (lambda state: with_prefix("_orig_mod.", state), ["the prefix '_orig_mod.' was taken off"]),
        (lambda state: with_prefix("student.model.", state), ["the prefix 'student.model.' was taken off"]),
        (
            lambda state: {**with_prefix("backbone.", state), **with_prefix("neck.", OTHER)},
            ["the prefix 'backbone.' was taken off, and 1 entries without it were left out"],
        ),
    ],
)
def test_wrappers_and_prefixes_are_removed_and_named(
    wrap: Callable[[State], dict[str, Any]], told: list[str], van: State
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(save_official(load_official("van_b0", wrap(van))), van)
    assert [str(each.message) for each in caught] == [f"van_b0: {sentence}" for sentence in told]
    assert all(each.category is CheckpointWarning for each in caught)


def test_the_average_of_the_weights_is_taken_where_it_is_asked_for(van: State) -> None:
    average = {key: tensor + 1 for key, tensor in van.items()}
    with pytest.warns(CheckpointWarning, match="under 'model_ema' were taken, not those under 'state_dict'"):
        found = load_official("van_b0", {"state_dict": van, "model_ema": average}, weights="ema")
    assert_same(save_official(found), average)
    for none in (van, {"model": van}):
        with pytest.raises(UserError, match="no averaged weights; weights='ema' takes state_dict_ema, model_ema, ema"):
            load_official("van_b0", none, weights="ema")


@pytest.mark.parametrize("name", ["van_b0", "swin_tiny", "davit_tiny", "pvt_tiny"])
def test_features_need_no_head_and_batch_counts_may_be_absent(name: str) -> None:
    torch.manual_seed(0)
    network = build(paper(name)).eval()
    state = save_official(network)
    last_norm = {"van_b0": "norm4.", "davit_tiny": "norms."}.get(name, "norm.")
    without = {key: value for key, value in state.items() if not key.startswith(("head.", last_norm))}
    lacking = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    kept = {**without, **{key: value for key, value in state.items() if key.startswith(last_norm)}}
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        wanted = build(paper(name), features_only=True).eval()
        wanted.load_state_dict(load_official(name, state, features_only=True).state_dict())
        for given in (kept, lacking, *([] if name == "van_b0" else [without])):
            for one, other in zip(
                load_official(name, given, features_only=True).eval()(images), wanted(images), strict=True
            ):
                assert torch.equal(one, other)
        assert torch.equal(load_official(name, lacking).eval()(images), network(images))
    with pytest.raises(UserError, match=r"2 missing: head\.weight, head\.bias"):
        load_official(name, kept)
    if name == "van_b0":
        with pytest.raises(UserError, match=r"2 missing: norm4\.weight, norm4\.bias"):
            load_official(name, without, features_only=True)


@pytest.mark.parametrize("name", ["van_b0", "crossformer_tiny", "litv2_s"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_stem_is_fitted_to_other_channels_as_timm_does_it(name: str, channels: int) -> None:
    from timm.models._manipulate import adapt_input_conv  # late: slow to import

    torch.manual_seed(0)
    state = save_official(build(paper(name)))
    how = "summed" if channels == 1 else f"repeated in turn and scaled by 3/{channels}"
    with pytest.warns(CheckpointWarning, match=f"the stem's weights for 3 channels were {how} for {channels}"):
        model = load_official(name, state, in_chans=channels, image_size=64 if name == "van_b0" else None)
    assert sum(each.numel() for each in model.parameters()) == paper(name).cost(in_chans=channels).params
    found = save_official(model)
    fitted = {key for key, tensor in found.items() if tensor.shape != state[key].shape}
    assert len(fitted) == (4 if name == "crossformer_tiny" else 1)
    for key, tensor in found.items():
        wanted = adapt_input_conv(channels, state[key]) if key in fitted else state[key]
        torch.testing.assert_close(tensor, wanted)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_round_trip_is_bit_identical(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(paper("swin_tiny"))
    file = tmp_path / f"swin{suffix}"
    state = save_official(model, file)
    stored = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)["model"]
    assert_same(stored, state)
    assert_same(read_checkpoint(file), state)
    assert_same(save_official(load_official("swin_tiny", file)), state)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("is_zip", [True, False])
def test_training_arguments_may_stand_beside_the_weights(is_zip: bool, tmp_path: Path, van: State) -> None:
    arguments = argparse.Namespace(lr=1e-3, model="van_b0", milestones=[30, 60], resume=None)
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": van, "args": arguments}, file, _use_new_zipfile_serialization=is_zip)
    assert_same(save_official(load_official("van_b0", str(file))), van)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused(is_zip: bool, tmp_path: Path) -> None:
    target, file = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Bomb(target)}, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"evil\.pth: refused, .* would run posix\.mkdir; .* only its 'model' entry"):
        read_checkpoint(file)
    assert not target.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"would run torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model.bin"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", os.urandom(200)])
def test_a_file_of_something_else_is_a_user_error(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a readable"):
        load_official("van_b0", tmp_path / name)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_official("van_b0", tmp_path / "none.pth")
    with pytest.raises(UserError, match="no file; a checkpoint is a"):
        load_official("van_b0", tmp_path)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content if not name.endswith("/data/0") else bytes(8 * 2**20))
    assert path.stat().st_size < 2**16
    with pytest.raises(UserError, match=r"bomb\.pth: refused, since its .* KiB unpack to 8.00 MiB"):
        load_official("van_b0", path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(van: State, value: float) -> None:
    damaged = van["block1.0.norm1.weight"].clone()
    damaged[3] = value
    with pytest.raises(UserError, match=r"1 of \d+ tensors hold NaN or infinite values: block1\.0\.norm1\.weight"):
        load_official("van_b0", van | {"block1.0.norm1.weight": damaged})


def holds_itself() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    return loop


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([torch.zeros(1)], "a list where a state dict"),
        (torch.zeros(1), "a Tensor where a state dict"),
        (np.zeros(3), "a ndarray where a state dict"),
        ({}, "an empty dict where a state dict"),
        ({"model": {}}, "an empty dict where a state dict"),
        ({"epoch": 3}, "entry 'epoch' is of type int; a state dict holds tensors"),
        ({3: torch.zeros(1)}, "entry 3 is of type Tensor; a state dict holds tensors by name"),
        ({"a": torch.empty(1, device="meta")}, "a is not a dense tensor with values"),
        (holds_itself(), "a dict where a state dict"),
    ],
)
def test_anything_but_a_state_dict_is_a_user_error(found: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^state dict for van_b0: {re.escape(sentence)}"):
        load_official("van_b0", found)


# --- strictness -----------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshaped_keys_are_named(van: State) -> None:
    state = {key: value for key, value in van.items() if not key.startswith("block1.0.attn")}
    state |= {"extra.weight": torch.zeros(1), "block1.2.norm1.weight": torch.zeros(31)}
    state["patch_embed1.norm.num_batches_tracked"] = torch.tensor(1.0)
    state["patch_embed2.proj.bias"] = torch.zeros(64, dtype=torch.complex64)
    with pytest.raises(UserError) as refused:
        load_official("van_b0", state)
    assert str(refused.value) == (
        "state dict for van_b0: no checkpoint of van_b0; "
        "10 missing: block1.0.attn.proj_1.weight, block1.0.attn.proj_1.bias and 8 more; "
        "1 unexpected: extra.weight; "
        "3 misshaped: patch_embed1.norm.num_batches_tracked is () and should be integer (), "
        "block1.2.norm1.weight is (31,) and should be (32,) and 1 more"
    )


def test_shapes_are_the_official_ones(van: State) -> None:
    linear = {key: value.flatten(1) if value.shape[2:] == (1, 1) else value for key, value in van.items()}
    wrong = r"block1\.0\.attn\.proj_1\.weight is \(32, 32\) and should be \(32, 32, 1, 1\)"
    with pytest.raises(UserError, match=wrong):
        load_official("van_b0", linear)


def test_another_papers_checkpoint_is_refused(van: State) -> None:
    with pytest.raises(
        UserError, match=r"no checkpoint of van_b1; 84 unexpected: .* and 82 more; 293 misshaped: .* and 291 more$"
    ):
        load_official("van_b1", van)
    with pytest.raises(UserError, match="unknown paper 'van_b9', did you mean 'van_b"):
        load_official("van_b9", van)


@pytest.mark.parametrize("name", ["swin_tiny", "lit_s", "msg_transformer_tiny"])
def test_index_maps_are_checked_and_not_needed(name: str) -> None:
    state = cheap_state(name)
    weights = {key: value for key, value in state.items() if not key.endswith(("_index", "attn_mask"))}
    assert_same(save_official(load_official(name, weights)), state)
    key = next(key for key in state if key.endswith("relative_position_index"))
    for wrong in (state[key].t(), state[key][:-1], state[key] + 0.5, torch.zeros(0), torch.tensor(1)):
        with pytest.raises(UserError, match=rf"{re.escape(key)} \(.*\) differs from what this model computes"):
            load_official(name, {**state, key: wrong})


def test_masks_are_checked_where_they_belong_to_the_image_size() -> None:
    state, key = cheap_state("swin_tiny"), "layers.0.blocks.1.attn_mask"
    assert load_official("swin_tiny", {**state, key: shift_mask(112)})
    for wrong in (torch.zeros(64, 49, 49), state[key][:, :48, :48]):
        with pytest.raises(UserError, match=f"{key} .* differs"):
            load_official("swin_tiny", {**state, key: wrong})


def test_masks_and_maps_of_another_image_size_are_ignored() -> None:
    state = cheap_state("swin_tiny")
    saved = save_official(load_official("swin_tiny", state, image_size=448))
    changed = [key for key in state if saved[key].shape != state[key].shape]
    assert changed == [key for key in state if key.endswith("attn_mask") and "layers.3" not in key]
    assert torch.equal(saved["layers.0.blocks.1.attn_mask"], shift_mask(112))
    assert torch.equal(saved["layers.3.blocks.1.attn_mask"], shift_mask(14))


def test_tables_of_crossformers_first_releases_are_accepted() -> None:
    state = cheap_state("crossformer_tiny")
    offsets = [(row, column) for row in range(-6, 7) for column in range(-6, 7)]
    for stage, depth in enumerate((1, 1, 8, 6)):
        for block in range(depth):
            key = f"layers.{stage}.blocks.{block}.attn"
            state[f"{key}.biases"] = torch.tensor(offsets, dtype=torch.float32)
            state[f"{key}.relative_position_index"] = index_map(7)
    saved = save_official(load_official("crossformer_tiny", state))
    assert_same(saved, cheap_state("crossformer_tiny"))
    for name, wrong in (("biases", 8 * state[f"{key}.biases"]), ("relative_position_index", index_map(7).t())):
        with pytest.raises(UserError, match=f"{name} .* differs"):
            load_official("crossformer_tiny", {**state, f"{key}.{name}": wrong})
    with pytest.raises(UserError, match=r"1 unexpected: layers\.9\.blocks\.0\.attn\.biases"):
        load_official("crossformer_tiny", {**state, "layers.9.blocks.0.attn.biases": state[f"{key}.biases"]})


# --- classes --------------------------------------------------------------------------------------------------------


def with_classes(state: State, num_classes: int) -> State:
    head = {"head.weight": torch.full((num_classes, 256), 3.0), "head.bias": torch.full((num_classes,), 4.0)}
    return {**state, **head}


def test_the_model_takes_the_checkpoints_number_of_classes(van: State) -> None:
    state = with_classes(van, 37)
    with pytest.warns(
        CheckpointWarning, match=r"van_b0: the checkpoint's classifier has 37 classes .* has 1000"
    ) as warned:
        model = load_official("van_b0", state)
    assert warned[0].filename == __file__
    assert_same(save_official(model), state)


def test_the_checkpoints_own_number_of_classes_gives_no_warning(van: State) -> None:
    state = with_classes(van, 37)
    assert_same(save_official(load_official("van_b0", state, num_classes=37)), state)


@pytest.mark.parametrize(("trained", "wanted"), [(1000, 10), (37, 1000)])
def test_another_number_of_classes_gets_a_new_classifier(trained: int, wanted: int, van: State) -> None:
    state = with_classes(van, trained)
    with pytest.warns(
        CheckpointWarning, match=f"has {trained} classes and {wanted} are asked for: .* new and untrained"
    ):
        model = load_official("van_b0", state, num_classes=wanted)
    saved = save_official(model)
    head = {key: saved.pop(key) for key in ("head.weight", "head.bias")}
    assert_same(saved, {key: value for key, value in state.items() if not key.startswith("head.")})
    assert head["head.weight"].shape == (wanted, 256)
    assert head["head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not head["head.bias"].any()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, wanted)


def test_numbers_of_classes_below_one_are_refused(van: State) -> None:
    for wrong in (0, -3):
        with pytest.raises(UserError, match=f"num_classes is {wrong}"):
            load_official("van_b0", van, num_classes=wrong)


@pytest.mark.parametrize("num_classes", [None, 10])
def test_a_checkpoint_without_classifier_is_refused(num_classes: int | None, van: State) -> None:
    trunk = {key: value for key, value in van.items() if not key.startswith("head.")}
    with pytest.raises(UserError, match=r"2 missing: head\.weight, head\.bias"):
        load_official("van_b0", trunk, num_classes=num_classes)


# --- image sizes ----------------------------------------------------------------------------------------------------


def test_whole_map_tables_are_resized_by_the_papers_rule() -> None:
    key = "layers.2.blocks.4.attn.relative_position_bias_table"
    state = cheap_state("lit_s")
    state[key] = table = torch.randn(729, 12, generator=torch.Generator().manual_seed(0))
    saved = save_official(load_official("lit_s", state, image_size=(192, 256)))
    for head in range(12):
        image = table[:, head].reshape(1, 1, 27, 27)
        expected = nn.functional.interpolate(image, size=(23, 31), mode="bicubic", align_corners=False)
        assert torch.equal(saved[key][:, head].reshape(23, 31), expected[0, 0])
    changed = {key.rpartition(".")[2] for key in state if saved[key].shape != state[key].shape}
    assert changed == {"relative_position_bias_table", "relative_position_index"}
    assert_same(save_official(load_official("lit_s", saved, image_size=(192, 256))), saved)
    for wrong in (saved, {**state, key: table[:, 0]}, {**state, key: torch.tensor(1.0)}):
        with pytest.raises(UserError, match="relative_position_bias_table is "):
            load_official("lit_s", wrong)
        with pytest.raises(UserError, match="relative_position_bias_table is "):
            load_official("lit_s", wrong, image_size=448)
    with pytest.raises(UserError, match=r"relative_position_index .* differs"):
        load_official("lit_s", saved, image_size=(256, 192))


def resized(table: Tensor, side: int) -> Tensor:
    """A square table for windows of another side: each head's grid of offsets as an image, bicubic."""
    trained, heads = math.isqrt(len(table)), table.shape[1]
    columns = []
    for head in range(heads):
        grid = table[:, head].reshape(1, 1, trained, trained)
        out = nn.functional.interpolate(grid, size=(2 * side - 1,) * 2, mode="bicubic", align_corners=False)
        columns.append(out.flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", ["swin_tiny", "msg_transformer_tiny"])
def test_tables_of_other_windows_are_resized_and_told(name: str) -> None:
    """A checkpoint with windows of 12, its index maps and masks with it, as Swin's of 384 pixels is."""
    state, generator = cheap_state(name), torch.Generator().manual_seed(0)
    trained = dict(state)
    for key, tensor in state.items():
        if key.endswith("relative_position_bias_table"):
            trained[key] = torch.randn(23 * 23, tensor.shape[1], generator=generator)
        elif key.endswith("relative_position_index"):
            trained[key] = index_map(12)
        elif key.endswith("attn_mask"):
            trained[key] = shift_mask(12 * math.isqrt(len(tensor)), 12)
    count = sum(key.endswith("bias_table") for key in state)
    told = f"tables of relative position bias for 12x12 tokens were resized to 7x7, {count} of them"
    with pytest.warns(CheckpointWarning, match=told) as warned:
        saved = save_official(load_official(name, trained))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    tables = {key for key in state if key.endswith("bias_table")}
    assert_same({key: saved[key] for key in tables}, {key: resized(trained[key], 7) for key in tables})
    assert_same({key: saved[key] for key in state.keys() - tables}, {key: state[key] for key in state.keys() - tables})
    key = min(tables)
    for rows in (100, 168):
        both = rf"{re.escape(key)} is \({rows}, \d+\), no table of a square window, .* for 7x7 tokens, of 169 rows"
        with pytest.raises(UserError, match=both):
            load_official(name, {**state, key: torch.zeros(rows, state[key].shape[1])})


def test_a_small_image_resizes_the_tables_of_the_windows_that_it_makes_smaller() -> None:
    state, key = cheap_state("swin_tiny"), "layers.3.blocks.1.attn.relative_position_bias_table"
    state[key] = torch.randn(169, 24, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        CheckpointWarning, match="^swin_tiny: tables of .* for 7x7 tokens were resized to 6x6, 2 of them$"
    ):
        saved = save_official(load_official("swin_tiny", state, image_size=(192, 256)))
    assert torch.equal(saved[key], resized(state[key], 6))
    # 64 windows as at 224 pixels, in other rows, and none shifted in stage 3.
    with pytest.warns(CheckpointWarning, match="resized to 4x4"):
        assert load_official("swin_tiny", state, image_size=(112, 448))
    changed = [key for key in state if key.endswith("bias_table") and saved[key].shape != state[key].shape]
    assert changed == [key.replace("blocks.1", f"blocks.{block}") for block in (0, 1)]


def test_a_checkpoint_of_another_whole_map_is_resized_and_told() -> None:
    state, key = cheap_state("lit_s"), "layers.2.blocks.4.attn.relative_position_bias_table"
    table = torch.randn(47 * 47, 12, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        CheckpointWarning, match="^lit_s: tables of .* for 24x24 tokens were resized to 14x14, 1 of them$"
    ):
        saved = save_official(load_official("lit_s", {**state, key: table}))
    assert torch.equal(saved[key], resized(table, 14))


def test_lit_ti_has_no_rule_to_resize_its_positions() -> None:
    state = cheap_state("lit_ti")
    reason = r"pos_embed1 holds the learned positions of a map of 56x56, .* makes one of 48x64; .* no rule to resize"
    with pytest.raises(UserError, match=reason):
        load_official("lit_ti", state, image_size=(192, 256))
    own = {
        key: value[:, :1].expand(1, (3072, 768, 192, 49)[int(key[-1]) - 1], -1)
        for key, value in state.items()
        if "pos_" in key
    }
    assert load_official("lit_ti", {**state, **own}, image_size=(192, 256))
    with pytest.raises(UserError, match=r"pos_embed1 is \(1, 9, 64\) and should be \(1, 3072, 64\)"):
        load_official("lit_ti", {**state, **own, "pos_embed1": torch.zeros(1, 9, 64)}, image_size=(192, 256))


def test_pvt_keeps_its_tables_at_every_size() -> None:
    state = cheap_state("pvt_tiny")
    assert_same(save_official(load_official("pvt_tiny", state, image_size=(192, 256))), state)


def test_a_size_the_paper_cannot_take_is_refused_as_by_build() -> None:
    with pytest.raises(
        UserError, match="even sides, got 50x65; of the multiples of 32, 192x256 and 224x288 would work"
    ):
        load_official("crossformer_tiny", cheap_state("crossformer_tiny"), image_size=(200, 260))


# --- save_official --------------------------------------------------------------------------------------------------


def test_only_papers_models_have_official_keys() -> None:
    with pytest.raises(
        UserError, match="a Linear has no official keys; give the network that load_official or build made"
    ):
        save_official(nn.Linear(2, 2))
    van = paper("van_b0")
    with pytest.raises(UserError, match="the model 'mine' has no official keys; known: "):
        save_official(build(replace(van, name="mine")))
    shallow = replace(van, stages=(*van.stages[:3], replace(van.stages[3], depth=1)))
    with pytest.raises(UserError, match="called van_b0 and has other layers"):
        save_official(build(shallow))
    headless = build(van)
    headless.head.fc = nn.Identity()
    with pytest.raises(UserError, match="the model 'van_b0' has no official keys"):
        save_official(headless)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    model = build(paper("van_b0"))
    with pytest.raises(UserError, match=r"written as \.safetensors or \.pth, not '\.onnx'"):
        save_official(model, tmp_path / "van.onnx")
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(UserError, match="cannot be written"):
            save_official(model, tmp_path / "none" / f"van{suffix}")
    assert list(tmp_path.iterdir()) == []
