"""The command line by click's test runner: what it prints, where, and how it ends."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from support.runs import make_rung_config

import archsearch
from archsearch.blocks import own_choices, registered_layers
from archsearch.cli import main, progress
from archsearch.cli.bench import SWEEP_ALL
from archsearch.cli.live import LiveListener, watching
from archsearch.cli.run import SAMPLER_NAMES
from archsearch.data.subset import DEFAULT_VAL_SHARE
from archsearch.errors import LONGEST_SENTENCE
from archsearch.proxy.task import DEFAULT_PROXY
from archsearch.samplers import SAMPLERS
from archsearch.search import ProcessWorker, Tally, TimeLeft
from archsearch.search.engine.workers import local
from archsearch.space import REFERENCE, Arch, choose_papers, load_space, paper, paper_names
from archsearch.throughput import Protocol, bench
from archsearch.throughput.calibration.plan import DEFAULT_SLOPES
from archsearch.throughput.measurement import DEFAULT_BATCH_SIZE

Cli = Callable[..., Result]

DAVIT_TINY = (4_540_244_736, 28_360_168)  # the paper's 4.5 G and 28.3 M, to the unit
CHECKOUT = Path(__file__).parents[2]

TINY_SPACE = """
name = "small"
image_size = 32
num_classes = 10
[stem]
kind = "patch"
patch = { kernel = 4, pad = false }
[[stages]]
width = [32, 64]
depth = [1, 2, 3]
block = ["mlp", "hilo"]
[[stages]]
width = 64
depth = [1, 2]
block = "lka"
downsample = "patch"
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`archsearch ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: str, text: str | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
        return CliRunner().invoke(main, arguments, input=text)

    return invoke


def document(result: Result) -> Any:
    """What a command printed as JSON, and nothing else, on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def refused(result: Result) -> str:
    """The one sentence on stderr of a command that ends with exit code 2."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    # What is loaded is said where that takes longer than a moment.
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("loading ", "reading "))]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ").strip()


def tiny_space(folder: Path, *changes: tuple[str, str]) -> str:
    """A space of 72 small networks, with changes, as a file."""
    text = TINY_SPACE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "small.toml").write_text(text)
    return "small.toml"


# Help


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from archsearch.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'optuna', 'pandas', 'rich', 'numpy', 'pyarrow', 'timm'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "--budget" in done.stdout


def test_every_command_and_option_has_help_with_its_default() -> None:
    parent = main.make_context("archsearch", [], resilient_parsing=True)
    for name, command in main.commands.items():
        assert command.get_short_help_str(limit=80), name
        assert not command.get_short_help_str(limit=60).endswith("..."), name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                record = parameter.get_help_record(
                    command.make_context(name, [], parent=parent, resilient_parsing=True)
                )
                assert record is not None
                assert parameter.required or "default:" in record[1], (name, record)


def test_short_help_and_version_and_no_command(cli: Cli) -> None:
    assert cli("-h").stdout == cli("--help").stdout
    assert cli("--version").stdout.split() == ["main", archsearch.__version__]
    assert cli("cost", "-h").exit_code == 0


def test_unknown_words_are_usage_errors(cli: Cli) -> None:
    for arguments in (
        ["runn"],
        ["run", "--budgt", "1G"],
        ["run"],
        ["sample", "-n", "0"],
        ["run", "--budget", "1G", "--device", "tpu"],
    ):
        assert cli(*arguments).exit_code == 2, arguments


# Looking


def test_blocks_lists_every_registered_layer_with_its_choices(cli: Cli) -> None:
    listed = {(item["role"], item["kind"]): item for item in document(cli("blocks", "--json"))}
    for role in ("block", "stem", "downsample", "extra", "head"):
        for kind, layer in registered_layers(role).items():
            fields = {field["name"]: field for field in listed[role, kind]["fields"]}
            for name, choices in own_choices(layer).items():
                assert fields[name]["choices"] == list(choices)
                assert fields[name]["meaning"]
    assert {kind for role, kind in listed if role == "block"} >= {
        "mlp",
        "sda",
        "lda",
        "lsa",
        "gsa",
        "hilo",
        "window",
        "channel",
        "lka",
    }
    text = cli("blocks").stdout
    assert "a/b" in text
    assert all(kind in text for _, kind in listed)


def test_cost_of_davit_tiny_is_the_papers_to_the_unit(cli: Cli) -> None:
    cost = document(cli("cost", "davit_tiny", "--json"))
    assert (cost["macs"], cost["params"]) == DAVIT_TINY
    assert cost["activations"] == sum(layer["activations"] for layer in cost["layers"]) == 17_081_320
    assert (cost["name"], cost["image_size"]) == ("davit_tiny", 224)
    assert sum(layer["macs"] for layer in cost["layers"]) == cost["macs"]
    assert sum(layer["params"] for layer in cost["layers"]) == cost["params"]
    assert sum(layer["share"] for layer in cost["layers"]) == pytest.approx(1)
    assert cost["layers"][0]["input"] == [3, 224, 224]
    assert [layer["input"] for layer in cost["layers"][1:]] == [layer["output"] for layer in cost["layers"][:-1]]


def test_sizes_and_channels_of_the_image_are_options(cli: Cli) -> None:
    arch = paper("davit_tiny")
    expected = arch.cost((192, 256), 4)
    for size in (["192x256"], ["192×256"], ["192", "256"]):
        cost = document(cli("cost", "davit_tiny", "--image-size", *size, "--in-chans", "4", "--json"))
        assert (cost["macs"], cost["params"]) == (expected.macs, expected.params)
        assert (cost["image_size"], cost["in_chans"], cost["arch_id"]) == ([192, 256], 4, arch.arch_id)
        assert cost["layers"][0]["input"] == [4, 192, 256]
        assert sum(layer["macs"] for layer in cost["layers"]) == expected.macs
    text = " ".join(cli("cost", "--image-size", "192", "256", "davit_tiny", "--in-chans", "1").stdout.split())
    assert "image of 192x256 and 1 channel;" in text
    assert "image of 384x384;" in " ".join(cli("cost", "davit_tiny", "--image-size", "384").stdout.split())
    for wrong in ("192y256", "192x", "0x192", "9000", "9" * 5000):
        assert "192x256, at most 8192" in refused(cli("cost", "davit_tiny", "--image-size", wrong))
    assert "crossformer_tiny at 225x321 px: " in refused(cli("cost", "crossformer_tiny", "--image-size", "225x321"))
    found = document(cli("sample", "-n", "2", "--image-size", "192x256", "--json"))
    for one in found:
        assert one["arch"]["image_size"] == [192, 256]
        assert one["macs"] == Arch.from_dict({**one["arch"], "image_size": 256}).cost((192, 256)).macs
    assert "hybrid at 192x256 px." in cli("sample", "-n", "1", "--image-size", "192x256").stdout
    assert "at 30x200 px: hybrid: image_size" in refused(cli("sample", "--image-size", "30x200"))


def test_cost_table_collapses_equal_blocks_and_gives_totals(cli: Cli) -> None:
    text = cli("cost", "davit_tiny").stdout
    row = next(line for line in text.splitlines() if "stages.3.blocks.1,3,5" in line)
    assert row.split()[3] == "3"
    counts = [int(match[1]) for match in re.finditer(r"\d+x\d+x\d+ +(\d+) ", text)]
    assert sum(counts) == 17
    assert "4540244736 MACs" in text
    assert "28360168 parameters" in text
    assert "17081320 activations" in " ".join(text.split())
    assert next(line for line in text.splitlines() if "activations" in line and "share" in line)
    assert row.split()[7] == "2.48M"  # 3 x 11 x 14 x 14 x 384


def test_cost_reads_what_sample_writes_and_a_space_file_of_size_one(cli: Cli, tmp_path: Path) -> None:
    sampled = document(cli("sample", "-n", "1", "--json"))[0]
    for text in (json.dumps(sampled), json.dumps(sampled["arch"]), json.dumps([sampled])):
        cost = document(cli("cost", "-", "--json", text=text))
        assert {key: cost[key] for key in ("arch_id", "macs", "params")} == {
            key: sampled[key] for key in ("arch_id", "macs", "params")
        }
    name = tiny_space(
        tmp_path, ("[32, 64]", "32"), ("[1, 2, 3]", "1"), ('["mlp", "hilo"]', '"mlp"'), ("depth = [1, 2]", "depth = 1")
    )
    (tmp_path / name).write_text(
        (tmp_path / name).read_text()
        + 'lka = { kernel = 9, dilation = 3, mlp_ratio = 4 }\npatch = { norm = "after", pad = false }\n'
    )
    text = (
        (tmp_path / name).read_text().replace('block = "mlp"', 'block = "mlp"\nmlp = { mlp_ratio = 2, conv = false }')
    )
    (tmp_path / name).write_text(text)
    assert document(cli("cost", name, "--json"))["name"] == "small"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "stdin: not valid JSON"),
        ("[]", "stdin: one architecture as a JSON object is needed, not a list of 0"),
        ('{"stem": {"kind": "patch"}, "stages": []}', "stdin: stages"),
        ("[" * 100_000, "stdin: not valid JSON"),
    ],
)
def test_cost_refuses_what_is_no_architecture(cli: Cli, text: str, words: str) -> None:
    assert words in refused(cli("cost", "-", text=text))


def test_cost_names_the_nearest_and_what_is_open(cli: Cli) -> None:
    assert "did you mean 'davit_tiny'?" in refused(cli("cost", "davit_tny"))
    assert "stem.kind has 3 choices" in refused(cli("cost", "hybrid"))
    assert "no such space file" in refused(cli("cost", "nowhere.toml"))
    assert "there is no run there yet" in refused(cli("cost", "nowhere:3"))
    assert "holds no run" in refused(cli("cost", ":3"))


def test_papers_are_close_to_what_they_publish(cli: Cli) -> None:
    papers = {item["name"]: item for item in document(cli("papers", "--json"))}
    assert sorted(papers) == paper_names()
    davit = papers["davit_tiny"]
    assert (davit["macs"], davit["params"]) == DAVIT_TINY
    assert davit["published"]["top1"] == 82.8
    assert davit["difference"]["macs"] == pytest.approx(4_540_244_736 / 4.5e9 - 1)
    assert papers["van_b6"]["difference"] == {"macs": None, "params": None}  # not published
    assert all(name in cli("papers").stdout for name in papers)


# Sampling


def test_sample_stays_in_the_band_and_comes_back_from_its_json(cli: Cli) -> None:
    sampled = document(cli("sample", "-n", "20", "--seed", "7", "--budget", "4.5GFLOPs", "--json"))
    assert len(sampled) == 20
    assert all(4_275_000_000 <= item["macs"] <= 4_725_000_000 for item in sampled)
    for item in sampled:
        arch = archsearch.Arch.from_dict(item["arch"])
        assert arch.arch_id == item["arch_id"]
        assert (arch.cost().macs, arch.cost().params) == (item["macs"], item["params"])
    narrow = document(cli("sample", "-n", "3", "--budget", "4.5G", "--tolerance", "0.01", "--json"))
    assert all(4_455_000_000 <= item["macs"] <= 4_545_000_000 for item in narrow)


def test_sample_depends_on_the_seed_alone(cli: Cli) -> None:
    first, again, other = (
        document(cli("sample", "-n", number, "--seed", seed, "--json"))
        for number, seed in (("6", "1"), ("3", "1"), ("3", "2"))
    )
    assert first[:3] == again
    assert again != other


def test_sample_of_a_file_covers_it(cli: Cli, tmp_path: Path) -> None:
    name = tiny_space(tmp_path)
    sampled = document(cli("sample", name, "-n", "60", "--json"))
    assert {item["arch"]["stages"][0]["block"] for item in sampled} == {"mlp", "hilo"}
    assert {item["arch"]["stages"][0]["depth"] for item in sampled} == {1, 2, 3}
    assert sampled[0]["arch_id"] in cli("sample", name, "-n", "60").stdout


def test_an_infeasible_budget_names_the_cheapest_and_the_most_expensive(cli: Cli, tmp_path: Path) -> None:
    for arguments in (["sample"], ["run", "--papers", "none"]):
        sentence = refused(cli(*arguments, "--budget", "1T"))
        assert "cheapest" in sentence
        assert "most expensive" in sentence
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('block = "lka"', 'block = "lkaa"'), ["stages.2.block", "did you mean 'lka'?"]),
        (('block = "lka"', 'block = "lka"\nkernels = 3'), ["stages.2.kernels", "unknown key"]),
        (("depth = [1, 2, 3]", "depth = []"), ["stages.1.depth", "empty"]),
        (("depth = [1, 2, 3]", "depth = [1, 2, 1]"), ["stages.1.depth", "1 stands twice"]),
        (('block = ["mlp", "hilo"]', 'block = "hilo"\nhead_dim = 24'), ["stages.1.head_dim", "24", "width 32"]),
        (
            ('block = ["mlp", "hilo"]', 'block = "lsa/gsa"\ngsa = { reduction = 9 }'),
            ["stages.1.gsa.reduction", "9", "8x8"],
        ),
        (("kernel = 4", 'kernel = "4"'), ["stem.patch.kernel", "whole number"]),
        (("[stem]", "[stem"), ["not valid TOML"]),
    ],
)
def test_a_bad_space_names_file_and_key(cli: Cli, tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    name = tiny_space(tmp_path, change)
    for arguments in (["sample", name], ["run", name, "--budget", "10M"]):
        sentence = refused(cli(*arguments))
        assert sentence.startswith("small.toml: ")
        assert all(word in sentence for word in words), sentence


# Running, with an evaluation that measures nothing


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have `archsearch run` evaluate by a function of cli_stub."""

    def use(name: str) -> None:
        monkeypatch.setattr(
            local, "ProcessWorker", functools.partial(ProcessWorker, evaluator=f"support.cli_stub:{name}")
        )

    return use


RUN = ("run", "--budget", "4.5GFLOPs", "--papers", "davit_tiny,van_b2", "--trials", "3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "-3G"], ["--budget", "'-3G'", "4.5GFLOPs"]),
        (["--budget", "lots"], ["--budget", "'lots'"]),
        (["--tolerance", "100%"], ["--tolerance", "'100%'"]),
        (["--timeout", "soon"], ["--timeout", "'soon'", "2h"]),
        (["--objectives", "proxy_score,flops"], ["--objectives", "'flops'", "throughput_img_s"]),
        (["--sampler", "tpee"], ["--sampler", "'tpee'", "nsga2"]),
        (["--papers", "davit_tny"], ["--papers", "did you mean 'davit_tiny'?"]),
        (["--papers", "litv2_b_384"], ["--papers", "384 px", "224 px"]),
        (["--papers", ","], ["--papers", "nearest"]),
        (["--data", "nowhere"], ["nowhere", "no such folder"]),
        (["--storage", "nonsense"], ["--storage", "postgresql://"]),
        (["--from", "nowhere"], ["--from", "nowhere", "holds no run"]),
        (["--rungs", "4,1"], ["--rungs", "'4,1'", "1,4,16"]),
        (["--rungs", "1,x"], ["--rungs", "'1,x'", "1,4,16"]),
        (["--rungs", "1,4", "--no-rungs"], ["--rungs", "'1,4'", "--no-rungs"]),
    ],
)
def test_bad_options_of_run_are_one_sentence_and_leave_no_run(
    cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    sentence = refused(cli(*RUN, *arguments))
    assert all(word in sentence for word in words), sentence
    assert not list((tmp_path).glob("results/*/manifest.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--budget", "4.5G", "--trials", "9" * 5000),
        ("run", "--budget", "4.5G", "--seed", "99999999999"),
        ("sample", "--number", "-1"),
        ("--bogus" + "x" * 5000,),
        ("cost", "x" * 5000),
        ("cost", "x" * 5000 + ":1"),
        ("report", "a" * 5000),
        ("docs", "\x1b[31mred"),
        ("proxies", "two\nlines"),
        ("prepare", "~nobody/x", "out"),
        ("evaluate", "van_b0", "--checkpoint", "a", "--data", "b", "--resolution", "9" * 5000),
    ],
    ids=lambda arguments: arguments[0][:10],
)
def test_what_was_typed_is_repeated_in_a_short_printable_sentence(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    sentence = result.stderr.rstrip().rpartition("\n")[2]
    assert sentence.lower().startswith("error: ")
    assert sentence.isprintable()
    assert len(sentence) <= LONGEST_SENTENCE + len("error: ")


def test_an_endless_pipe_is_no_architecture(cli: Cli) -> None:
    assert "not valid JSON" in refused(cli("cost", "-", text="[" * 10**6))


def test_a_device_that_is_absent_is_refused(cli: Cli) -> None:
    name = "mps" if torch.cuda.is_available() else "cuda"
    for arguments in (RUN, ("bench", "davit_tiny")):
        sentence = refused(cli(*arguments, "--device", name))
        assert f"'{name}'" in sentence
        assert "'auto'" in sentence


def test_a_run_ends_with_a_front_and_the_next_command(cli: Cli, tmp_path: Path, stub: Callable[[str], None]) -> None:
    stub("evaluate")
    result = cli(*RUN)
    assert result.exit_code == 0, result.output
    lines = [line.partition(" ")[2] for line in result.stderr.splitlines() if " [" in line[:21]]
    front = document(cli("report", "--json"))["front"]
    assert len(lines) == 5 + len(front)  # a line a timing
    assert "front so far, " in result.stderr
    assert [line.split()[0] for line in lines[:5]] == [f"[{ended}/5]" for ended in range(1, 6)]
    words = "trial 0, 4.54G MACs, 28.36M params, 35.3 img/s, score 0.454: davit_tiny; front "
    assert any(line.partition(" ")[2].startswith(words) for line in lines[:5]), "whichever worker ends first"
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("hybrid-4.5G-")
    assert "Front of" in result.stdout
    assert "not ImageNet accuracy" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == f"Next: archsearch report results/{folder.name}"
    rows = pd.read_parquet(folder / "trials.parquet")
    assert list(rows["state"]) == ["complete"] * 5
    assert (rows["proxy_score"] == rows["macs"] / 1e10).all()
    report = document(cli("report", "--json"))
    assert [row["paper"] for row in report["fixed"]] == ["davit_tiny", "van_b2"]

    # The same command: nothing is measured again. Another condition: another run.
    again = cli(*RUN)
    assert again.stdout.partition("Front")[2] == result.stdout.partition("Front")[2]
    assert "[" not in again.stderr
    assert f"going on with results/{folder.name}" in again.stderr
    assert cli(*RUN, "--seed", "1", "--trials", "0").exit_code == 0
    assert len(list((tmp_path / "results").iterdir())) == 2

    # A row of the run is an architecture: by trial, by arch_id, of the latest run.
    row = rows.iloc[3]
    for text in (f"{folder.name}:3", f"results/{folder.name}:{row['arch_id'][:8]}"):
        cost = document(cli("cost", text, "--json"))
        assert (cost["arch_id"], cost["macs"], cost["params"]) == (row["arch_id"], row["macs"], row["params"])
    assert document(cli("cost", ":1", "--json"))["arch_id"] == rows.iloc[1]["arch_id"]
    assert "its trials are 0 to 4" in refused(cli("cost", f"{folder.name}:9"))
    assert "did you mean" in refused(cli("cost", f"{folder.name}x:1"))

    # A run's folder is not taken by another run.
    sentence = refused(cli(*RUN, "--output", f"results/{folder.name}", "--tolerance", "4%"))
    assert "tolerance" in sentence
    (folder / "study.db").write_bytes(b"SQLite format 3\0 and nothing else")
    assert "study.db" in refused(cli(*RUN))


def test_what_the_command_line_repeats_is_what_the_services_have() -> None:
    assert set(SAMPLER_NAMES) == set(SAMPLERS)
    assert SWEEP_ALL == bench.SWEEP_ALL


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("run", "batch_size", ", ".join(f"{size} on {device}" for device, size in DEFAULT_BATCH_SIZE.items())),
        ("run", "proxy", DEFAULT_PROXY),
        ("calibrate", "slopes", f"{DEFAULT_SLOPES['eager']}, {DEFAULT_SLOPES['compile']} compiled"),
        ("prepare", "val_share", f"{DEFAULT_VAL_SHARE:.0%}"),
        ("bench", "against", REFERENCE),
    ],
)
def test_a_default_in_a_help_text_is_that_of_the_service(command: str, option: str, default: str) -> None:
    (found,) = (parameter for parameter in main.commands[command].params if parameter.name == option)
    assert isinstance(found, click.Option)
    assert f"[default: {default}" in str(found.help)


@pytest.mark.slow
def test_rungs_are_part_of_a_run_and_off_where_no_score_can_stop(
    cli: Cli, tmp_path: Path, stub: Callable[[str], None]
) -> None:
    stub("evaluate")
    short = (*RUN[:3], "--papers", "none", "--trials", "1")
    result = cli(*short, "--rungs", "1,2,8", "--output", "a")
    assert result.exit_code == 0, result.output
    assert "with rungs at 25, 50 of 200 steps" in " ".join(result.stdout.split())
    assert document(cli("report", "a", "--json"))["training"]["rungs"] == [25, 50, 200]
    assert "rungs was 1,2,8, now None" in refused(cli(*short, "--no-rungs", "--output", "a"))
    fix = ("--fix", "stages.2.block=hilo")
    assert "fix.stages.2.block was None, now hilo" in refused(cli(*short, "--rungs", "1,2,8", *fix, "--output", "a"))
    result = cli(*short, "--objectives", "throughput_img_s,params", *fix, "--output", "b")
    # Of a busy machine "reading the space and the data" comes before it.
    assert any(line.startswith("no rungs: proxy_score is not among") for line in result.stderr.splitlines())
    report = document(cli("report", "b", "--json"))
    assert report["training"]["rungs"] == [200]
    assert report["front"][0]["architecture"].split(" - ")[1].startswith("hilo ")


SMALL_MAPS = """
data = "fashion-mnist"
profile = { image_size = 32, stem_stride = 32, width_divisor = 4 }
recipe = { steps = 2, batch_size = 8, learning_rate = 0.001, dtype = "float32", augment = "none" }
"""


def test_a_proxy_that_cannot_train_what_the_space_has_is_told_before_the_first_trial(
    cli: Cli, tmp_path: Path, stub: Callable[[str], None]
) -> None:
    stub("evaluate")
    Path("small.toml").write_text(SMALL_MAPS)
    run = (*RUN[:3], "--papers", "none", "--trials", "1", "--proxy", "small.toml")
    some = cli(*run, "--output", "a")
    assert some.exit_code == 0, some.output
    words = "stages.2 cannot be trained at 32 px: a map of 1x1 cannot be halved"
    told = next(line for line in some.stderr.splitlines() if line.startswith("the proxy cannot train "))
    assert (words in told, told.endswith("; their trials will fail")) == (True, True), told
    none = refused(cli(*run, "--fix", "stages.2.downsample=patch", "--output", "b"))
    assert none.startswith(
        "--proxy: this one cannot train 16 of 16 architectures drawn from the space, the first of them"
    )
    assert words in none
    assert not Path("b").exists()


def test_a_run_whose_every_trial_fails_ends_with_the_reason(
    cli: Cli, tmp_path: Path, stub: Callable[[str], None]
) -> None:
    stub("fail")
    result = cli(*RUN, "--papers", "none", "--trials", "1", "--output", "bad")
    assert result.exit_code == 1
    assert "proxy: out of memory on cpu" in result.stderr.splitlines()[-1]
    assert "there is no front" in cli("report", "bad").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_say_what_is_kept_and_how_to_go_on(
    cli: Cli, tmp_path: Path, stub: Callable[[str], None], number: signal.Signals
) -> None:
    stub("sleep")

    def interrupt() -> None:
        database = tmp_path / "kept" / "worker.log"
        while not database.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    result = cli(*RUN, "--output", "kept")
    assert result.exit_code == 128 + number
    last = result.stderr.splitlines()[-1]
    assert "kept in kept; missing: 5 of 5 trials" in last
    assert last.endswith("go on with: archsearch " + " ".join([*RUN, "--output", "kept"]))


def test_a_stall_that_is_no_duration_is_refused(cli: Cli) -> None:
    assert "'soon' is not a duration" in (words := refused(cli(*RUN, "--stall", "soon")))
    assert words.endswith("at most 3650d, or none")


def test_a_run_that_its_time_limit_ends_says_what_is_missing_and_how_to_go_on(
    cli: Cli, stub: Callable[[str], None]
) -> None:
    stub("evaluate")
    command = [*RUN, "--timeout", "0.001s", "--output", "late"]
    result = cli(*command)
    assert result.exit_code == 124
    words = f"stopped by --timeout; missing: 4 of 5 trials; go on with: archsearch {' '.join(command)}"
    assert words in " ".join(result.stdout.split())
    assert document(cli("report", "late", "--json"))["state"] == "timeout"
    assert words in " ".join(cli("report", "late").stdout.split())


def test_nearest_papers_are_one_a_family() -> None:
    # Of each family the 4-5 G model, by hand from the papers' tables; Twins has two families.
    assert set(choose_papers("nearest", 4_500_000_000, 224)) == {
        "crossformer_small",
        "davit_tiny",
        "msg_transformer_tiny",
        "pvt_small",
        "swin_tiny",
        "lit_s",
        "litv2_s",
        "twins_pcpvt_small",
        "twins_svt_small",
        "van_b2",
    }
    assert set(choose_papers("all", 4_500_000_000, 224)) == set(paper_names()) - {"litv2_b_384", "swin_base_384"}
    assert choose_papers("all", 4_500_000_000, 384) == ("litv2_b_384", "swin_base_384")
    assert choose_papers("van_b2, davit_tiny,van_b2", 1, 224) == ("van_b2", "davit_tiny")


def member(trial: int, score: float) -> dict[str, Any]:
    """A row of the front."""
    return {
        "trial": trial,
        "paper": None,
        "architecture": "sda/lda 64x2 - sda/lda 192x4 - window/channel 384x10 - sda/lda 640x3",
        "macs": 4_600_000_000,
        "params": 28_000_000,
        "state": "complete",
        "is_fixed": False,
        "throughput_img_s": 20.5,
        "proxy_score": score,
        "reused_from": None,
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_panel_shows_where_a_run_stands_and_fits_the_terminal(tmp_path: Path, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, markup=False)
    row, front = member(7, 0.75), [member(trial, trial / 10) for trial in range(6)]
    clock = TimeLeft(make_rung_config(tmp_path / "log"), timeout_s=60.0)
    with watching(console, "results/one", "hybrid at 4.50G MACs", clock) as listener:
        assert isinstance(listener, LiveListener)
        plain = Console(file=io.StringIO(), width=width, record=True)
        plain.print(listener.render())
        first = plain.export_text()
        listener.trial_started(row, Tally(ended=6, failed=1, stopped=2, total=20, front_size=6, front=front))
        listener.progress({"event": "phase", "phase": "throughput", "trial": 7, "values": {"seconds": 7.0}})
        step = {"event": "progress", "phase": "proxy@100", "rung": 2, "rungs": 3, "step": 60, "steps": 400}
        listener.progress({**step, "images_s": 812.4})
        plain.print(listener.render())
        shown = plain.export_text()
        listener.progress({"event": "phase", "phase": "proxy@100", "trial": 7, "values": {"seconds": 9.0}})
        listener.progress({"event": "progress", "phase": "proxy", "waiting": "process 7 (run results/two, user anna)"})
        plain.print(listener.render())
        waiting = plain.export_text()
        listener.trial_finished(row, Tally(ended=7, failed=1, total=20, front_size=5))
        plain.print(listener.render())
        later = plain.export_text()
    assert "starting the worker" in first
    for words in (
        "6 of 20, front 6, stopped 2, failed 1",
        "training the small copy, rung 2 of 3",
        "trial 7, 4.60G MACs, sda/lda",
        "step 60 of 400, 812 img/s",
        "results/one",
        "about",
        "architecture (1 more)",
        "0.500   20.5  28.00M  sda/lda",
    ):
        assert words in shown, shown
    assert "waiting for the device since 0s: process 7 (run results/two" in waiting
    assert "the wait not counted" in waiting
    assert "7 of 20, front 5" in later
    assert "20.5 img/s" in later
    assert max(map(len, (first + shown + waiting + later).splitlines())) <= width
    assert stream.getvalue().endswith("\x1b[2K")  # nothing is left behind


def test_without_a_terminal_there_is_a_line_for_each_trial_one_a_minute_and_the_front_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_BEAT_S", 0.2)
    console = Console(file=io.StringIO(), width=100, markup=False)
    clock = TimeLeft(make_rung_config(tmp_path / "log"))
    with watching(console, "results/one", "hybrid", clock) as listener:
        for trial in range(5):
            row, front = member(trial, trial / 10), [member(each, each / 10) for each in range(trial + 1)]
            listener.trial_started(row, Tally(ended=trial, failed=0, total=20, front_size=trial, front=front[:-1]))
            tally = Tally(ended=trial + 1, failed=0, total=20, front_size=trial + 1, front=front)
            listener.trial_finished(row, tally)
        listener.trial_started(row, tally)
        listener.progress({"event": "progress", "phase": "proxy", "step": 60, "steps": 400})
        time.sleep(0.5)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ")
    assert stamp.match(lines[0])
    assert lines[0].endswith(" results/one: hybrid")
    lines = [stamp.sub("", line) for line in lines]
    assert [line.split()[0] for line in lines if line.startswith("[")] == [f"[{ended}/20]" for ended in range(1, 6)]
    at = next(number for number, line in enumerate(lines) if "front so far, 3 of 3 trials" in line)
    assert lines[at - 1].startswith("[3/20]")
    assert "0.200" in lines[at + 1]
    assert sum("front so far" in line for line in lines) == 1, "not again within minutes"
    assert any(line.startswith("now: trial 4") and "step 60 of 400" in line for line in lines)


def test_an_infeasible_budget_is_refused_before_a_folder_is_made(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("run", "--budget", "1MFLOPs")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no architecture has" in result.stderr
    assert list(tmp_path.iterdir()) == []


# How commands end


def test_an_unexpected_error_is_one_sentence_with_a_log(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("no such quotient")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("archsearch.report.paper_list", break_down)
    result = cli("papers")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: unexpected ZeroDivisionError: no such quotient; ")
    log = Path(result.stderr.split()[-1])
    assert "break_down" in log.read_text()
    debug = cli("--debug", "papers")
    assert debug.exit_code == 1
    assert "Traceback" in debug.stderr


def test_a_closed_pipe_is_quiet() -> None:
    program = f"{sys.executable} -m archsearch papers | true"
    done = subprocess.run(["sh", "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_bench_measures_between_two_timings_of_the_reference(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # a device lock of our own: figures do not matter here
    # The protocol itself has its own tests; here one short round will do.
    quick = functools.partial(Protocol, warmup_s=0.0, block_s=0.001, max_s=0.0, min_blocks=2, min_warmup_iterations=2)
    monkeypatch.setattr(Protocol, "for_device", lambda device, **given: quick(**given))
    arguments = ["bench", "van_b0", "--device", "cpu", "--batch-size", "2", "--image-size", "32"]
    # With two threads this takes minutes where another process uses the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = document(cli(*arguments, "--json"))
        table = cli(*arguments)
    finally:
        torch.set_num_threads(threads)
    (result,) = measured["results"]
    assert result["asked"] == "van_b0"
    assert result["throughput_img_s"] > 0
    # The median over blocks, each against the reference beside it: near the medians' own ratio.
    assert result["ratio_to_reference"] == pytest.approx(
        result["throughput_img_s"] / result["reference_img_s"], rel=0.5
    )
    assert (result["batch_size"], result["image_size"], result["error"]) == (2, 32, None)
    assert measured["conditions"]["device"] == "cpu"
    assert measured["conditions"]["reference"] in paper_names()
    assert "measured on cpu" in table.stdout
    assert "van_b0: timing the reference" in table.stderr


def test_the_shipped_default_space_is_the_default_of_sample(cli: Cli) -> None:
    assert document(cli("sample", "-n", "2", "--json")) == document(cli("sample", "hybrid", "-n", "2", "--json"))
    assert tomllib.loads(load_space("hybrid").text)["name"] == "hybrid"
