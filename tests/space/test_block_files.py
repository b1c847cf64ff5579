"""The key `blocks` of a space: files beside it whose layers it names."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.own_blocks import CONVNEXT, SPACE, forgetting, write_space

from archsearch import Arch, Space, UserError, build, load_space
from archsearch.models import count_fvcore


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting():
        yield


def test_a_space_uses_the_blocks_of_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # the path is relative to the space's folder, not to ours
    space = load_space(write_space(tmp_path))
    assert space.parameters()["stages.1.convnext.kernel"] == (3, 5, 7)
    assert [(file.name, file.text) for file in space.block_files] == [("convnext.py", CONVNEXT.read_text())]
    arch = space.sample(lambda name, choices: choices[0])
    assert arch.describe() == "convnext 32x1 - convnext 64x1"
    assert Arch.from_dict(arch.to_dict()) == arch
    assert count_fvcore(build(arch), 64) == arch.cost().macs
    assert space.resized(128).block_files == space.block_files
    assert space.fixed({"stages.1.block": "convnext"}).block_files == space.block_files


def test_a_file_elsewhere_is_found_by_its_path_and_makes_the_same_architectures(tmp_path: Path) -> None:
    here = load_space(write_space(tmp_path))
    (tmp_path / "spaces").mkdir()
    elsewhere = SPACE.replace('["convnext.py"]', f'["../{CONVNEXT.name}"]')
    there = load_space(write_space(tmp_path / "spaces", elsewhere))
    absolute = Space(tomllib.loads(SPACE.replace('["convnext.py"]', f'"{CONVNEXT}"')), "own.toml")
    assert here.canonical() == there.canonical() == absolute.canonical()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('["none.py"]', r"own\.toml: blocks: .*none\.py: no such file of blocks"),
        ('["own.toml"]', "no Python file"),
        ("3", r"own\.toml: blocks: 3 is not a string"),
        ("[]", "list of choices is empty"),
        ('["convnext.py", "convnext.py"]', "stands twice"),
        ('["convnext.py", "./convnext.py"]', "have the same name"),
    ],
)
def test_a_wrong_list_of_files_is_one_sentence(value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        load_space(write_space(tmp_path, SPACE.replace('["convnext.py"]', value)))


def test_a_wrong_file_is_one_sentence_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"convnext\.py, line 1: ZeroDivisionError"):
        load_space(write_space(tmp_path, blocks="1 / 0\n"))


def test_an_architecture_without_its_file_says_what_is_missing(tmp_path: Path) -> None:
    with forgetting():
        document = load_space(write_space(tmp_path)).sample(lambda name, choices: choices[0]).to_dict()
    words = r"unknown block 'convnext'.*needs its file: blocks = \[\"FILE.py\"\]"
    with pytest.raises(UserError, match=words):
        Arch.from_dict(document)
    with pytest.raises(UserError, match="an architecture names no files of blocks"):
        Arch.from_dict({**document, "blocks": ["convnext.py"]})


def test_an_edited_block_that_is_registered_again_has_its_own_costs_and_checks(tmp_path: Path) -> None:
    """Costs and checks of stages are cached, by the classes of their layers."""

    def first(blocks: str) -> Arch:
        with forgetting():
            return load_space(write_space(tmp_path, blocks=blocks)).sample(lambda name, choices: choices[0])

    before = first(CONVNEXT.read_text())
    mlp = "mlp = Cost("
    after = first(CONVNEXT.read_text().replace(mlp, f"{mlp}1000 + "))
    assert (before.to_dict(), before.cost()) == (after.to_dict(), first(CONVNEXT.read_text()).cost())
    assert after.cost().macs - before.cost().macs == 2 * 1000  # two blocks
    assert after.cost(96).macs - before.cost(96).macs == 2 * 1000
    with pytest.raises(UserError, match="has no centre"):
        first(CONVNEXT.read_text().replace("% 2 == 0", "% 2 == 1"))
