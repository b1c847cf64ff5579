"""The grammar of space files: what is allowed, and one clear sentence for everything else."""

import dataclasses
import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch import Arch, UserError, build, load_space, paper, paper_names
from archsearch.cli import main
from archsearch.space import Space, paper_table, propose, spaces_folder

SMALL = """
name = "small"
image_size = 64
num_classes = 10
[stem]
kind = "patch"
[[stages]]
width = [32, 64]
depth = [1, 2]
block = ["mlp", "hilo", "lsa/gsa"]
head_dim = 32
hilo = { window = [2, 4] }
[[stages]]
width = 64
depth = 1
downsample = ["patch", "deformable"]
block = "lka"
mlp_ratio = 4
"""


def small(**changes: Any) -> dict[str, Any]:
    return {**tomllib.loads(SMALL), **changes}


def first_stage(**changes: Any) -> dict[str, Any]:
    document = tomllib.loads(SMALL)
    table = {**document["stages"][0], **changes}
    return {
        **document,
        "stages": [{key: value for key, value in table.items() if value is not None}, document["stages"][1]],
    }


def rows_of_html(text: str) -> list[list[str]]:
    """The cells of a table, which must be well-formed."""
    return [[cell.text or "" for cell in row] for row in ElementTree.fromstring(text).iter("tr")]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_pick_from_the_default_space_gives_a_network(data: st.DataObject) -> None:
    space = load_space("hybrid")
    arch = space.sample(lambda name, choices: data.draw(st.sampled_from(list(choices)), label=name))
    assert arch.cost().macs > 0
    assert Arch.from_dict(arch.to_dict()) == arch


def test_pick_is_asked_once_a_name_and_only_where_there_is_a_choice() -> None:
    space = load_space("hybrid")
    asked: list[str] = []

    def pick(name: str, choices: Any) -> Any:
        asked.append(name)
        assert len(choices) >= 2
        assert tuple(choices) == space.parameters()[name]
        return choices[-1]

    space.sample(pick)
    assert len(asked) == len(set(asked))
    assert "stages.3.lka.kernel" in asked


def test_names_of_fields_carry_their_block_and_shared_fields_their_stage() -> None:
    names = Space(small(), "small.toml").parameters()
    assert names["stages.1.hilo.window"] == (2, 4)
    assert names["stages.1.mlp_ratio"] == (2.0, 3.0, 4.0)
    assert names["stages.2.downsample"] == ("patch", "deformable")
    assert "stages.2.mlp_ratio" not in names


def test_size_counts_the_parameter_sets_that_differ() -> None:
    space = Space(small(stages=[first_stage(block=["mlp", "hilo"], width=32)["stages"][0]]), "small.toml")
    every: set[str] = set()
    rng = random.Random(0)
    for _ in range(4000):
        picked, _ = propose(space, {}, rng)
        every.add(repr(sorted(picked.items())))
    assert space.size == len(every)


def test_two_architectures_with_the_same_layers_are_equal_under_any_name() -> None:
    document = paper("davit_tiny").to_dict()
    renamed = Arch.from_dict({**document, "name": "other"})
    assert renamed == paper("davit_tiny")
    assert renamed.arch_id == paper("davit_tiny").arch_id
    wider = Arch.from_dict({**document, "num_classes": 10})
    assert wider.arch_id != renamed.arch_id
    assert len({renamed, paper("davit_tiny"), wider}) == 2


def test_arch_ids_are_the_same_in_every_process_and_version() -> None:
    """Results are matched by arch_id: these may only change on purpose."""
    assert paper("davit_tiny").arch_id == "e56702ece9d0"
    assert paper("van_b2").arch_id == "f54416b3a716"
    assert len({paper(name).arch_id for name in paper_names()}) == len(paper_names()) == 39


def test_every_shipped_paper_has_its_published_figures_and_nothing_open() -> None:
    for name in paper_names():
        space = load_space(name)
        assert space.is_single
        assert {"family", "title", "arxiv", "venue", "repository", "source"} <= set(space.paper)
        assert space.name == name


