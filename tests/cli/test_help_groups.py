"""The help of every command: options in groups, and examples that the parser takes."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from archsearch.cli import main
from archsearch.cli.help import EXAMPLES, FEWEST_GROUPED, GROUPS, OTHERS, group_of
from archsearch.proxy import profile_names
from archsearch.space import paper_names, spaces_folder


def all_commands(group: click.Group = main, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """The words after `archsearch`, and the command, of every command; a group before its own."""
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{before}{name} ")


COMMANDS = dict(all_commands())


def help_of(words: str, width: int = 80) -> str:
    result = CliRunner().invoke(main, [*words.split(), "--help"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_shows_two_examples_on_lines_of_their_own(words: str) -> None:
    examples = EXAMPLES.get(words, ())
    assert len(examples) == 2, f"{words}: write two commands into EXAMPLES of archsearch/cli/help.py"
    lines = help_of(words, 80).splitlines()
    assert "Examples:" in lines
    for command, what in examples:
        assert f"  {command}" in lines, "the line is broken: write a shorter example"
        assert f"      {what}" in lines
        assert max(len(command) + 2, len(what) + 6) <= 80


@pytest.mark.parametrize(
    ("words", "example"), [(words, each[0]) for words in COMMANDS for each in EXAMPLES.get(words, ())]
)
def test_the_parser_takes_every_example(words: str, example: str) -> None:
    arguments = shlex.split(example.partition(" > ")[0])
    depth = len(words.split())
    assert arguments[: depth + 1] == ["archsearch", *words.split()]
    with COMMANDS[words].make_context(words, arguments[depth + 1 :]) as context:
        named = [
            context.params[name]
            for name in ("arch", "archs", "what", "space", "name", "against")
            if name in context.params
        ]
    known = {*paper_names(), *(path.stem for path in spaces_folder().glob("*.toml")), None}
    if words == "proxies":
        known = {*profile_names(), None}
    elif words.startswith("runs "):
        named = []  # a name of one's own
    for value in [each for values in named for each in (values if isinstance(values, tuple) else [values])]:
        assert value in known or ":" in value or value.endswith(".toml"), value


@pytest.mark.parametrize("words", COMMANDS)
def test_long_helps_are_grouped_and_have_every_option_once(words: str) -> None:
    command, text = COMMANDS[words], help_of(words, 100)
    options = [each for each in command.params if isinstance(each, click.Option)]
    headings = re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)
    headings.remove("Examples")
    if isinstance(command, click.Group):
        headings.remove("Commands")
    if len(options) + 1 < FEWEST_GROUPED:
        assert headings == ["Options"]
        return
    assert headings == [name for name in (*GROUPS, OTHERS) if name in headings], "in the order of the table"
    for option in options:
        assert len(re.findall(rf"^  (?:-\w, )?{re.escape(option.opts[-1])}(?![\w-])", text, re.MULTILINE)) == 1, (
            option.opts
        )
    lost = [option.opts[-1] for option in options if group_of(option) == OTHERS]
    assert lost == [], f"{words}: write {lost} into a group of GROUPS in archsearch/cli/help.py"


def test_an_option_that_no_group_knows_comes_last() -> None:
    assert group_of(click.Option(["--of-tomorrow"])) == OTHERS
    text = help_of("run")
    assert text.index("What is written:") < text.index(f"{OTHERS}:") < text.index("Examples:")


def test_no_option_stands_in_two_groups() -> None:
    names = [name for options in GROUPS.values() for name in options]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("width", [80, 100, 140])
def test_helps_fit_the_terminal(words: str, width: int) -> None:
    assert max(map(len, help_of(words, width).splitlines())) <= width
