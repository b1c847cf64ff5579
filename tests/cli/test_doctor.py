"""`archsearch doctor`: it says what is there, ends well where all is well, and names what is broken."""

import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.documents import ROOT

import archsearch
from archsearch.cli import main
from archsearch.report.doctor import USES


def run(*arguments: str, width: int = 100) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments], env={"COLUMNS": str(width)})


def shown(result: Result) -> Any:
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_it_says_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--json")
    assert result.exit_code == 0, result.output
    document = shown(result)
    assert document["archsearch"] == archsearch.__version__
    assert document["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(document["gpus"]) == torch.cuda.device_count()
    assert document["disk"]["free"] > 0
    assert document["compile"].keys() >= {"cpu"}
    assert not Path("results").exists(), "it leaves nothing behind"
    for each in document["extras"]:
        assert each["is_there"] == (not each["missing"])
        assert f"[{each['extra']}]" in each["install"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_page_fits_and_ends_with_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(width=width)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("Verdict: archsearch works here")
    # A path is never broken, and those of the interpreter and of the test's folder may be longer.
    breakable = [line for line in lines if sys.executable not in line and str(tmp_path) not in line]
    assert len(breakable) > 10
    assert max(map(len, breakable)) <= width


def test_what_is_broken_is_named_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    version = importlib.metadata.version

    def lacks_timm(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", lacks_timm)
    result = run()
    assert result.exit_code == 1
    assert "Broken: packages are missing: timm. To do: pip install timm." in result.stdout
    assert "cannot work here yet" in result.stdout.splitlines()[-1]


def test_every_extra_says_what_it_enables() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lost = sorted(set(extras) - set(USES))
    assert lost == [], f"write what the extras {lost} are for into USES of archsearch/report/doctor.py"
