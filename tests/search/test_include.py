"""Networks of one's own as fixed trials: part of what a run is, measured once, scored where the proxy can train them, shown beside the papers' models."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from support.own_blocks import CONVNEXT, SPACE, forgetting
from support.own_networks import TEXT, own_module
from support.runs import InProcessWorker, make_config, make_rung_config, run
from support.stub_evaluators import evaluate, noted, on_machine

from archsearch import load_run, results
from archsearch.cli import main
from archsearch.errors import UserError
from archsearch.models import GivenNetwork
from archsearch.proxy import ProxyTask, choose_profile
from archsearch.report import build_report
from archsearch.search import RunConfig, open_run, restore_run
from archsearch.search.engine.workers import local
from archsearch.search.engine.workers.process import ProcessWorker
from archsearch.search.include import include
from archsearch.search.same_run import default_name
from archsearch.space import Arch, load_space, paper

SMALL: dict[str, Any] = {"image_size": 64, "in_chans": 3, "num_classes": 10}
ARCH = """
name = "mine"
image_size = 64
num_classes = 10
blocks = ["convnext.py"]
stem = { kind = "overlapping" }
[[stages]]
width = 64
depth = 1
block = "lka"
mlp_ratio = 4
lka = { kernel = 21 }
[[stages]]
width = 64
depth = 1
downsample = "overlapping"
block = "convnext"
convnext = { kernel = 5, ratio = 4 }
[head]
kind = "pool"
"""
WIDE = """
data = "fashion-mnist"
[profile]
image_size = 32
stem_stride = 2
width_divisor = 1
[recipe]
steps = 4
rungs = [1, 2]
batch_size = 8
learning_rate = 2e-3
dtype = "float32"
augment = "shift"
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convnext.py").write_text(CONVNEXT.read_text())
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "mine.toml").write_text(ARCH)
    (tmp_path / "wide.toml").write_text(WIDE)
    with own_module(tmp_path) as name, forgetting():
        yield name


def included(*texts: str | Arch, proxy: str = "fashion-mnist", **options: Any) -> dict[str, Any]:
    """What a run of the small space stores of these networks."""
    task = ProxyTask.resolve(choose_profile(proxy, "cpu", None))
    said: list[str] = []
    found = include(texts, load_space("space.toml"), task, say=said.append, **options)
    assert len(said) == len(found.documents)
    assert {file.name for file in found.files} == {"convnext.py"}
    return dict(found.documents)


def stub(log: Path, make: Any = make_config, **changes: Any) -> RunConfig:
    """A run of the small space, evaluated by a stub."""
    small: dict[str, Any] = {"budget_macs": 20_000_000, "tolerance": 0.6, "papers": (), "settings": {"image_size": 64}}
    files = {"convnext.py": CONVNEXT.read_text()}
    config: RunConfig = make(log, space_text=SPACE, space_name="space.toml", blocks=files, **{**small, **changes})
    return config


def given(source: str, no_score: str | None = None) -> dict[str, Any]:
    network = replace(GivenNetwork.count(source, **SMALL), no_score=no_score)
    return {source: {"arch_id": network.arch_id, "network": network.to_dict()}}


def both(module: str) -> dict[str, Any]:
    """A network that can be trained, one that cannot, and a paper's model under another name."""
    arch = replace(paper("van_b1"), name="shipped")
    trained, untrained = given(f"{module}:small"), given(f"{module}:seven", "no proxy score: it gives 7 classes")
    return {**trained, **untrained, "shipped": {"arch_id": arch.arch_id, "network": arch.to_dict()}}


def test_an_architecture_itself_is_included_under_its_id_with_its_files() -> None:
    arch = replace(load_space("mine.toml").arch(), name=None)
    ((name, document),) = included(arch).items()
    assert name == arch.arch_id == document["arch_id"]
    assert Arch.from_dict(document["network"]) == arch
    assert list(included(load_space("mine.toml").arch())) == ["mine"]
    for other, words in ((paper("van_b0"), "224 px"), (replace(arch, name="van_b0"), "paper's model")):
        with pytest.raises(UserError, match=words):
            included(other)


