"""The whole product on a small space: real networks, real timings, real training, through the command line."""

import json
import shutil
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.settings import settings_for

import archsearch
from archsearch import Arch, build
from archsearch.cli import main
from archsearch.data import load_fashion_mnist
from archsearch.device import affinity
from archsearch.errors import RunError, UserError
from archsearch.identity import identity_digest, row_identity
from archsearch.models import count_flop_counter
from archsearch.proxy import Recipe, Scale, start_training
from archsearch.proxy.training_free import scores
from archsearch.search import run as running
from archsearch.search.config import RunConfig
from archsearch.search.engine.workers import local
from archsearch.search.engine.workers.process import ProcessWorker
from archsearch.search.evaluate import evaluate
from archsearch.space import Space

SHARED = Path(__file__).parents[3] / "shared" / "data" / "clothing-mini"
SPACE = """
name = "tiny"
image_size = 64
num_classes = 10
stem = { kind = ["patch", "overlapping"], patch = { kernel = 4 } }
[[stages]]
width = [32, 64]
depth = [1, 2]
block = ["mlp", "hilo", "lsa/gsa", "lka"]
head_dim = 16
lsa = { window = 4 }
gsa = { reduction = 4 }
[[stages]]
width = 64
depth = [1, 2]
downsample = ["patch", "deformable"]
block = ["window/channel", "sda/lda"]
head_dim = 16
window = { window = 4 }
sda = { window = 4 }
lda = { window = 4, interval = 2 }
"""
BUDGET = 20_000_000


