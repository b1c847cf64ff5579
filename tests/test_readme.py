"""README is short, and true to the letter: its space loads, its Python runs, its front is a real one."""

import re
import tomllib
from typing import Any

import pytest
import torch
from support.documents import code_blocks, printed_lines, text_of


def test_readme_is_short_and_has_the_two_commands() -> None:
    text = text_of("README")
    assert len(text.splitlines()) <= 150
    assert code_blocks("README", "sh")[0] == "pip install . && archsearch run --budget 4.5GFLOPs\n"
    assert code_blocks("README", "sh")[-1] == "pip install -e '.[dev]' && pytest\n"


def test_the_space_has_twelve_lines_and_gives_networks() -> None:
    from archsearch.space import Space

    text = code_blocks("README", "toml")[0]
    assert len(text.strip().splitlines()) == 12
    space = Space(tomllib.loads(text), "mine.toml")
    arch = space.sample(lambda name, choices: choices[-1])
    assert arch.cost().macs > 0
    assert "stages.2.hilo.window" in space.parameters()


def test_the_python_example_says_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    code = code_blocks("README", "python")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # README's own code
    assert capsys.readouterr().out.splitlines() == printed_lines(code) != []
    assert names["model"](torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_the_table_of_commands_has_every_command_once() -> None:
    from archsearch.cli import main

    table = text_of("README").partition("## What to do next")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [word for cell in cells for word in re.findall(r"`(?:archsearch )?(\w+)`", cell)]
    assert sorted(named) == sorted(main.commands)


def test_the_front_of_readme_is_a_real_one() -> None:
    front = re.search(r"<!-- front -->\n```text\n(.*?)```", text_of("README"), re.DOTALL)
    assert front
    for word in ("(fixed)", "img/s", "not ImageNet accuracy", "Next: archsearch report"):
        assert word in front[1]
    rows = re.findall(r"^ +\d+ +0\.\d{3}\+-0\.\d{3}[=?]* .*$", front[1], re.MULTILINE)
    assert len(rows) == 5
