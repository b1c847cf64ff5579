"""README is true to the letter: its space loads, its block passes both counters, its Python runs, its tree is the tree, its commands exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_space_has_twelve_lines_and_gives_networks() -> None:
    from archsearch.space.space import Space

    text = blocks("toml")[0]
    assert len(text.strip().splitlines()) == 12
    space = Space(tomllib.loads(text), "mine.toml")
    arch = space.sample(lambda name, choices: choices[-1])
    assert arch.cost().macs > 0
    assert "stages.2.hilo.window" in space.parameters()


def test_the_block_of_ones_own_is_priced_exactly(tmp_path: Path) -> None:
    """In a process of its own: registering a block is for good."""
    program = blocks("python")[0] + (
        "\nimport tomllib, torch\n"
        "from archsearch.space.space import Space\n"
        "from archsearch.models.build import build\n"
        "from archsearch.models.count import count_flop_counter, count_fvcore\n"
        "text = \"image_size = 64\\nstem = { kind = 'patch', patch = { kernel = 4 } }\\n\"\n"
        "text += \"[[stages]]\\nwidth = 32\\ndepth = 2\\nblock = 'pooling'\\nmlp_ratio = 2\"\n"
        "arch = Space(tomllib.loads(text), 'mine.toml').arch()\n"
        "cost, model = arch.cost(), build(arch)\n"
        "assert count_fvcore(model, 64) == cost.macs\n"
        "assert count_flop_counter(model, 64) == cost.macs - cost.norm_macs\n"
        "assert sum(p.numel() for p in model.parameters()) == cost.params\n"
        "print(model(torch.randn(1, 3, 64, 64)).shape[1])\n"
    )
    file = tmp_path / "pooling.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=ROOT, check=False, env=_environment()
    )
    assert done.stdout.strip() == "1000", done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def test_the_python_example_says_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[1]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # README's own code
    printed = re.search(r"print\(.*\)  # (.*)", code)
    assert printed
    assert capsys.readouterr().out.strip() == printed[1]
    assert names["model"](torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_the_checkpoint_example_says_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import archsearch

    monkeypatch.chdir(tmp_path)
    official = archsearch.save_official(archsearch.build(archsearch.paper("van_b0")), "van_b0.pth")
    code = blocks("python")[2]
    exec(compile(code, "README.md", "exec"), {})  # README's own code
    printed = re.search(r"print\(.*\)  # (.*)", code)
    assert printed
    assert capsys.readouterr().out.strip() == printed[1]
    again = archsearch.read_checkpoint("van_b0.safetensors")
    assert set(again) == set(official)
    assert all(torch.equal(again[key], official[key]) for key in official)


def test_commands_and_options_of_readme_exist() -> None:
    from archsearch.cli import main

    for line in "\n".join(blocks("sh")).splitlines():
        for command in re.split(r"&&|#", line):
            words = shlex.split(command) if "archsearch" in command and "'" not in command else []
            if words[:1] != ["archsearch"]:
                continue
            shown = CliRunner().invoke(main, [words[1], "--help"])
            assert shown.exit_code == 0
            for word in words[2:]:
                if word.startswith("--"):
                    assert word in shown.output


def test_the_front_of_readme_is_a_real_one() -> None:
    front = re.search(r"<!-- front -->\n```text\n(.*?)```", README, re.DOTALL)
    assert front
    for word in ("(fixed)", "img/s", "not ImageNet accuracy", "Next: archsearch report"):
        assert word in front[1]
