"""The documentation is true: its commands exist, its Python runs, its spaces load, its tables are those of the code; and `archsearch docs` shows it."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.doc_tables import TABLES, cells_of, table_below
from support.documents import (
    DOCUMENTS,
    PAGES,
    ROOT,
    anchors,
    code_blocks,
    commands,
    links,
    printed_lines,
    text_of,
)
from support.own_blocks import forgetting
from support.space_errors import CALLS
from test_layers import LAYERS

import archsearch
from archsearch.blocks import load_blocks
from archsearch.cli import main
from archsearch.cli.docs import PAGES as NAMES
from archsearch.cli.docs import first_sentence
from archsearch.errors import UserError
from archsearch.models import check_layer, count_fvcore
from archsearch.models.contract import SHAPES

PACKAGE = Path(archsearch.__file__).parent


def show(*words: str, **environment: str) -> str:
    result = CliRunner().invoke(main, ["docs", *words], env=environment)
    assert result.exit_code == 0, result.output
    return result.output


# What every document owes its reader


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_options_that_a_document_shows_exist(name: str) -> None:
    for words in commands(name):
        if words[0] == "archsearch" and not words[1].startswith("-"):
            inner = (
                words[2:3] if words[2:3] and words[2] in getattr(main.commands.get(words[1]), "commands", ()) else []
            )
            shown = CliRunner().invoke(main, [words[1], *inner, "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, words
            known = re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown.output)
            assert [word for word in words[2:] if word.startswith("-") and word not in known] == [], words
        elif words[0] in ("python", "pytest"):
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py")), words
            assert all(find_spec(word) for word in words if word.startswith("tests.")), words


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target in links(name):
        file, _, anchor = target.partition("#")
        path = DOCUMENTS[name].parent / file
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_fit_and_every_code_block_says_its_language(name: str) -> None:
    text = text_of(name)
    assert [line for line in text.splitlines() if len(line) > 140] == []
    assert [fence for fence in re.findall(r"^```(.*)$", text, re.MULTILINE)[::2] if not fence] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_spaces_that_a_document_shows_load(name: str) -> None:
    for text in code_blocks(name, "toml"):
        if "blocks = " in text:
            continue  # read beside its file by the test of the block of one's own
        space = archsearch.Space(tomllib.loads(text), "mine.toml")
        assert space.sample(lambda name, choices: choices[0]).cost().macs > 0


# Tables that follow from the code


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_that_the_code_gives(name: str) -> None:
    """If this fails: `python -m tests.support.doc_tables`, then write the meaning of new columns into the page."""
    page = text_of(name)
    for heading, table in TABLES[name](page).items():
        assert table_below(heading, page) == table
        assert all(all(cells) for cells in cells_of(table)), "a cell is empty"


def test_every_error_of_a_space_has_its_row_and_its_words() -> None:
    page = text_of("spaces")
    for heading, calls in CALLS.items():
        rows = cells_of(table_below(heading, page))
        assert [row[0].strip("`") for row in rows] == list(calls)
        for words, call in calls.items():
            with pytest.raises(UserError) as caught:
                call()
            assert words in str(caught.value)


def test_architecture_names_every_room_and_module_once_and_has_the_import_table() -> None:
    page = text_of("architecture")
    tables = [cells_of(table_below(heading, page)) for heading in ("Rooms", "Loose modules", "Beside them")]
    named = [row[0].strip("`") for table in tables for row in table]
    there = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "spaces"}
    assert sorted(named) == sorted(there)
    levels = [set(re.findall(r"`(\w+)`", row[1])) for row in cells_of(table_below("Imports", page))]
    assert levels[::-1] == LAYERS


def test_python_page_names_every_public_name() -> None:
    page = text_of("python")
    assert [name for name in archsearch.__all__ if not name.startswith("__") and f"`{name}" not in page] == []


# Python


def test_the_block_of_ones_own_is_found_by_its_space_and_passes_every_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pooling.py").write_text(code_blocks("blocks", "python")[0])
    Path("mine.toml").write_text(code_blocks("blocks", "toml")[0])
    with forgetting():
        arch = archsearch.load_space("mine.toml").sample(lambda name, choices: choices[0])
        assert arch.describe() == "pooling 64x2"
        assert count_fvcore(archsearch.build(arch), 224) == arch.cost().macs
        (layer,) = load_blocks("pooling.py")
        found = list(check_layer(layer, SHAPES[:2]))
    assert [finding for finding in found if finding.problem] == []
    page = text_of("blocks")
    assert [row[0].strip("`") for row in cells_of(table_below("The checks", page))] == [each.check for each in found]


def run_code(code: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """The names that a page's own code leaves, and the lines that it prints."""
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)
    return names, capsys.readouterr().out.splitlines()


