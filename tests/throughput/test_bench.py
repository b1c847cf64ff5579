"""`archsearch bench` on small images with a short protocol: the order of measurements, what is kept, and what is shown."""

import dataclasses
import functools
import io
import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from archsearch import Arch, build
from archsearch.cli import main
from archsearch.device import affinity, use_cpu
from archsearch.errors import UserError
from archsearch.models import Network
from archsearch.report import bench_parts, show
from archsearch.report.bench import interrupted_sentence
from archsearch.space import ImageSize, paper
from archsearch.throughput import BenchTask, Protocol, bench, bench_document, bench_task
from archsearch.throughput.bench import Document

QUICK = functools.partial(Protocol, warmup_s=0.0, block_s=0.001, max_s=0.0, min_blocks=2, min_warmup_iterations=2)
ARCHS = {"van_b0": paper("van_b0"), "twin": paper("van_b0")}


@pytest.fixture(scope="module", autouse=True)
def _short_protocol() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Protocol, "for_device", lambda device, **given: QUICK(**given))
        yield


def make_task(*names: str, image_size: ImageSize | None = 32, batch_size: int | None = 1, **how: object) -> BenchTask:
    archs = {name: ARCHS[name] for name in names}
    given = {"device": "cpu", "dtype": "float32", "mode": "eager", "image_size": image_size, "batch_size": batch_size}
    return bench_task(archs, **{**given, **how})  # type: ignore[arg-type]  # a mapping of values of several types


def run_task(task: BenchTask) -> tuple[Document, list[str]]:
    """The document and the lines of progress."""
    lines: list[str] = []
    return bench_document(task, lines.append), lines


@pytest.fixture(scope="module")
def rounds() -> tuple[Document, list[str]]:
    return run_task(make_task("van_b0", "twin", rounds=3, against=paper("pvt_tiny")))


def test_every_round_measures_all_and_the_result_is_the_round_with_the_median_ratio(
    rounds: tuple[Document, list[str]],
) -> None:
    document, lines = rounds
    begun = [line.split(",")[0] for line in lines if line.endswith("building")]
    assert [sorted(begun[i : i + 2]) for i in (0, 2, 4)] == [["twin", "van_b0"]] * 3
    assert begun[:2] == ["van_b0", "twin"]
    assert (document["measured"], document["asked"], document["interrupted"]) == (6, 6, False)
    for result in document["results"]:
        ratios = [one["ratio_to_reference"] for one in result["rounds"]]
        assert len(ratios) == 3
        assert result["ratio_to_reference"] == statistics.median(ratios)
        assert result["ratio_spread"] == pytest.approx((max(ratios) - min(ratios)) / statistics.median(ratios))
        # Only roughly: this is a ratio of medians, the other a median of the blocks' ratios.
        assert result["throughput_img_s"] / result["reference_img_s"] == pytest.approx(
            result["ratio_to_reference"], rel=0.5
        )
    assert document["reference"]["name"] == document["conditions"]["reference"] == "pvt_tiny"


def test_the_table_has_the_reference_first_and_fits_its_terminal(rounds: tuple[Document, list[str]]) -> None:
    for width in (80, 140):
        stream = io.StringIO()
        show(Console(file=stream, width=width), *bench_parts(rounds[0]))
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert lines[0].split()[:5] == ["architecture", "img/s", "IQR", "ms/batch", "ratio"]
        assert {"MACs", "params"} < set(lines[0].split())
        rows = [line for line in lines[2 : lines.index("")] if not line.startswith("(reference)")]  # folded at 80
        assert [line.split()[0] for line in rows] == ["pvt_tiny", "van_b0", "van_b0"]
        assert "(reference)" in " ".join(lines[2:4])
        assert "1.000" in lines[2]


def test_a_sweep_doubles_the_batch_until_memory_ends_it() -> None:
    assert make_task("van_b0", batch_size=None, sweep=5).batch_sizes == (1, 2, 4, 5)
    assert make_task("van_b0", batch_size=None, sweep=1).batch_sizes == (1,)
    assert make_task("van_b0", batch_size=None, sweep="max").batch_sizes == (1, 2, 4, 8, 16, 32, 64)
    # No machine has memory for the last one, and every allocator refuses it at once.
    document, _ = run_task(dataclasses.replace(make_task("van_b0"), batch_sizes=(1, 2, 2**40)))
    assert [(result["batch_size"], result["error"]) for result in document["results"]] == [(1, None), (2, None)]
    assert f"infeasible at batch size {2**40}" in document["sweep_ends"]["van_b0"]
    stream = io.StringIO()
    show(Console(file=stream, width=100), *bench_parts(document))
    assert "van_b0: the sweep ends here; throughput: " in stream.getvalue()
    assert "batch 1 to 2, 32 px" in stream.getvalue()


