"""Tables at any width: no column is dropped, no word is broken, and where a table cannot be a list is; the scatter of the front."""

import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.made_runs import write_made_run
from support.report_runs import SIX, trial, write_run

from archsearch.cli import main
from archsearch.report import make_table, show

WIDTHS = (40, 80, 100, 140)
COMMANDS = {
    "report": ["report"],
    "papers": ["papers"],
    "cost": ["cost", "twins_svt_small"],
    "blocks": ["blocks"],
    "space": ["space"],
    "sample": ["sample", "--number", "3"],
    "proxies": ["proxies"],
}


def printed(columns: list[str], rows: list[list[str]], left: list[str], width: int) -> list[str]:
    stream = io.StringIO()
    show(Console(file=stream, width=width, markup=False, highlight=False), make_table(columns, rows, left=left))
    return stream.getvalue().splitlines()


def words_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_is_printed_whole_at_every_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    """All words that a terminal of 1000 columns shows are there at any width; only words that are wider themselves go beyond it."""
    monkeypatch.chdir(tmp_path)
    write_made_run(tmp_path, 22)
    shown = {}
    for columns in (1000, width):
        monkeypatch.setenv("COLUMNS", str(columns))
        result = CliRunner().invoke(main, COMMANDS[name])
        assert result.exit_code == 0, result.output
        # The scatter's marks; 40 columns have none.
        shown[columns] = re.sub(r"^● .*$", "", result.stdout, flags=re.MULTILINE)
    lines = [re.sub("[·●┬└─]", " ", line) for line in shown[1000].splitlines() if "┤" not in line and "│" not in line]
    wide, narrow = set(" ".join(lines).replace(":", " ").split()), set(shown[width].replace(":", " ").split())
    figures = {
        word for word in wide if not re.fullmatch(r"[\d.]+|[a-zA-Z]", word)
    }  # without the scatter's axes and letters
    assert sorted(figures - narrow) == []
    longest = max(map(len, wide))
    assert max(map(len, shown[width].splitlines())) <= max(width, longest + 2)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_tables_are_whole(seed: int) -> None:
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choices("abcxyz/-0123", k=rng.randint(1, 12)))

    def text() -> str:
        return " ".join(word() for _ in range(rng.randint(1, 8)))

    columns = [word() for _ in range(rng.randint(1, 7))]
    left = [name for name in columns if rng.random() < 0.5]
    rows = [[text() if name in left else word() for name in columns] for _ in range(5)]
    for width in (*range(20, 150, 13), 1000):
        lines = printed(columns, rows, left, width)
        seen = " ".join(lines).replace(":", " ").split()
        expected = words_of(columns) | {each for row in rows for cell in row for each in cell.split()}
        assert sorted(expected - set(seen)) == []
        assert max(map(len, lines)) <= max(width, max(map(len, expected)) + 14)


def test_a_list_has_a_block_for_each_row() -> None:
    rows = [["1", "hilo 96x2 - lka 192x3", "0.5"], ["", "more of it", ""], ["2", "mlp 64x1", "0.25"]]
    assert printed(["trial", "architecture", "score of it"], rows, ["architecture"], 24) == [
        "trial: 1",
        "architecture: hilo 96x2",
        "  - lka 192x3",
        "score of it: 0.5",
        "architecture: more of it",
        "",
        "trial: 2",
        "architecture: mlp 64x1",
        "score of it: 0.25",
    ]


def run_report(folder: Path, **environment: str) -> str:
    """The report on a pipe, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    command = [sys.executable, "-m", "archsearch", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, env={**kept, **environment})
    return done.stdout.decode()


def test_the_scatter_shows_front_and_papers_where_there_is_a_width(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [*SIX, trial(7, 0.65, 12.0, 40_000_000)])
    assert "●" not in run_report(folder), "on a pipe"
    assert "●" not in run_report(folder, COLUMNS="79")
    wide = run_report(folder, COLUMNS="80")
    assert "● on the front, · dominated, a davit_tiny, b van_b2 (on the front)." in " ".join(wide.split())
    picture = wide[wide.index("┤") - 10 : wide.index("on the front,") - 2]
    # Candidates 3 and 2 are on the front, 4 and 7 are not, the papers are letters; 6 is 3 again.
    assert [picture.count(mark) for mark in ("●", "·")] == [2, 2]
    assert "img/s" in picture
    assert run_report(folder, COLUMNS="80", NO_COLOR="1", TERM="dumb") == wide
    assert "\x1b" not in wide
    assert "●" not in run_report(folder, COLUMNS="80", PYTHONIOENCODING="ascii")


def test_a_run_of_one_objective_has_no_scatter(tmp_path: Path) -> None:
    assert "●" not in run_report(write_run(tmp_path, SIX, objectives=("proxy_score",)), COLUMNS="100")


def test_a_scatter_of_one_trial_and_of_counts(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [trial(0, 0.5, 40.0, 10**7)], "alone", ("params", "proxy_score"))
    assert "params" in run_report(folder, COLUMNS="100").partition("● on the front")[0]