BAD = {
    "unknown block": (first_stage(block=["mlp", "hillo"]), ["stages.1.block", "'hillo'", "did you mean 'hilo'"]),
    "unknown half": (first_stage(block="sda/ldaa"), ["stages.1.block", "'ldaa'", "did you mean 'lda'"]),
    "block twice in a/b": (first_stage(block="lsa/lsa"), ["stages.1.block", "twice"]),
    "unknown key": (first_stage(widht=32), ["stages.1.widht", "did you mean 'width'"]),
    "misspelt needed key": (
        {**small(), "stages": [{"widht": 32, "depth": 1, "block": "mlp"}]},
        ["stages.1.widht", "unknown key, did you mean 'width'?"],
    ),
    "misspelt kind": (small(stem={"knid": "patch"}), ["stem.knid", "did you mean 'kind'?"]),
    "width for no own choice": (
        small(stages=[{"width": 100, "depth": 1, "block": "hilo"}]),
        [
            "stages.1.width: ",
            "head_dim 32 does not divide the width 100",
            "write stages.1.head_dim, or take another width",
        ],
    ),
    "map for no own choice": (
        small(image_size=16, stages=[{"width": 64, "depth": 1, "block": "msg"}]),
        ["stages.1.block: ", "fits msg here", "write stages.1.msg.window, or take another layer"],
    ),
    "endless depth": (first_stage(depth=999_999_999), ["stages.1.depth", "999999999 is out of range", "0 to 1000"]),
    "huge width": (first_stage(width=[64, 10**400]), ["stages.1.width", "out of range", "0 to 65536"]),
    "a number beyond Python's": (first_stage(width=10**5000), ["stages.1.width", "over 4,300 digits", "0 to 65536"]),
    "no finite number": (first_stage(mlp_ratio=float("inf")), ["stages.1.mlp_ratio", "inf is out of range"]),
    "not a number": (first_stage(mlp_ratio=float("nan")), ["stages.1.mlp_ratio", "nan is out of range"]),
    "kernels of 2^999": (
        small(stem={"kind": "cross-scale", "cross-scale": {"num_kernels": 1000}}),
        ["stem", "up to 16"],
    ),
    "a stem that does not move": (small(stem={"kind": "patch", "patch": {"stride": 0}}), ["stride 0 is not positive"]),
    "a path for a name": (small(name="../up"), ["name '../up' is no name"]),
    "an escape for a name": (small(name="\x1b[31m"), ["is no name"]),
    "a long name": (small(name="a" * 101), ["is no name", "up to 100"]),
    "a paper of another kind": (small(paper=3), ["paper must be a table"]),
    "many stages": (small(stages=small()["stages"] * 9), ["stages", "at most 16"]),
    "unknown top key": (small(image_sise=64), ["image_sise", "did you mean 'image_size'"]),
    "unknown field": (first_stage(hilo={"windows": 2}), ["stages.1.hilo.windows", "did you mean 'window'"]),
    "idle shared field": (
        small(stages=[{"width": 32, "depth": 1, "block": "mlp", "head_dim": 32}]),
        ["stages.1.head_dim", "no block"],
    ),
    "table of an absent block": (first_stage(lka={"kernel": 21}), ["stages.1.lka", "no choice of this stage"]),
    "empty choices": (first_stage(width=[]), ["stages.1.width", "empty"]),
    "duplicate choices": (first_stage(depth=[1, 2, 1]), ["stages.1.depth", "1 stands twice"]),
    "duplicate after conversion": (first_stage(mlp_ratio=[4, 4.0]), ["stages.1.mlp_ratio", "twice"]),
    "width not divisible": (first_stage(width=[32, 80]), ["stages.1.head_dim", "32", "80"]),
    "wrong type": (first_stage(width="wide"), ["stages.1.width", "'wide' is not a whole number"]),
    "a bool is no number": (first_stage(depth=True), ["stages.1.depth", "True is not a whole number"]),
    "a float is no width": (first_stage(width=32.5), ["stages.1.width", "32.5"]),
    "negative": (first_stage(mlp_ratio=-1), ["stages.1.mlp_ratio", "-1"]),
    "zero depth": (first_stage(depth=0), ["stages.1.depth", "not positive"]),
    "window impossible": (first_stage(hilo={"window": 0}), ["stages.1.hilo.window", "0"]),
    "reduction above the map": (first_stage(gsa={"reduction": [2, 32]}), ["stages.1.gsa.reduction", "32"]),
    "window above the map": (first_stage(hilo={"window": [4, 18]}), ["stages.1.hilo.window", "18", "16x16", "1 to 16"]),
    "interval above the map": (
        first_stage(block="sda/lda", lda={"interval": 17}, hilo=None),
        ["stages.1.lda.interval", "17", "16x16"],
    ),
    "interval impossible": (
        first_stage(block="sda/lda", lda={"interval": 0}, hilo=None),
        ["stages.1.lda.interval", "0"],
    ),
    "missing width": ({**small(), "stages": [{"depth": 1, "block": "mlp"}]}, ["stages.1.width", "missing"]),
    "missing downsample": (
        small(stages=[small()["stages"][0], {"width": 64, "depth": 1, "block": "mlp"}]),
        ["stages.2.downsample", "missing"],
    ),
    "downsample in stage 1": (first_stage(downsample="patch"), ["stages.1.downsample", "unknown key"]),
    "no stages": (small(stages=[]), ["stages"]),
    "stages is a table": (small(stages={"width": 1}), ["stages"]),
    "unknown stem": (small(stem={"kind": "pach"}), ["stem.kind", "did you mean 'patch'"]),
    "list for a scalar": (small(num_classes=[10, 100]), ["num_classes", "a list is not allowed"]),
    "three sides": (small(image_size=[64, 96, 128]), ["image_size", "a list of 3", "[height, width]"]),
    "a side of zero": (small(image_size=[64, 0]), ["image_size", "not positive"]),
    "half a side": (small(image_size=[64, 96.5]), ["image_size", "not a whole number"]),
    "no channels": (small(in_chans=0), ["in_chans", "not positive"]),
    "channels to choose from": (small(in_chans=[3, 4]), ["in_chans", "a list is not allowed"]),
    "too many channels": (small(in_chans=4097), ["in_chans", "0 to 4096"]),
    "unknown positions": (
        first_stage(positions="lerned"),
        ["stages.1.positions", "did you mean 'learned'", "none, learned"],
    ),
    "a table of positions that no stage has": (first_stage(learned={"side": 7}), ["stages.1.learned", "no choice"]),
    "a class token beside a block for maps": (
        first_stage(block="gsa", hilo=None, positions="learned", learned={"class_token": True}),
        ["stages.1.block", "gsa works on a map alone"],
    ),
    "a class token and a reduction": (
        first_stage(block="sra", hilo=None, sra={"reduction": 2}, positions="learned", learned={"class_token": True}),
        ["stages.1.sra.reduction", "2", "1 is allowed"],
    ),
    "a token head without a token": (
        small(head={"kind": "token"}),
        ["head.kind", "one token", "takes a class token"],
    ),
    "messengers beside a block for maps": (
        first_stage(block="msg/hilo", msg={"window": 4}),
        ["stages.1.block", "'msg/hilo'", "hilo works on a map alone"],
    ),
    "messenger windows that do not tile beside attention to all": (
        first_stage(block="msg/msa", hilo=None, msg={"window": 5}, msa={"bias": False}),
        ["5x5", "16x16", "msa attends to every position"],
    ),
    "regions larger than the map with one of the choices of windows": (
        first_stage(block="msg", hilo=None, msg={"window": [4, 8], "shuffle": [1, 4]}),
        ["stages.1.msg.shuffle", "4x4 windows of 8x8", "16x16"],
    ),
    "odd map at a cross-scale merging": (
        {
            **small(image_size=60),
            "stages": [small()["stages"][0], {"width": 64, "depth": 1, "block": "mlp", "downsample": "cross-scale"}],
        },
        ["image_size", "15x15"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_spaces_are_one_sentence_with_file_key_and_what_is_allowed(case: str) -> None:
    document, words = BAD[case]
    with pytest.raises(UserError) as caught:
        Space(document, "my.toml")
    sentence = str(caught.value)
    assert sentence.startswith("my.toml: ")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such space file"):
        load_space(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="did you mean 'davit_tiny'"):
        load_space("davit_tinny")
    broken = tmp_path / "broken.toml"
    broken.write_text("[stem\nkind=")
    with pytest.raises(UserError, match=r"broken\.toml: not valid TOML.*line 1"):
        load_space(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_space(broken)
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be read as a space file: it is a folder"):
        load_space(folder)


def test_files_of_other_editors_and_systems(tmp_path: Path) -> None:
    """A byte order mark and CR LF are read as if they were not there; everything that is no small file is named."""
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_space(path).text == SMALL
    path.write_text(SMALL, encoding="utf-16")
    with pytest.raises(UserError, match="it is UTF-16; save it as UTF-8"):
        load_space(path)
    path.write_text(SMALL + "#" * 200_000)
    with pytest.raises(UserError, match="at most 200000 are allowed"):
        load_space(path)
    path.write_text(f"image_size = {'9' * 5000}\n")
    with pytest.raises(UserError, match="not valid TOML: Exceeds the limit"):
        load_space(path)
    for name, target, words in (("zero", "/dev/zero", "a device"), ("loop", "loop.toml", "symbolic links")):
        (tmp_path / f"{name}.toml").symlink_to(target)
        with pytest.raises(UserError, match=words):
            load_space(tmp_path / f"{name}.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match="it is a pipe"):
        load_space(tmp_path / "pipe.toml")


def test_the_name_of_a_space_from_its_file_can_name_a_folder() -> None:
    document = {key: value for key, value in small().items() if key != "name"}
    assert Space(document, "spaces/my space.toml").name == "my space"
    assert Space(document, "spaces/two\nlines.toml").name == "two_lines"
    assert len(Space(document, f"{'a' * 250}.toml").name) == 100


def test_an_open_space_is_no_architecture() -> None:
    with pytest.raises(UserError, match=r"hybrid: stem\.kind has 3 choices"):
        load_space("hybrid").arch()
    document = paper("van_b0").to_dict()
    document["stages"][0]["depth"] = [3, 4]
    with pytest.raises(UserError, match=r"stages\.1\.depth is open"):
        Arch.from_dict(document)


def test_an_input_size_that_a_layer_does_not_fit_is_refused_before_building() -> None:
    with pytest.raises(
        UserError,
        match=r"stem.* smaller than the stem's stride 4; of the multiples of 32, 32x512 and 32x544 would work",
    ):
        build(paper("litv2_s"), image_size=(3, 520))
    with pytest.raises(
        UserError, match="even sides, got 28x25; of the multiples of 32, 224x192 and 224x224 would work"
    ):
        build(paper("crossformer_tiny"), image_size=(224, 200))


def test_default_space_holds_papers_of_the_class() -> None:
    """CrossFormer-S and LITv2-S are members of the default space at 224 px, found by replaying their choices."""
    for name in ("crossformer_small", "litv2_s"):
        target = paper(name)
        wanted = load_space(name).plan
        picks: dict[str, Any] = {}
        for stage in wanted.stages:
            picks[stage.entry_name] = stage.entry[0]
            picks.update(
                {f"stages.{stage.number}.{key}": getattr(stage, key)[0] for key in ("width", "depth", "block")}
            )
            for layer in (*stage.entries.values(), *stage.blocks.values()):
                picks.update({layer.names[key]: values[0] for key, values in layer.choices.items()})
        assert propose(load_space("hybrid"), picks, random.Random(0))[1] == target


def test_fixed_names_leave_the_architectures_that_have_these_values() -> None:
    space = Space(small(), "small.toml")
    fixed = space.fixed(
        {"stages.1.width": "64", "stages.1.hilo.window": 4, "stages.2.downsample": "patch", "stages.2.depth": "1"}
    )
    assert fixed.fixed_names == {
        "stages.1.width": 64,
        "stages.1.hilo.window": 4,
        "stages.2.downsample": "patch",
        "stages.2.depth": 1,
    }
    assert "stages.1.hilo.alpha" in fixed.parameters()
    assert not set(fixed.fixed_names) & set(fixed.parameters())
    rng, blocks = random.Random(0), set()
    for _ in range(60):
        _, arch = propose(fixed, {}, rng)
        stage = arch.stages[0]
        blocks.add(stage.block)
        assert (stage.width, arch.stages[1].entry.kind) == (64, "patch")
        assert stage.block != "hilo" or getattr(stage.blocks[0], "window", None) == 4
    assert blocks == {"mlp", "hilo", "lsa/gsa"}
    again = fixed.fixed({"stages.1.block": "mlp"})
    assert set(again.fixed_names) == {*fixed.fixed_names, "stages.1.block"}
    assert not any("hilo" in name for name in again.parameters())
    assert space.size > fixed.size > again.size


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stages.1.blok", "mlp", ["'stages.1.blok'", "did you mean 'stages.1.block'"]),
        ("stages.1.block", "hillo", ["stages.1.block: hillo", "did you mean 'hilo'", "mlp, hilo, lsa/gsa"]),
        ("stages.1.width", "70", ["70", "nearest is 64", "32, 64"]),
        ("stages.1.width", "wide", ["wide", "32, 64"]),
        ("stages.1.depth", True, ["true", "1, 2"]),
    ],
)
def test_a_name_or_value_that_cannot_be_fixed_is_named_with_the_nearest(
    name: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        Space(small(), "small.toml").fixed({name: value})
    for word in ["small.toml", *words]:
        assert word in str(caught.value)


def test_space_and_sample_commands_give_the_same_counts(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    asked = [str(path), "--fix", "stages.1.block=hilo", "--budget", "12M", "--tolerance", "40%", "--params", "0-1M"]
    document = json.loads(_run(["space", *asked, "--json"]))
    assert document["architectures"] <= document["parameter_sets"]
    assert document["band"]["architectures"] == round(document["band"]["share"] * document["architectures"]) > 0
    assert document["shares"][0]["blocks"] == {"hilo": 1.0}
    assert [end["macs"] for end in document["range"]["macs"]] == sorted(
        end["macs"] for end in document["range"]["macs"]
    )
    drawn = json.loads(_run(["sample", *asked, "-n", "5", "--json"]))
    low, high = document["band"]["macs"]
    assert all(low <= row["macs"] <= high and row["params"] <= 1_000_000 for row in drawn)
    for words in (_run(["space", *asked]), _run(["sample", *asked, "-n", "2"])):
        assert str(document["band"]["architectures"]) in words


def _run(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fix", "stages.2.block"], "write NAME=VALUE"),
        (["--fix", "stem.kind=patch", "--fix", "stem.kind=overlapping"], "takes one value"),
        (["--params", "30M-20M"], "not a range"),
        (["--params", "1K-2K"], "the smallest architecture of the space has"),
    ],
)
def test_bad_bounds_of_a_space_are_one_sentence(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["sample", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_spaces_folder_holds_the_default_space() -> None:
    assert (spaces_folder() / "hybrid.toml").is_file()


def test_an_architecture_shows_itself_in_one_line_and_as_a_table() -> None:
    arch = paper("davit_tiny")
    assert repr(arch) == str(arch)
    assert repr(arch) == f"<Arch davit_tiny {arch.arch_id}: {arch.describe()}, 4.54G MACs, 28.36M params>"
    unnamed = Arch.from_dict({**arch.to_dict(), "name": ""})
    assert repr(unnamed).startswith(f"<Arch {arch.arch_id}: ")
    table = rows_of_html(arch._repr_html_())
    assert table[0] == ["stage", "entry", "block", "width", "depth", "map", "MACs", "params"]
    assert table[3][:6] == ["3", "patch", "window/channel", "384", "6", "14x14"]
    assert table[5][:2] == ["head", "pool"]
    assert len(table) == 6


def test_the_table_of_an_architecture_adds_up_to_its_cost() -> None:
    """Every layer is in one row: tokens, positions and layers that blocks bring are counted with their stage, tokens that end with the one before."""
    for name in ("pvt_tiny", "msg_transformer_tiny", "twins_svt_small", "van_b0"):
        arch = paper(name)
        table = rows_of_html(arch._repr_html_())
        units = {"K": 1e3, "M": 1e6, "G": 1e9}
        for column, total in ((-2, arch.cost().macs), (-1, arch.cost().params)):
            shown = [row[column] for row in table[1:]]
            figures = [float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text) for text in shown]
            assert sum(figures) == pytest.approx(total, rel=0.005)


def test_a_space_shows_itself_in_one_line_and_as_a_table() -> None:
    space = Space(small(), "small.toml")
    assert repr(space) == str(space) == f"<Space small: 2 stages, {space.size:,} parameter sets>"
    assert repr(load_space("van_b0")) == "<Space van_b0: 4 stages, 1 parameter set>"
    assert repr(space.fixed({"stages.2.downsample": "patch"})).endswith("parameter sets, stages.2.downsample=patch>")
    assert rows_of_html(space._repr_html_()) == [
        ["stage", "entry", "positions", "block", "width", "depth"],
        ["1", "patch", "none", "mlp, hilo, lsa/gsa", "32, 64", "1, 2"],
        ["2", "patch, deformable", "none", "lka", "64", "1"],
    ]


def test_names_are_escaped_in_tables() -> None:
    name = "<b>&small"
    for html in (
        Space(small(name=name), "small.toml")._repr_html_(),
        dataclasses.replace(paper("van_b0"), name=name)._repr_html_(),
    ):
        assert "&lt;b&gt;&amp;small" in html
        assert "<b>" not in html


@pytest.mark.parametrize("name", paper_names())
def test_a_papers_table_is_that_of_its_space(name: str) -> None:
    assert dict(paper_table(name)) == dict(load_space(name).paper)