@pytest.mark.parametrize(
    ("make", "sampler"), [(make_config, "known-cost"), (make_rung_config, "tpe"), (make_config, "gp")]
)
def test_they_are_fixed_trials_and_one_without_a_score_is_on_no_front(
    tmp_path: Path, module: str, make: Any, sampler: str
) -> None:
    config = stub(tmp_path / "log", make, include=both(module), papers=("van_b2",), sampler=sampler)
    folder = tmp_path / "run"
    run(folder, config, 3, worker=InProcessWorker(evaluate))
    rows = results.read_trials(folder)
    assert rows.paper.tolist()[:4] == ["van_b2", f"{module}:small", f"{module}:seven", "shipped"]
    assert rows.is_fixed.tolist() == [True] * 4 + [False] * (len(rows) - 4)
    assert rows.state.tolist()[:4] == ["complete", "complete", "stopped", "complete"]
    untrained = rows.iloc[2]
    assert (untrained.reason, untrained.macs) == ("no proxy score: it gives 7 classes", 16**2 * 8 * (48 + 2) + 8 * 7)
    assert pd.isna(untrained.proxy_score)
    assert untrained.throughput_img_s > 0
    assert 2 not in results.read_front(folder).trial.tolist()
    assert rows.arch_id.tolist()[3] == paper("van_b1").arch_id

    document = build_report(folder)
    assert [row["paper"] for row in document["fixed"]] == ["van_b2", f"{module}:small", "shipped"]
    assert [row["paper"] for row in document["unscored"]] == [f"{module}:seven"]
    assert (document["trials"]["asked"], document["missing"]["trials"]) == (7, 0)
    assert all(row["trial"] != 2 for row in document["stopped"])
    front = [row for row in document["front"] if not row["is_fixed"]]
    faster = [row["trial"] for row in front if row["throughput_img_s"] > untrained.throughput_img_s]
    smaller = [row["trial"] for row in front if row["params"] < untrained.params]
    assert set(document["unscored"][0]["dominated_by"]) == set(faster) & set(smaller)
    shown = CliRunner().invoke(main, ["report", str(folder)])
    text = " ".join(shown.output.split())
    assert "1 without a score" in text
    assert f"{module}:seven (trial 2) is on no front that needs a score. No proxy score: it gives 7 classes." in text

    # The same command has nothing left to do, and a lost study comes back.
    log = noted(tmp_path / "log")
    run(folder, config, 3, worker=InProcessWorker(evaluate))
    assert noted(tmp_path / "log") == log
    (folder / "study.db").unlink()
    assert restore_run(folder).changed == ()
    run(folder, config, 3, worker=InProcessWorker(evaluate))
    pd.testing.assert_frame_equal(results.read_trials(folder), rows)
    assert load_run(folder).config == config


def test_one_without_a_score_is_timed_anew_with_the_others(tmp_path: Path, module: str) -> None:
    config = stub(tmp_path / "log", include=both(module))
    machines = [{"device_name": name, "threads": 1, "torch": "2.11.0", "reference": "van_b0"} for name in ("A", "B")]
    for machine in machines:
        (tmp_path / "machine.json").write_text(json.dumps({"conditions": machine}))
        worker = InProcessWorker(on_machine)
        run(tmp_path / "run", config, 2, worker=worker, here=machine, remeasure=True)
    rows = results.read_trials(tmp_path / "run")
    assert rows.throughput_id.nunique() == 1
    assert {json.loads(text)["device_name"] for text in rows.conditions} == {"B"}
    assert rows.state.tolist().count("stopped") == 1


def test_where_no_objective_is_a_score_it_is_complete(tmp_path: Path, module: str) -> None:
    objectives = ("throughput_img_s", "params")
    config = stub(tmp_path / "log", include=both(module), objectives=objectives)
    run(tmp_path / "run", config, 0, worker=InProcessWorker(evaluate))
    rows = results.read_trials(tmp_path / "run")
    assert rows.state.tolist() == ["complete"] * 3
    assert results.read_front(tmp_path / "run").trial.tolist()


def test_a_row_without_an_architecture_says_so(tmp_path: Path, module: str) -> None:
    config = stub(tmp_path / "log", include=both(module))
    run(tmp_path / "run", config, 0, worker=InProcessWorker(evaluate))
    shown = CliRunner().invoke(main, ["cost", "run:0"])
    assert shown.exit_code == 2
    assert "has no architecture" in shown.output
    with pytest.raises(UserError, match="has no architecture"):
        load_run("run").arch(1)
    assert load_run("run").arch(2) == paper("van_b1")


def test_a_later_run_takes_what_has_an_architecture(tmp_path: Path, module: str) -> None:
    config = stub(tmp_path / "log", include=both(module), name="old")
    run(tmp_path / "old", config, 4, worker=InProcessWorker(evaluate))
    again = replace(config, name="new", seed=1)
    run(tmp_path / "new", again, 5, worker=InProcessWorker(evaluate), earlier=[tmp_path / "old"])
    taken = results.read_trials(tmp_path / "new").set_index("paper").taken_from
    assert pd.isna(taken[f"{module}:small"])
    assert "old:2" in taken["shipped"]
    assert build_report(tmp_path / "new")["taken_from"][0]["order"]["trials"] >= 3


def test_they_belong_to_what_a_run_is(tmp_path: Path, module: str) -> None:
    plain = stub(tmp_path / "log")
    first = replace(plain, include=both(module))
    assert "include" not in plain.to_dict()
    assert RunConfig.from_dict(first.to_dict()) == first
    assert default_name(plain, plain.space) != default_name(first, first.space)
    worded = replace(first, include={**first.include, **given(f"{module}:seven", "in other words")})
    assert default_name(worded, worded.space) == default_name(first, first.space)
    run(tmp_path / "run", first, 0, fixed={}, worker=InProcessWorker(evaluate))
    with own_module(tmp_path, f"{TEXT}# changed\n"):
        changed = replace(first, include=both(module))
    for other in (plain, changed):
        with (
            pytest.raises(UserError, match=f"holds another run: include.{module}:small was"),
            open_run(tmp_path / "run", other),
        ):
            pass


