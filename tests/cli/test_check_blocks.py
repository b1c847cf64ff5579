"""`archsearch blocks --check FILE`: one line for each check and layer, exit code 0, 1 where one fails, 2 for a file that cannot be used."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.own_blocks import CONVNEXT, forgetting

from archsearch.cli import main

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    """The command on ConvNeXt's block with replaced words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def invoke(old: str = "", new: str = "", *options: str) -> Result:
        Path("own.py").write_text(CONVNEXT.read_text().replace(old, new) if old else CONVNEXT.read_text())
        with forgetting():
            return CliRunner().invoke(main, ["blocks", "--check", "own.py", *options])

    with forgetting():
        yield invoke


@pytest.mark.slow
def test_a_right_file_has_a_line_for_each_check_and_exit_code_0(check: Check) -> None:
    done = check()
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("block convnext")]
    assert len(lines) >= 10
    assert {line[3] for line in lines} == {"passed"}


@pytest.mark.slow
def test_a_wrong_cost_is_a_line_that_says_what_differs_and_exit_code_1(check: Check) -> None:
    done = check("self.kernel**2 * width,", "self.kernel * width,")
    assert done.exit_code == 1
    assert "block convnext macs failed at kernel=7, ratio=4 on 64 x 14x14: cost says" in " ".join(done.stdout.split())
    assert done.stderr == "error: own.py: 1 of 13 checks failed: macs of convnext\n"
    rows = json.loads(check(" + Cost(params=width)", "", "--json").stdout)
    assert {row["check"] for row in rows if not row["is_passed"]} == {"params", "space"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("@register\n", "", "registers no layer"), ("from dataclasses", "from (dataclasses", "own.py, line 3: ")],
)
def test_a_file_that_cannot_be_used_is_one_sentence_and_exit_code_2(
    check: Check, old: str, new: str, words: str
) -> None:
    done = check(old, new)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: own.py")
    assert words in done.stderr