@pytest.fixture
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `archsearch run` time networks in tenths of seconds: how well it times is asserted in tests/throughput."""
    evaluator = "support.cli_stub:evaluate_with_short_timings"
    monkeypatch.setattr(local, "ProcessWorker", partial(ProcessWorker, evaluator=evaluator))


@pytest.fixture
def space(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(SPACE)
    return file


def run(space: Path, output: Path, *options: str) -> Result:
    base = [
        "run",
        str(space),
        "--budget",
        str(BUDGET),
        "--tolerance",
        "40%",
        "--papers",
        "none",
        "--device",
        "cpu",
        "--proxy-steps",
        "2",
    ]
    return CliRunner().invoke(main, [*base, "--batch-size", "1", "--output", str(output), *options])


@pytest.mark.slow
@pytest.mark.usefixtures("_short_timings")
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_run_in_another_runtime_is_another_run_whose_figures_are_its_own(space: Path, tmp_path: Path) -> None:
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    output, options = tmp_path / "run", ("--trials", "1", "--runtime", "onnxruntime")
    done = run(space, output, *options)
    assert done.exit_code == 0, done.output
    report = " ".join(CliRunner().invoke(main, ["report", str(output)]).output.split())
    assert "onnxruntime" in report.split("measured on")[1]
    row = pq.read_table(output / "trials.parquet").to_pylist()[0]
    assert row["state"] == "complete", row["reason"]
    conditions = json.loads(row["conditions"])
    assert (conditions["runtime"], conditions["precision"]) == ("onnxruntime", "float32")
    assert 0 <= conditions["difference_from_torch"] < 1e-4
    torchs = {name: value for name, value in conditions.items() if not name.startswith(("runtime", "precision"))}
    assert identity_digest(row_identity(row)) == row["throughput_id"]
    assert identity_digest(row_identity({**row, "conditions": json.dumps(torchs)})) != row["throughput_id"]
    again = run(space, output, *options)  # nothing is left to do, and nothing is said of other timings
    assert again.exit_code == 0, again.output
    assert "--remeasure" not in again.output
    other = run(space, output, "--trials", "1")
    assert other.exit_code == 2
    assert "runtime" in str(other.exception) + other.output


@pytest.mark.usefixtures("_short_timings")
def test_a_real_run_from_space_to_front_and_again(space: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    here = affinity()
    cores = ["--cpus", str(here[0])] if here else []
    done = run(space, output, "--trials", "1", *cores)
    assert done.exit_code == 0, done.output
    rows = pd.read_parquet(output / "trials.parquet")
    assert list(rows.state) == ["complete"]
    assert (rows.macs == rows.macs_fvcore).all()
    assert rows.macs.between(0.6 * BUDGET, 1.4 * BUDGET).all()
    assert (rows.throughput_img_s > 0).all()
    assert np.allclose(rows.throughput_img_s * rows.latency_ms, 1000 * rows.batch_size)
    assert rows.proxy_score.between(0, 1).all()
    assert rows.proxy_id.unique().tolist() == [
        "fashion-mnist-12k@32px/stem2/grids16-8-4-2/windows4of7/width1of4/2steps/batch32/lr0.002/float32/v1"
    ]
    for row in rows.itertuples():
        arch = Arch.from_dict(json.loads(str(row.arch)))
        assert (arch.arch_id, arch.cost().macs, arch.cost().params) == (row.arch_id, row.macs, row.params)
        conditions = json.loads(str(row.conditions))
        assert (conditions["threads"], conditions["affinity"]) == (1, here and here[:1])
        assert conditions["again"]["date"] >= conditions["date"]
    assert np.allclose(rows.throughput_change, rows.throughput_again_ratio / rows.throughput_ratio - 1)
    assert "1 of 1 members" in " ".join(done.output.split())
    front = pq.read_table(output / "front.parquet").to_pandas()
    counted = (
        duckdb.connect().execute(f"select front_name, count(*) from '{output}/front.parquet' group by 1").fetchall()
    )
    assert dict(counted) == front.front_name.value_counts().to_dict()
    assert set(front.front_name) == {
        "objectives",
        "proxy_score/macs",
        "proxy_score/params",
        "proxy_score/throughput_img_s",
    }

    again = run(space, output, "--trials", "2", "--no-recheck", *cores)
    assert again.exit_code == 0, again.output
    more = pd.read_parquet(output / "trials.parquet")
    pd.testing.assert_frame_equal(more.iloc[:1].drop(columns="front"), rows.drop(columns="front"))
    assert len(more) == 2

    for option, value, words in (
        ("--seed", "9", "seed was 0, now 9"),
        ("--threads", "1", "settings.threads was None, now 1"),
    ):
        other = run(space, output, "--trials", "2", *cores, option, value)
        assert other.exit_code == 2
        assert f"holds another run: {words};" in other.output


def test_threads_and_cores_that_are_not_there_are_refused_before_there_is_a_run(space: Path, tmp_path: Path) -> None:
    for option, value in (("--threads", "9999"), ("--cpus", "9999")):
        done = run(space, tmp_path / "run", option, value)
        assert done.exit_code == 2
        assert done.output.startswith(f"error: {option}: ")
        assert not (tmp_path / "run").exists()


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)


def _folder(root: Path, classes: list[str], number: int = 4) -> Path:
    for split in ("train", "val"):
        for name in classes:
            for index in range(number):
                _picture(root / split / name / f"{index}.jpg")
    return root


def test_bad_data_is_one_sentence_and_leaves_no_run(space: Path, tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", ["cat"])
    damaged = _folder(tmp_path / "damaged", ["cat", "dog"])
    (damaged / "train" / "cat" / "0.jpg").write_bytes(b"no picture")
    no_val = _folder(tmp_path / "noval", ["cat", "dog"])
    shutil.rmtree(no_val / "val")  # asked for below: left out, validation would be held out of training
    cases = {
        tmp_path / "absent": "absent",
        one: "cat",
        damaged: "0.jpg",
        no_val: "val",
        tmp_path / "empty": "empty",
    }
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    for data, word in cases.items():
        done = run(space, tmp_path / "run", "--trials", "1", "--data", str(data), "--val-split", "val")
        assert done.exit_code == 2, done.output
        sentence = done.output.strip().splitlines()[-1]
        assert sentence.startswith("error: ")
        assert word in sentence
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_short_timings")
def test_a_real_run_takes_the_figures_of_an_earlier_one(space: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    one = ("--sampler", "random", "--workers", "1", "--no-rungs", "--no-recheck")
    assert run(space, old, "--trials", "1", *one).exit_code == 0
    before = pd.read_parquet(old / "trials.parquet")
    # The same seed draws the same first candidate.
    done = run(space, new, "--trials", "2", *one, "--from", str(old))
    assert done.exit_code == 0, done.output
    rows = pd.read_parquet(new / "trials.parquet")
    figures = ["arch_id", "proxy_score", "proxy_id", "throughput_img_s", "throughput_id", "macs_fvcore", "conditions"]
    assert rows.loc[0, figures].to_dict() == before.loc[0, figures].to_dict()
    assert json.loads(rows.taken_from[0]) == dict.fromkeys(("count", "throughput", "proxy"), "old:0")
    assert pd.isna(rows.taken_from[1])
    assert (rows.seconds_proxy[0], rows.seconds_throughput[0]) == (0, 0)
    assert rows.seconds_proxy[1] > 0
    said = " ".join(done.output.split())
    assert f"took the figures of 1 trials from {old}; they are kept in this run" in said
    assert "throughput from old:0, score from old:0" in said
    assert "1 timing and 1 score of" in said

    itself = run(space, new, "--trials", "2", *one, "--from", str(new))
    assert itself.exit_code == 2
    assert "is the run itself" in itself.output
    shutil.rmtree(old)
    again = run(space, new, "--trials", "2", *one, "--from", str(old))
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(pd.read_parquet(new / "trials.parquet"), rows)


@pytest.mark.slow
def test_images_exchanged_under_a_run_fail_the_trial_and_copies_do_not(tmp_path: Path) -> None:
    arch = Space(tomllib.loads(SPACE), "tiny.toml", SPACE).sample(lambda name, choices: choices[0])
    for name in ("images", "others"):
        classes = ["cat", "dog", name]
        prepare_args = [str(_folder(tmp_path / f"{name}-set", classes)), str(tmp_path / name), "--val-split", "val"]
        assert CliRunner().invoke(main, ["prepare", *prepare_args]).exit_code == 0
    folder = tmp_path / "images"
    settings = {**settings_for(data=folder, steps=4, rungs=(1, 2)), "phases": ["proxy@2"]}
    scores: list[float] = []

    def train(phase: str = "proxy@2") -> None:
        evaluate(arch.to_dict(), {**settings, "phases": [phase]}, {}, keep)

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "phase":
            scores.append(event["values"]["proxy_score"])

    def exchange(new: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(new, folder)

    shutil.copytree(folder, tmp_path / "kept")
    train()
    exchange(tmp_path / "kept")  # the same images in new files
    train()
    assert scores[0] == scores[1]
    exchange(tmp_path / "others")
    for phase in ("proxy", "proxy@2"):  # a training that waits at its rung is not gone on with either
        with pytest.raises(RunError, match=r"the images are others-set-\d+-\w+ now, and this run trains on images-set"):
            train(phase)
    exchange(tmp_path / "kept")
    images = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(images[:-1] + bytes([images[-1] ^ 1]))  # others under the same manifest
    with pytest.raises(UserError, match=r"'train_images\.npy' not as written"):
        train()
    exchange(tmp_path / "kept")
    train()
    assert scores[0] == scores[2]


@pytest.mark.slow
@pytest.mark.usefixtures("_short_timings")
def test_a_real_run_in_rungs(space: Path, tmp_path: Path) -> None:
    done = run(space, tmp_path / "run", "--trials", "3", "--no-recheck", "--proxy-steps", "12", "--rungs", "1,2,6")
    assert done.exit_code == 0, done.output
    rows = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert rows.state.isin(["complete", "stopped"]).all()
    curves = [json.loads(text) for text in rows.learning_curve]
    assert [[point["steps"] for point in curve] for curve in curves] == [[2, 4, 12][:rung] for rung in rows.rung]
    assert (rows.train_images == [32 * curve[-1]["steps"] for curve in curves]).all()
    assert rows.seconds_proxy.tolist() == pytest.approx([sum(point["seconds"] for point in curve) for curve in curves])
    assert "with rungs at 2, 4 of 12 steps" in " ".join(done.output.split())


def _proxies(jobs: list[list[str]], **options: Any) -> dict[str, dict[str, Any]]:
    """What training phases give, in this process: those of one job go on from each other, and so do jobs that follow each other."""
    found: dict[str, dict[str, Any]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "phase":
            names = ("proxy_score", "proxy_train_loss", "proxy_id")
            found[event["phase"]] = {name: event["values"].get(name) for name in names}

    arch = Space(tomllib.loads(SPACE), "tiny.toml", SPACE).sample(lambda name, choices: choices[0])
    for phases in jobs:
        settings = {**settings_for(**options), "phases": phases}
        evaluate(arch.to_dict(), settings, {}, keep)
    return found


@pytest.mark.slow
def test_rungs_change_nothing_of_the_full_score_and_a_lost_training_is_made_up_for(tmp_path: Path) -> None:
    rungs: dict[str, Any] = {"steps": 12, "rungs": (1, 2, 4)}
    in_parts = _proxies([["proxy@3"], ["proxy@6"], ["proxy"]], **rungs)
    assert in_parts["proxy"] == _proxies([["proxy"]], steps=12)["proxy"]
    # Another job came between, as after a crash: the training starts again, and comes to the same.
    after_a_crash = _proxies([["proxy@3"], ["count"], ["proxy@6"]], **rungs)
    assert after_a_crash["proxy@6"] == in_parts["proxy@6"]
    _proxies([["proxy@3"]], steps=12, rungs=(1, 4))
    assert _proxies([["proxy@6"]], **rungs)["proxy@6"] == in_parts["proxy@6"]


@pytest.mark.slow
def test_other_seeds_and_free_scores_are_those_of_the_library() -> None:
    """Phases `seed@1` and `free` of a real evaluation against the training and the scores made by hand."""
    arch = Space(tomllib.loads(SPACE), "tiny.toml", SPACE).sample(lambda name, choices: choices[0])
    settings = {**settings_for(steps=3), "phases": ["proxy", "seed@1", "free"]}
    found: dict[str, dict[str, Any]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "phase":
            found[event["phase"]] = event["values"]

    evaluate(arch.to_dict(), settings, {}, keep)
    recipe = replace(Recipe(**settings["proxy"]["recipe"]), seed=1)
    training = start_training(arch, load_fashion_mnist(), Scale(**settings["proxy"]["profile"]), recipe, "cpu")
    assert found["seed@1"]["proxy_score"] == training.advance(3).score
    assert found["seed@1"]["proxy_score"] != found["proxy"]["proxy_score"]
    for name, value in scores(arch).items():
        assert found["free"].get(f"free_{name}", value) == value
    assert len(found["free"]) == 5
    assert found["proxy"]["proxy_loader_images_s"] > 0
    assert found["proxy"]["proxy_step_images_s"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/clothing-mini, which is not beside this checkout")
def test_a_real_run_on_photographs(space: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run(space, output, "--trials", "1", "--data", str(SHARED))
    assert done.exit_code == 0, done.output
    row = pd.read_parquet(output / "trials.parquet").iloc[0]
    assert row.state == "complete"
    assert row.proxy_id.startswith("clothing-mini-64-") or row.proxy_id.startswith("clothing-mini-")
    assert "128px" in row.proxy_id
    shown = CliRunner().invoke(main, ["report", str(output)])
    assert "not ImageNet accuracy" in " ".join(shown.output.split())


@pytest.mark.slow
@pytest.mark.usefixtures("_short_timings")
def test_a_run_for_images_of_four_channels_and_two_sides(space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE.replace("image_size = 64", "image_size = [64, 96]\nin_chans = 4"))
    output = tmp_path / "run"
    done = run(space, output, "--trials", "2", "--no-recheck", "--threads", "1")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "64x96 px, 4 channels; the proxy trains copies whose stem takes the 3 channels" in said
    report = CliRunner().invoke(main, ["report", str(output)])
    assert "batch 1, 64x96 px, 4 channels" in " ".join(report.output.split())
    found = archsearch.load_run(output)
    assert (list(found.trials.state), set(found.trials.image_size)) == (["complete"] * 2, {64})
    for row in found.trials.to_dict("records"):
        document = json.loads(row["arch"])
        arch = Arch.from_dict(document)
        assert (arch.in_chans, arch.image_size, document["image_size"]) == (4, (64, 96), [64, 96])
        cost = arch.cost()
        assert (arch.arch_id, cost.macs, cost.params) == (row["arch_id"], row["macs"], row["params"])
        assert cost == replace(arch, image_size=32, in_chans=3).cost((64, 96), 4)
        model = build(arch).eval()
        assert count_flop_counter(model, (64, 96), 4) == cost.macs - cost.norm_macs
        assert model(torch.zeros(1, 4, 64, 96)).shape == (1, 10)
        assert row["macs_fvcore"] == row["macs"]
        conditions = json.loads(row["conditions"])
        assert (conditions["image_width"], conditions["in_chans"]) == (96, 4)
        assert identity_digest(row_identity({str(key): value for key, value in row.items()})) == row["throughput_id"]
    for options, words in (
        (("--image-size", "64"), "settings.image_size was 64x96, now 64"),
        (("--image-size", "96", "64"), "settings.image_size was 64x96, now 96x64"),
    ):
        other = run(space, output, "--trials", "2", "--no-recheck", "--threads", "1", *options)
        assert other.exit_code == 2
        assert words in other.output
        assert "--image-size 64x96" in " ".join(other.output.split())


def test_another_size_than_the_spaces_belongs_to_the_run(space: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"space": str(space), "papers": "none", "budget_macs": BUDGET, "tolerance": 0.4}
    asked |= {"objectives": ("proxy_score", "macs"), "sampler": "random", "seed": 0, "trials": 1, "timeout_s": None}
    asked |= {"storage": None, "output": None, "results_root": tmp_path, "recheck": False, "remeasure": False}
    asked |= {"seeds": 1, "rungs": (), "fix": {}, "proxy": None, "measuring": {"device": "cpu"}}
    asked |= {"training": {"data": None, "train_split": "train", "val_split": None, "max_unreadable": 0.01}}
    asked["training"] |= {"steps": None, "training_free": False, "free_rung": None}
    configured = [
        running.configure(running.RunRequest(**asked, image_size=size)) for size in (None, 64, (64, 96), (96, 64))
    ]
    (own, folder), (same, same_folder), *others = configured
    assert (own, folder) == (same, same_folder)
    assert len({path for _, path in configured}) == 3
    for config, size in zip([each for each, _ in others], [(64, 96), (96, 64)], strict=True):
        assert config.space.plan.image_size == size
        assert config.space_text == own.space_text
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))).space.plan.image_size == size
        assert config.differences(own) == [f"settings.image_size was {size[0]}x{size[1]}, now 64"]
        assert config.options(own) == f"--image-size {size[0]}x{size[1]}"
    said: list[str] = []
    running.configure(running.RunRequest(**{**asked, "papers": "nearest"}, image_size=(64, 96)), say=said.append)
    assert "no fixed trials: no paper's model is for images of 64x96 px" in said
    with pytest.raises(UserError, match=r"at 2x64 px: .*image_size"):
        running.configure(running.RunRequest(**asked, image_size=(2, 64)))
