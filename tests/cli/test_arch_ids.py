"""arch_ids on the command line: what `sample` prints is an architecture everywhere, and what is not found says where was looked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support.own_blocks import forgetting
from support.report_runs import SIX, trial, write_run

from archsearch.cli import main
from archsearch.results import keep_samples, sample_files
from archsearch.space import Arch, paper

Cli = Callable[..., Result]
POOLING = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from archsearch.blocks import Block, Cost, Shape, register


@register
@dataclass(frozen=True, kw_only=True)
class Averaging(Block):
    \"\"\"Averages; a test's own.\"\"\"

    kind: ClassVar[str] = "averaging"

    def cost(self, shape: Shape) -> Cost:
        return Cost()

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        return nn.Identity()
"""
OWN = """
name = "own"
blocks = ["averaging.py"]
image_size = 32
num_classes = 10
stem = { kind = "patch", patch = { kernel = 4, pad = false } }
[[stages]]
width = [32, 64]
depth = [1, 2]
block = ["averaging", "mlp"]
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`archsearch ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
        return CliRunner().invoke(main, arguments)

    return invoke


def shown(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_what_sample_prints_is_taken_where_an_architecture_is(cli: Cli, tmp_path: Path) -> None:
    documents = shown(cli("sample", "--budget", "4.5G", "-n", "3", "--json"))
    for each in documents:
        for text in (each["arch_id"], each["arch_id"][:8].upper()):
            found = shown(cli("cost", text, "--json"))
            assert (found["arch_id"], found["macs"]) == (each["arch_id"], each["macs"])
    first = documents[0]["arch_id"]
    assert cli("export", first, "one.toml").exit_code == 0
    assert shown(cli("cost", "one.toml", "--json"))["arch_id"] == first
    table = cli("sample", "--budget", "4.5G", "-n", "3").stdout
    assert f"Next: archsearch cost {first}" in table
    assert len(sample_files(Path("results"))) == 1, "the same draw is kept once"


def test_a_run_includes_what_an_id_or_a_row_names(cli: Cli, tmp_path: Path) -> None:
    text = OWN.replace('blocks = ["averaging.py"]\n', "").replace('["averaging", "mlp"]', '"mlp"')
    Path("own.toml").write_text(text)
    (one,) = shown(cli("sample", "-n", "1", "--json"))
    write_run(tmp_path, SIX)
    asked = ("run", "own.toml", "--budget", "any", "--papers", "none", "--trials", "0", "--device", "cpu")
    write_run(tmp_path, [trial(0, 0.5, 1.0, 1, arch_id="c968d6aaaaaa")], name="two-2")
    rows = ("one:3", ":0", "two-2:c968d6", ":c968d6")
    for named, words in ((one["arch_id"], one["arch_id"]), *((row, "davit_tiny") for row in rows)):
        result = cli(*asked, "--include", named)
        assert result.exit_code == 2
        assert "224 px" in result.stderr.splitlines()[-1], "read, and refused since the space is for 32"
        assert words in result.stderr or paper(words).arch_id in result.stderr
    assert "no architecture has this arch_id" in cli(*asked, "--include", "123456789abc").stderr


def test_an_id_belongs_to_the_space_as_it_was_when_it_was_drawn(cli: Cli, tmp_path: Path) -> None:
    text = OWN.replace('blocks = ["averaging.py"]\n', "").replace('["averaging", "mlp"]', '"mlp"')
    Path("own.toml").write_text(text)
    (one,) = shown(cli("sample", "own.toml", "-n", "1", "--json"))
    Path("own.toml").write_text(text.replace("[32, 64]", "[96, 128]"))
    assert shown(cli("cost", one["arch_id"], "--json"))["macs"] == one["macs"]
    Path("own.toml").unlink()
    assert shown(cli("cost", one["arch_id"], "--json"))["macs"] == one["macs"]


def test_own_blocks_are_found_again_unless_their_file_changed(cli: Cli, tmp_path: Path) -> None:
    Path("averaging.py").write_text(POOLING)
    Path("own.toml").write_text(OWN)
    with forgetting():
        documents = shown(cli("sample", "own.toml", "-n", "8", "--json"))
    own = next(each["arch_id"] for each in documents if each["arch"]["stages"][0]["block"] == "averaging")
    with forgetting():
        assert shown(cli("cost", own, "--json"))["arch_id"] == own
    Path("averaging.py").write_text(f"{POOLING}# changed\n")
    with forgetting():
        assert "averaging.py" in refused(cli("cost", own))


def test_ids_of_papers_and_of_runs_are_found_too(cli: Cli, tmp_path: Path) -> None:
    assert shown(cli("cost", paper("davit_tiny").arch_id, "--json"))["name"] == "davit_tiny"
    arch = Arch.from_dict({**paper("van_b0").to_dict(), "num_classes": 7, "name": "mine"})
    row = trial(7, 0.5, 30.0, 1000, arch_id=arch.arch_id, arch=json.dumps(arch.to_dict()))
    write_run(tmp_path, [*SIX, row])
    assert shown(cli("cost", arch.arch_id[:7], "--json"))["arch_id"] == arch.arch_id


def test_what_is_not_found_says_where_was_looked(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path, SIX)
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "manifest.json").write_text("{}")
    sentence = refused(cli("cost", "123456789abc"))
    for words in ("39 papers", "2 runs under results", "1 of them not readable", "0 draws", "sample"):
        assert words in sentence
    assert "neither a .toml file" in refused(cli("cost", "123456789abcd")), "thirteen digits are no arch_id"
    assert "write more digits" in refused(cli("cost", "0000"))


def test_a_name_that_is_a_file_stays_one(cli: Cli, tmp_path: Path) -> None:
    Path("abcd").write_text("no space")
    assert "abcd" in refused(cli("cost", "abcd"))
    assert "papers' models" not in refused(cli("cost", "abcd"))


def test_a_kept_draw_that_is_not_what_its_id_says_is_refused(cli: Cli, tmp_path: Path) -> None:
    wrong = {"abcdef012345": paper("van_b0").to_dict()}
    path = keep_samples(Path("results"), "a/b ../space", wrong, {})
    assert path.parent == Path("results/samples")
    assert paper("van_b0").arch_id in refused(cli("cost", "abcdef012345"))
    path.write_bytes(b"PAR1 and nothing else")
    assert "delete it" in refused(cli("cost", "abcdef012345"))


def test_where_nothing_can_be_kept_the_draw_is_printed_all_the_same(cli: Cli, tmp_path: Path) -> None:
    Path("results").write_text("a file")
    result = cli("sample", "-n", "1", "--json")
    assert len(json.loads(result.stdout)) == 1
    assert result.exit_code == 0
    assert "will not know these arch_ids" in result.stderr


def test_only_the_latest_draws_are_kept(tmp_path: Path) -> None:
    for number in range(103):
        path = keep_samples(tmp_path, "space", {f"{number:012x}": {}}, {})
    assert len(sample_files(tmp_path)) == 100
    assert path in sample_files(tmp_path)
    assert pq.read_table(path).column("arch_id").to_pylist() == [f"{102:012x}"]
