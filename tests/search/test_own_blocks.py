"""A run of a space with blocks of one's own: the worker knows them, the run keeps them, and goes on only with the same ones."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from support.own_blocks import CONVNEXT, SPACE, forgetting, write_space
from support.runs import InProcessWorker, make_config
from support.runs import run as run_stub
from support.stub_evaluators import evaluate

from archsearch import load_run
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.search import RunConfig, open_run, restore_run
from archsearch.search.engine.workers import local
from archsearch.search.engine.workers.process import ProcessWorker
from archsearch.search.same_run import default_name, find_run

Cli = Callable[..., Result]
RUN = ["--budget", "20M", "--tolerance", "60%", "--papers", "none", "--device", "cpu", "--batch-size", "1"]
FIRST = ["--fix", "stages.1.block=convnext", "--proxy-steps", "2", "--no-rungs", "--no-recheck"]


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with forgetting():
        yield


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`archsearch ...` in a folder of its own, each time as in a new process; networks are timed in tenths of seconds."""
    monkeypatch.chdir(tmp_path)
    evaluator = "support.cli_stub:evaluate_with_short_timings"
    monkeypatch.setattr(local, "ProcessWorker", partial(ProcessWorker, evaluator=evaluator))

    def invoke(*arguments: str) -> Result:
        with forgetting():
            return CliRunner().invoke(main, arguments)

    return invoke


def config(text: str = SPACE, blocks: str | None = None, **changes: Any) -> RunConfig:
    """A run of the space, evaluated by a stub."""
    small: dict[str, Any] = {"budget_macs": 20_000_000, "tolerance": 0.6, "papers": (), "settings": {"image_size": 64}}
    files = {"convnext.py": blocks or CONVNEXT.read_text()}
    return make_config(Path("/dev/null"), space_text=text, space_name="own.toml", blocks=files, **{**small, **changes})


def find(root: Path, asked: RunConfig) -> tuple[Path, list[str]]:
    said: list[str] = []
    return find_run(root, asked, asked.space, said.append), said


@pytest.mark.slow
def test_a_real_run_trains_the_blocks_in_its_worker_and_keeps_them(cli: Cli, tmp_path: Path) -> None:
    write_space(tmp_path)
    done = cli("run", "own.toml", *RUN, *FIRST, "--trials", "1", "--output", "out")
    assert done.exit_code == 0, done.output
    assert "ran convnext.py, which brings convnext" in done.output
    rows = pd.read_parquet("out/trials.parquet")
    assert rows.state.tolist() == ["complete"]
    assert rows.macs.tolist() == rows.macs_fvcore.tolist()
    assert "convnext" in rows.architecture[0]
    assert Path("out/convnext.py").read_text() == CONVNEXT.read_text()

    # The run goes on, is reported and read where the space's own files are gone.
    (tmp_path / "elsewhere").mkdir()
    again = write_space(tmp_path / "elsewhere")
    (tmp_path / "convnext.py").unlink()
    done = cli("run", str(again), *RUN, *FIRST, "--trials", "2", "--output", "out")
    assert done.exit_code == 0, done.output
    more = pd.read_parquet("out/trials.parquet")
    assert more.arch_id.tolist()[:1] == rows.arch_id.tolist()
    assert more.state.tolist() == ["complete", "complete"]
    shutil.rmtree(tmp_path / "elsewhere")
    assert "convnext" in cli("report", "out").output
    cost = cli("cost", "out:0", "--json")
    assert json.loads(cost.stdout)["macs"] == rows.macs[0]
    assert cli("space", "out/space.toml").exit_code == 0
    refused = cli("cost", "own.toml")
    assert refused.exit_code == 2
    assert "own.toml: blocks: convnext.py: no such file of blocks" in refused.output


def test_a_folder_holds_the_run_of_one_text_wherever_its_file_lies(tmp_path: Path) -> None:
    first = config()
    folder, _ = find(tmp_path, first)
    assert folder.name == default_name(first, first.space)
    run_stub(folder, replace(first, name=folder.name), 1, fixed={}, worker=InProcessWorker(evaluate))
    changed = config(blocks=f"# changed\n{CONVNEXT.read_text()}")
    assert [words[:30] for words in first.differences(changed)] == ["blocks.convnext.py was sha256 "]
    with (
        pytest.raises(UserError, match=r"holds another run: blocks\.convnext\.py was .*, now"),
        open_run(folder, changed),
    ):
        pass
    assert find(tmp_path, config(text=f"# again\n{SPACE}"))[0] == folder
    elsewhere = config(text=SPACE.replace("convnext.py", "../convnext.py"))
    assert find(tmp_path, elsewhere)[0] == folder


def test_a_changed_file_begins_a_new_run_with_a_sentence(tmp_path: Path) -> None:
    first = config()
    folder, _ = find(tmp_path, first)
    run_stub(folder, first, 1, fixed={}, worker=InProcessWorker(evaluate))
    changed = config(blocks=f"# changed\n{CONVNEXT.read_text()}")
    vars(changed)["space"] = first.space  # the old text is registered, as by another process
    other, said = find(tmp_path, changed)
    assert other != folder
    assert len(said) == 1
    assert said[0].startswith(f"{folder} has this request's run with another text of convnext.py; a new run begins")
    assert find(tmp_path, config(seed=1))[1] == []


def test_a_run_is_read_and_restored_by_its_own_copy(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with forgetting():
        first = config(name="run")
        run_stub(folder, first, 2, fixed={}, worker=InProcessWorker(evaluate))
    with forgetting():
        loaded = load_run(folder)
        assert loaded.config.blocks == first.blocks
        assert loaded.arch(0).cost().macs == loaded.trials.macs[0]
    (folder / "study.db").unlink()
    with forgetting():
        assert restore_run(folder).without_params == 0
    (folder / "convnext.py").write_text("1 / 0\n")
    with forgetting(), pytest.raises(UserError, match="is not the file of blocks that the run began with"):
        load_run(folder)
    with forgetting(), open_run(folder, first):
        assert (folder / "convnext.py").read_text() == CONVNEXT.read_text()
    (folder / "convnext.py").unlink()
    with forgetting(), pytest.raises(UserError, match=r"run/convnext\.py: no such file of blocks"):
        load_run(folder)