def test_files_and_functions_are_read(tmp_path: Path, module: str) -> None:
    arch = load_space("mine.toml").arch()
    (tmp_path / "other.json").write_text(json.dumps({"arch": {**arch.to_dict(), "name": "other"}}))
    found = included("mine.toml", "other.json", "mine.toml", f"{module}:small", f"{module}:seven", "timm:test_resnet")
    assert list(found) == ["mine", "other", f"{module}:small", f"{module}:seven", "timm:test_resnet"]
    assert found["mine"]["arch_id"] == found["other"]["arch_id"] == arch.arch_id
    assert Arch.from_dict(found["mine"]["network"]) == arch
    assert all("1/4 of the widths" in found[name]["network"]["no_score"] for name in list(found)[2:])
    wide = included(f"{module}:small", f"{module}:seven", f"{module}:Two", proxy="wide.toml")
    assert "no_score" not in wide[f"{module}:small"]["network"]
    assert "gives 7 classes where 10 are needed" in wide[f"{module}:seven"]["network"]["no_score"]
    assert "gives a tuple" in wide[f"{module}:Two"]["network"]["no_score"]
    larger = included("mine.toml", "timm:test_resnet", image_size=None)
    assert larger["mine"]["network"]["image_size"] == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("space.toml", "an architecture fixes every value"),
        ("nothing.toml", "no such space file"),
        ("nothing.json", "cannot be read as an architecture"),
        ("wide.json", "not valid JSON"),
        ("davit_tiny", "a paper's model is included by --papers"),
        ("mine", "FILE.toml .* are allowed"),
        ("large.toml", "is for 224 px, the space is for 64 px"),
        ("van_b0.toml", "is named van_b0, as a paper's model"),
        ("same.toml", "another included network is named mine too"),
        ("elsewhere/mine.toml", "its convnext.py is another file than the run's"),
        ("timm:resnet_18", "did you mean 'resnet18'"),
    ],
)
def test_what_cannot_be_included_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "wide.json").write_text("[")
    (tmp_path / "large.toml").write_text(ARCH.replace("image_size = 64", "image_size = 224"))
    (tmp_path / "van_b0.toml").write_text(ARCH.replace('"mine"', '"van_b0"'))
    (tmp_path / "same.toml").write_text(ARCH)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "convnext.py").write_text(CONVNEXT.read_text().replace('"convnext"', '"convnext2"'))
    theirs = (
        ARCH.replace('"mine"', '"theirs"')
        .replace('= "convnext"', '= "convnext2"')
        .replace("\nconvnext =", "\nconvnext2 =")
    )
    (tmp_path / "elsewhere" / "mine.toml").write_text(theirs)
    with pytest.raises(UserError, match=words):
        included("mine.toml", text)


def test_functions_are_refused_where_other_machines_evaluate(module: str) -> None:
    with pytest.raises(UserError, match="--ray"):
        included(f"{module}:small", ray=True)
    assert list(included("timm:test_resnet", "mine.toml", ray=True)) == ["timm:test_resnet", "mine"]


def cli(*options: str) -> Result:
    base = ["run", "space.toml", "--budget", "20M", "--tolerance", "60%", "--papers", "none", "--device", "cpu"]
    return CliRunner().invoke(main, [*base, "--batch-size", "1", "--proxy", "wide.toml", "--output", "out", *options])


def test_a_bad_one_leaves_no_run(tmp_path: Path, module: str) -> None:
    done = cli("--include", f"{module}:raises")
    assert done.exit_code == 2
    assert f"error: --include {module}:raises: cannot be built: ValueError: no weights here" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_run_measures_them_in_its_workers(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = "support.cli_stub:evaluate_with_short_timings"
    monkeypatch.setattr(local, "ProcessWorker", partial(ProcessWorker, evaluator=evaluator))
    names = [f"{module}:small", f"{module}:seven", "timm:test_resnet", "mine"]
    options = [word for name in names for word in ("--include", "mine.toml" if name == "mine" else name)]
    done = cli(*options, "--trials", "1", "--no-recheck")
    assert done.exit_code == 0, done.output
    rows = pd.read_parquet("out/trials.parquet")
    by_name = rows[rows.is_fixed].set_index("paper").loc[names]
    assert by_name.state.tolist() == ["complete", "stopped", "complete", "complete"]
    assert by_name.proxy_score.notna().tolist() == [True, False, True, True]
    assert (by_name.macs == by_name.macs_fvcore).all()
    assert (by_name.throughput_img_s > 0).all()
    again = cli(*options, "--trials", "1", "--no-recheck")
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(pd.read_parquet("out/trials.parquet"), rows)
