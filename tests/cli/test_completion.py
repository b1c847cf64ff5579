"""What Tab offers, as the shells ask for it; without torch, and in bash itself where it is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from support.report_runs import SIX, write_run

from archsearch.cli import main
from archsearch.cli.completion import proxy_names
from archsearch.cli.run import FREE_NAMES, OBJECTIVE_NAMES, SAMPLER_NAMES
from archsearch.proxy import profile_names
from archsearch.results import OBJECTIVES, keep_samples
from archsearch.space import paper_names


class Shell(ShellComplete):
    """Click's completion without a shell."""

    name = "test"
    source_template = ""


def offered(*words: str) -> list[str]:
    """What is offered for the last word."""
    shell = Shell(main, {}, "archsearch", "_ARCHSEARCH_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one run of seven trials, and a draw."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, SIX)
    keep_samples(Path("results"), "hybrid", {"fedcba987654": {}}, {})
    return tmp_path


def test_architectures_are_papers_runs_trials_and_ids(folder: Path) -> None:
    assert offered("cost", "davit") == ["davit_base", "davit_small", "davit_tiny"]
    trials = [f"one:{number}" for number in range(7)]
    assert offered("cost", "one:") == trials == offered("cost", "on"), "one run alone shows its trials at once"
    assert offered("export", ":3") == [":3"]
    assert offered("bench", "van_b0", "one:5") == ["one:5"]
    assert offered("cost", "fedc") == ["fedcba987654"]
    assert offered("score", "one:00000000000") == [f"one:{number:012x}" for number in (0, 1, 2, 3, 4, 5, 3)]
    assert set(offered("train", "")) == {*paper_names(), "one:"}
    assert offered("cost", "two:") == []


def test_runs_spaces_proxies_and_pages(folder: Path) -> None:
    assert offered("report", "") == offered("audit", "") == offered("run", "--from", "") == ["one"]
    assert offered("report", "one:6") == ["one:6"]
    Path("mine.toml").write_text("")
    assert {"hybrid", "mine.toml"} < set(offered("sample", ""))
    assert offered("run", "--proxy", "imagenet-s") == ["imagenet-short"]
    assert offered("proxies", "fash") == ["fashion-mnist"]
    assert offered("docs", "resu") == ["results"]
    assert offered("evaluate", "van_b0") == ["van_b0"]


def test_names_with_commas_go_on_after_the_last_one(folder: Path) -> None:
    assert offered("run", "--papers", "van_b0,lit_t") == ["van_b0,lit_ti"]
    assert "params,macs" in offered("run", "--objectives", "params,")
    assert "params,params" not in offered("run", "--objectives", "params,")


def test_names_that_completion_repeats_are_those_of_the_services() -> None:
    assert proxy_names()[: len(profile_names())] == profile_names()
    assert set(OBJECTIVE_NAMES) == set(OBJECTIVES)
    assert offered("run", "--sampler", "") == list(SAMPLER_NAMES)
    assert offered("run", "--free-rung", "") == list(FREE_NAMES)


@pytest.mark.parametrize(
    "words", [("cost", ""), ("cost", "one:"), ("cost", "fed"), ("run", "--proxy", ""), ("report", "")]
)
def test_no_torch_is_loaded(folder: Path, words: tuple[str, ...]) -> None:
    program = (
        "import os, sys; from archsearch.cli import main\n"
        "try: main(prog_name='archsearch')\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pandas', 'optuna'} & set(sys.modules)))"
    )
    line = " ".join(["archsearch", *words])
    environment = {**os.environ, "_ARCHSEARCH_COMPLETE": "bash_complete", "ARCHSEARCH_LINE": line}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_damaged_run_offers_nothing_and_says_nothing(folder: Path) -> None:
    Path("results/one/trials.parquet").write_bytes(b"PAR1")
    Path("results/one/manifest.json").write_text("{")
    assert offered("cost", "one:") == []
    assert offered("report", "") == ["one"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_words_with_colons(folder: Path, tmp_path: Path) -> None:
    """Bash begins a new word at a colon: what it gets is what follows the last one."""
    binary = tmp_path / "bin" / "archsearch"
    binary.parent.mkdir()
    binary.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'archsearch'\nfrom archsearch.cli import main\nmain()\n"
    )
    binary.chmod(0o755)
    script = """
    eval "$(_ARCHSEARCH_COMPLETE=bash_source archsearch)"
    compopt() { echo "compopt $*"; }
    for COMP_LINE in "archsearch cost one:1" "archsearch score :1 :2" "archsearch docs resu" "archsearch run --device=cu"; do
        COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _archsearch_completion archsearch; echo "${COMPREPLY[*]}"
    done
    """
    environment = {**os.environ, "PATH": f"{binary.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["1", "2", "results", "cuda"], done.stderr


def test_every_argument_that_names_something_is_completed() -> None:
    """An argument without completion offers files alone; those of files are click's own."""
    lacking = [
        f"{name} {parameter.name}"
        for name, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Argument)
        and parameter._custom_shell_complete is None
        and not isinstance(parameter.type, click.Path)
    ]
    assert set(lacking) <= {"prepare source"}, f"give {lacking} a shell_complete of archsearch/cli/completion.py"