def test_the_checkpoint_example_says_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    official = archsearch.save_official(archsearch.build(archsearch.paper("van_b0")), "van_b0.pth")
    (code,) = code_blocks("papers", "python")
    _, printed = run_code(code, capsys)
    assert printed == printed_lines(code)
    again = archsearch.read_checkpoint("van_b0.safetensors")
    assert set(again) == set(official)
    assert all(torch.equal(again[key], official[key]) for key in official)


def test_the_sampler_example_runs_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    code, with_inputs = code_blocks("search", "python")
    names, printed = run_code(code, capsys)
    assert printed == printed_lines(code)
    study = names["study"]

    def objective(trial: Any) -> tuple[float, float]:
        width, depth = trial.suggest_int("width", 1, 9), trial.suggest_int("depth", 1, 9)
        return width + 2.0 * depth, width * depth

    study.optimize(objective, n_trials=12)
    assert len({(trial.params["width"], trial.params["depth"]) for trial in study.trials}) == 12
    assert run_code(f"{code}\n{with_inputs}", capsys)[0]["sampler"].propose(study, 0)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_python_page_says_what_it_prints(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = code_blocks("python", "python")[number]
    _, printed = run_code(code, capsys)
    assert printed == printed_lines(code) != []


@pytest.mark.slow
def test_the_python_page_reads_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.runs import FIXED, fixed_archs, make_config, run

    code = code_blocks("python", "python")[4]
    (folder,) = re.findall(r'load_run\("(.*)"\)', code)
    config = make_config(tmp_path / "log", name=Path(folder).name)
    run(tmp_path / folder, config, 2, fixed=fixed_archs())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "python.md", "exec"), names)
    assert capsys.readouterr().out.split()[0] == names["run"].name == Path(folder).name
    assert len(names["run"].trials) == 2 + len(FIXED)
    assert all(isinstance(arch, archsearch.Arch) for arch in names["members"])


def test_the_export_example_loads_what_the_command_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = CliRunner().invoke(main, ["export", "van_b0", "van_b0"])
    assert written.exit_code == 0, written.output
    (code,) = code_blocks("export", "python")
    _, printed = run_code(code, capsys)
    assert printed == printed_lines(code) != []


def test_the_benchmarks_example_reads_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = code_blocks("benchmarks", "python")
    file = next(Path("results/benchmarks").glob("blocks-*.parquet"))
    exec(compile(code.replace("results/benchmarks/blocks-....parquet", str(file)), "benchmarks.md", "exec"), {})
    assert "threads" in capsys.readouterr().out


def test_every_python_block_of_a_document_is_run_by_a_test() -> None:
    counts = {name: len(code_blocks(name, "python")) for name in DOCUMENTS}
    assert {name: count for name, count in counts.items() if count} == {
        "README": 1,
        "benchmarks": 1,
        "blocks": 1,
        "export": 1,
        "papers": 1,
        "python": 5,
        "results": 1,
        "search": 2,
    }


# The command


def test_docs_lists_every_page_with_its_first_sentence() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in PAGES.glob("*.md"))
    shown = " ".join(show(COLUMNS="160").split())
    for name in NAMES:
        assert f"{name} {first_sentence(text_of(name))}" in shown
        assert 20 < len(first_sentence(text_of(name))) < 140


@pytest.mark.parametrize("name", NAMES)
def test_a_page_through_a_pipe_is_its_markdown(name: str) -> None:
    assert show(name) == text_of(name)


@pytest.mark.parametrize("width", [80, 200])
def test_a_page_on_a_terminal_is_rendered_within_its_width(width: int) -> None:
    shown = show("spaces", FORCE_COLOR="1", COLUMNS=str(width))
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= min(width, 120)
    assert not any(line.startswith(("#", "```", "|--")) for line in lines)
    assert "](" not in shown


def test_an_unknown_page_is_one_sentence_with_the_nearest_name() -> None:
    result = CliRunner().invoke(main, ["docs", "spacs"])
    assert result.exit_code == 2
    assert "did you mean 'spaces'" in result.output
    assert "changelog" in result.output
