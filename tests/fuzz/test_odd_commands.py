"""Odd command lines: each ends with 0, 1 or 2, and with one sentence where it refuses."""

import multiprocessing
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from support.fuzz import fault_of_command, to_toml
from support.pictures import make_folder

from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.space import load_space

TINY = Path(__file__).parents[1] / "data" / "tiny.toml"

# What a person, a script or an attacker may type where another word is meant; files are made by `_make_files`.
ODD_WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "x",
        ":",
        "a:",
        "a:1",
        "0:",
        ":0",
        "run:0",
        "run:zz",
        "all",
        "none",
        "auto",
        "hybrid",
        "van_b0",
    ),
    *(
        "-1",
        "0",
        "1",
        "2",
        "3",
        "4.5",
        "4.5G",
        "12M",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_0",
        "٤",
        "½",
        "1e-9",
        "5%",
    ),
    *(
        "9" * 30,
        "9" * 5000,
        "a" * 300,
        "a" * 5000,
        "a/" * 2500,
        "é",
        "\x1b[31mred",
        "two\nlines",
        "\u202eback",
        "\udcff",
    ),
    *(
        "../..",
        "/",
        "/dev/null",
        "/dev/zero",
        "~nobody/x",
        "~",
        "a=b",
        "stages.1.depth=1",
        "stages.1.depth=x",
        "=",
        "1,2",
        "2,1",
    ),
    *(
        "1,1",
        ",",
        "0-",
        "1-0",
        "20-30M",
        "20M-30M",
        "0-99999",
        "macs",
        "macs,macs",
        "tpe",
        "zico",
        "sqlite://",
        "a://b:c@d/e",
    ),
    *(
        "tiny.toml",
        "bom.toml",
        "utf16.toml",
        "latin.toml",
        "folder.toml",
        "pipe.toml",
        "loop.toml",
        "huge.toml",
        "zero.toml",
    ),
    *(
        "folder.toml/x",
        "tiny.toml/x",
        "absent.toml",
        "run",
        "pictures",
        "prepared",
        "fashion-mnist",
        "constellation",
        "cpu-small",
    ),
]
ODD_INPUTS: list[str | bytes] = ["", "{}", "[1]", '{"stages": 1}', "nan", b"\xff", "[" * 10**5]
# A short good command line of each command, to start from.
GOOD: dict[str, list[str]] = {
    "run": ["tiny.toml", "--budget", "12M", "--tolerance", "50%", "--trials", "0", "--papers", "none"],
    "report": ["run"],
    "prepare": ["pictures", "prepared", "--size", "8"],
    "audit": ["--proxy", "constellation", "--hybrids", "1", "--seeds", "1", "--papers", "none", "--budget", "12M"],
    "bench": ["one.toml"],
    "calibrate": ["tiny.toml", "--budget", "12M"],
    "evaluate": ["van_b0", "--checkpoint", "bom.toml", "--data", "pictures"],
    "export": ["one.toml", "out"],
    "cost": ["van_b0"],
    "score": ["van_b0"],
    "sample": ["tiny.toml", "-n", "2"],
    "space": ["tiny.toml"],
    "blocks": [],
    "papers": [],
    "proxies": ["cpu-small"],
    "docs": ["spaces"],
}
# Where the commands begin to measure, which takes minutes and is no matter of their words.
MEASURING = [
    "archsearch.search.run.Driver.run",
    "archsearch.throughput.bench_document",
    "archsearch.throughput.calibration.calibrate.calibrate",
    "archsearch.proxy.audit.audit.audit",
    "archsearch.proxy.audit.against_timm.audit_against_timm",
    "archsearch.report.score_list",
    "archsearch.models.recount_all",
    "archsearch.models.export.export.write_onnx",
]


def _make_files(folder: Path) -> None:
    """Good, odd and bad files with the names of ODD_WORDS."""
    text = TINY.read_text()
    (folder / "tiny.toml").write_text(text)
    (folder / "bom.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (folder / "utf16.toml").write_text(text, encoding="utf-16")
    (folder / "latin.toml").write_bytes(text.encode() + b"# \xe9\n")
    (folder / "huge.toml").write_text(text + "#" * 10**8)
    (folder / "zero.toml").symlink_to("/dev/zero")
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "folder.toml").mkdir()
    os.mkfifo(folder / "pipe.toml")
    make_folder(folder / "pictures", {"a": 4, "b": 4})
    one = load_space(folder / "tiny.toml").sample(lambda name, choices: choices[0])
    (folder / "one.toml").write_text(to_toml(one.to_dict()))


def _odd_command(rng: random.Random) -> list[str]:
    """A good command line with one to three words replaced, options added, doubled or cut off."""
    name = rng.choice(list(GOOD))
    words = list(GOOD[name])
    options = [one for one in main.commands[name].params if isinstance(one, click.Option)]
    for _ in range(rng.randint(1, 3)):
        match rng.choice(("replace", "replace", "option", "option", "option", "cut", "double")):
            case "replace" if words:
                words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
            case "cut" if words:
                del words[rng.randrange(len(words)) :]
            case "double" if words:
                words.append(rng.choice(words))
            case _:
                words += _odd_option(rng.choice(options), rng) if options else [rng.choice(ODD_WORDS)]
    return [name, *words]


def _odd_option(option: click.Option, rng: random.Random) -> Sequence[str]:
    name = rng.choice([*option.opts, *option.secondary_opts])
    return [name] if option.is_flag else [name, rng.choice(ODD_WORDS)]


def _stop(*_: Any, **__: Any) -> Any:
    raise UserError("measuring begins here")


@pytest.mark.slow
def test_500_odd_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _make_files(tmp_path)
    assert fault_of_command(["run", *GOOD["run"], "--output", "run"]) is None
    for place in MEASURING:
        monkeypatch.setattr(place, mock.Mock(side_effect=_stop))
    rng = random.Random(13)
    faults = []
    for number in range(500):
        words = _odd_command(rng)
        fault = fault_of_command(words, text=rng.choice(ODD_INPUTS))
        if fault:
            faults.append(f"{number}: {words!r:.1000}\n{fault}")
    for worker in multiprocessing.active_children():  # of drivers that were kept from running, and so from ending it
        worker.kill()
        worker.join()
    assert not faults, f"{len(faults)} faults, such as\n" + "\n".join(faults[:8])