def test_ctrl_c_keeps_what_was_measured() -> None:
    def say(line: str) -> None:
        if line.startswith("twin: warming up"):
            raise KeyboardInterrupt

    document = bench_document(make_task("van_b0", "twin"), say)
    assert document["interrupted"]
    (result,) = document["results"]
    assert (result["asked"], result["task"]) == ("van_b0", "forward")
    assert interrupted_sentence(document) == "interrupted: 1 of 2 measurements were made"


def test_different_image_sizes_have_a_column_and_a_reference_each() -> None:
    task = make_task("van_b0", "twin")
    larger = dataclasses.replace(task.protocols["twin"], image_size=64)
    document, _ = run_task(dataclasses.replace(task, protocols={**task.protocols, "twin": larger}))
    stream = io.StringIO()
    show(Console(file=stream, width=140), *bench_parts(document))
    rows = [line.split() for line in stream.getvalue().splitlines()[2:6]]
    assert [row[row.index("van_b0") + 1] for row in rows] == ["(reference)", "(reference)", "32", "64"]
    assert " px" not in stream.getvalue().split("measured on")[1]


@pytest.mark.parametrize("train", [False, True])
def test_channels_and_both_sides_are_those_of_the_timed_images(monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    seen: list[tuple[int, ...]] = []

    def made(arch: Arch, **options: Any) -> Network:
        model: Network = build(arch, **options)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        return model

    monkeypatch.setattr(bench, "build", made)
    task = make_task("van_b0", image_size=(32, 64), in_chans=4, batch_size=2, train=train)
    document, _ = run_task(task)
    assert set(seen) == {(2, 4, 32, 64)}  # the model's and the reference's
    (result,) = document["results"]
    assert (result["image_size"], result["in_chans"], result["error"]) == ((32, 64), 4, None)
    cost = build(paper("van_b0"), in_chans=4).arch.cost((32, 64))
    assert [result[key] for key in ("macs", "params", "reference_macs")] == [cost.macs, cost.params, cost.macs]
    stream = io.StringIO()
    show(Console(file=stream, width=140), *bench_parts(document))
    assert "batch 2, 32x64 px, 4 channels" in stream.getvalue()


def test_an_architectures_own_channels_are_timed_beside_others() -> None:
    task = make_task("van_b0", "twin")
    archs = {**task.archs, "twin": dataclasses.replace(paper("van_b0"), in_chans=1)}
    document, _ = run_task(bench_task(archs, device="cpu", dtype="float32", mode="eager", batch_size=1, image_size=32))
    assert [result["in_chans"] for result in document["results"]] == [3, 1]
    stream = io.StringIO()
    show(Console(file=stream, width=140), *bench_parts(document))
    rows = [line.split() for line in stream.getvalue().splitlines()[2:6]]
    assert [row[row.index("van_b0") + 1] for row in rows] == ["(reference)", "(reference)", "3", "1"]


def test_the_train_option_selects_the_training_task() -> None:
    assert make_task("van_b0", train=True).protocols["van_b0"].task == "train"


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"sweep": 4}, "--batch-size: got 1, but --sweep"),
        ({"sweep": 4, "batch_size": None, "rounds": 2}, "--rounds: got 2, but --sweep"),
        ({"against": paper("lit_ti"), "image_size": 20}, "^the reference lit_ti at 20 px: "),
    ],
)
def test_options_that_exclude_each_other_are_refused(how: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_task("van_b0", **how)  # type: ignore[arg-type]  # a mapping of values of several types


def test_a_cpu_has_no_telemetry_and_none_is_missing(rounds: tuple[Document, list[str]]) -> None:
    document, _ = rounds
    assert document["telemetry_missing"] is None
    assert all(result["telemetry"] is None and not result["throttled"] for result in document["results"])
    assert document["conditions"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    "arguments", [["--cpus", "a"], ["--threads", "99999"], ["--sweep", "van_b0"], ["--rounds", "0"]]
)
def test_a_bad_option_is_reported_in_one_sentence(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["bench", "van_b0", *arguments])
    assert done.exit_code == 2
    assert arguments[0].strip("-") in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds a process to cores")
def test_requested_threads_and_cores_are_recorded() -> None:
    cores = affinity()
    assert cores is not None
    arguments = ["bench", "van_b0", "--batch-size", "1", "--image-size", "32", "--device", "cpu", "--json"]
    try:
        done = CliRunner().invoke(main, [*arguments, "--threads", "1", "--cpus", str(cores[0])])
    finally:
        use_cpu(cpus=cores)
    assert done.exit_code == 0, done.stderr
    noted = json.loads(done.stdout)["conditions"]
    assert (noted["threads"], noted["affinity"]) == (1, cores[:1])
