"""`archsearch prepare`: draws by seed, kills and waiting processes, damage, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from PIL import Image
from support.image_forms import make_pictures, write_flat, write_folder

from archsearch.cli import main
from archsearch.data import DataRequest, Policy, load_data, open_prepared, open_source
from archsearch.data.prepared import MANIFEST
from archsearch.data.subset import allocate, select
from archsearch.errors import UserError

Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures") / "set"
    write_folder(root, make_pictures(20, broken=False))
    return root


@pytest.fixture
def cli() -> Cli:
    return lambda *words: CliRunner().invoke(main, ["prepare", *map(str, words)])


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def maps(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*")) if path.name != MANIFEST}


# From the command line


def test_a_folder_is_prepared_once_checked_and_used(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = ok(cli(folder, out, "--size", 24, "--per-class", 5))
    assert f"next: archsearch run --budget 4.5GFLOPs --data {out}" in output
    assert "15 training and 6 validation images held out of training, 3 classes" in output
    before = (out / MANIFEST).read_bytes()
    assert "is prepared already" in ok(cli(folder, out, "--size", 24, "--per-class", 5, "--workers", 3))
    assert (out / MANIFEST).read_bytes() == before
    assert "every hash, count and label" in ok(cli("--check", out))
    data = load_data(DataRequest(text=str(out), size=24))
    assert (data.name, data.size, len(data.train_labels)) == ("set", 24, 15)
    assert isinstance(data.train_images, np.memmap)
    assert data.fingerprint == open_prepared(out).fingerprint
    with pytest.raises(UserError, match="prepared at 24 px, at least 36 px are needed"):
        load_data(DataRequest(text=str(out), size=36))


def test_any_damage_is_found(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ok(cli(folder, out, "--size", 16))
    for path in sorted(path for path in out.iterdir() if path.is_file() and path.name not in (MANIFEST, ".lock")):
        whole = path.read_bytes()
        position = len(whole) * 2 // 3
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        result = cli("--check", out)
        assert (result.exit_code, f"damaged: '{path.name}'" in result.stderr) == (1, True), path.name
        path.write_bytes(whole)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["counts"]["train"][0] += 1
    (out / MANIFEST).write_text(json.dumps(manifest))
    result = cli("--check", out)
    assert (result.exit_code, "labels are not those" in result.stderr) == (1, True)


def test_bad_requests_are_refused_in_one_sentence(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    ok(cli(folder, out, "--size", 16))
    other.mkdir()
    (other / "thesis.tex").write_text("")
    for words, part in [
        ((folder, out, "--size", 24, "--seed", 1), "size 16 there, 24 asked for; seed 0 there, 1 asked for"),
        ((folder, other), "holds 'thesis.tex' and no prepared images"),
        ((out, other), "is prepared already; give it to a run"),
        (("fashion-mnist", other), "needs no preparing"),
        ((tmp_path / "nowhere", other), "no such folder"),
        ((folder, other, "--classes", "some"), "--classes: got 'some'; allowed is all"),
        ((folder, tmp_path / "new", "--classes", 9), "9 classes asked for, there are 3"),
        ((folder, tmp_path / "new", "--val-split", "test"), "split 'test' is missing; found 'train', 'val'"),
        ((folder, other, "--val-split", "val", "--val-share", "10%"), "nothing is held out where --val-split val"),
        ((folder, tmp_path / "new", "--val-share", "99%"), "leaves a class without any"),
        (("--check", folder), "not a prepared folder"),
    ]:
        result = cli(*words)
        assert (result.exit_code, part in result.stderr.replace("\n", " ")) == (2, True), (words, result.stderr)
    assert cli().exit_code == 2
    assert (other / "thesis.tex").exists()


def test_too_many_unreadable_are_refused_and_a_laxer_limit_goes_on(cli: Cli, tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    write_flat(root, make_pictures(20))
    result = cli(root, out, "--size", 16)
    assert (result.exit_code, "1 cannot be read, 'train/n02102040/n02102040_5.JPEG" in result.stderr) == (2, True)
    output = ok(cli(root, out, "--size", 16, "--max-unreadable", "2%"))
    assert "left out as unreadable" in output
    assert "n02102040_5.JPEG" in output
    ok(cli("--check", out))
    assert cli(root, out, "--size", 16).exit_code == 2  # prepared under a laxer limit


# Selections


def test_selections_are_seeded_stratified_disjoint_and_nested(folder: Path) -> None:
    source = open_source(str(folder))
    small, large, other = (
        select(source, Policy(per_class=count, seed=seed, val_share=0.2)) for count, seed in ((3, 0), (9, 0), (3, 1))
    )
    assert np.bincount(small.train.labels).tolist() == [3] * 3
    assert np.bincount(small.val.labels).tolist() == [4] * 3
    assert np.array_equal(small.val.indices, large.val.indices)  # validation does not depend on the subset
    assert set(small.train.indices) < set(large.train.indices)
    assert not set(large.train.indices) & set(large.val.indices)
    assert set(other.train.indices) != set(small.train.indices)
    two = select(source, Policy(classes=2, val_share=0.2))
    assert len(two.classes) == 2
    assert set(two.classes) < set(source.classes)
    assert set(two.train.labels) == {0, 1}
    names = {name.split("/")[1] for name in two.train.names}
    assert names == set(two.classes)
    tenth = select(source, Policy(share=0.1, val_split="val"))
    assert np.bincount(tenth.train.labels).tolist() == [2] * 3
    assert {name.split("/")[0] for name in tenth.val.names} == {"val"}
    assert len(select(source, Policy(max_train=10, max_val=5, val_split="val")).train.labels) == 10


def test_shares_are_exact_and_proportional() -> None:
    for counts, total in (([5, 5, 5], 7), ([1, 100, 10], 37), ([3, 0, 4], 100), ([1300] * 999 + [732], 10_000)):
        shares = allocate(counts, total)
        assert sum(shares) == min(total, sum(counts))
        for count, share in zip(counts, shares, strict=True):
            assert abs(share - count * min(1, total / sum(counts))) < 1


# Data that is embedded or generated


def test_load_data_takes_folders_and_embedded_sets(folder: Path, tmp_path: Path) -> None:
    request = DataRequest(text=str(folder), size=16, max_train=12, max_val=6, cache_dir=str(tmp_path))
    assert DataRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    first, again = load_data(request), load_data(request)
    assert (len(first.train_labels), len(first.val_labels), len(list(tmp_path.iterdir()))) == (12, 6, 1)
    assert first.fingerprint == again.fingerprint
    assert first.source.endswith("held out of training, 3 classes, stored at 16 px")
    assert load_data(DataRequest(text="fashion-mnist", size=32)).name == "fashion-mnist-12k"


@pytest.mark.slow
def test_constellation_is_generated_at_the_next_size() -> None:
    data = load_data(DataRequest(text="constellation", size=36))
    assert (data.name, data.size, len(data.train_labels), len(data.val_labels)) == (
        "constellation-12k-64px", 64, 10_000, 2_000,
    )  # fmt: skip
    assert load_data(DataRequest(text="constellation", size=36)).fingerprint == data.fingerprint
    assert load_data(DataRequest(text="constellation", size=36, seed=1)).fingerprint != data.fingerprint


# Kills and concurrent processes


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "archsearch", "prepare", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thousand links to pictures slow enough to decode that a kill falls between two journal lines."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(root / f"{i}.jpg")
    for i in range(3000):
        path = root / "set" / "train" / f"class{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(root / f"{i % 8}.jpg")
    return root / "set"


@pytest.mark.slow
def test_a_killed_preparation_goes_on_to_the_same_bytes(large_folder: Path, tmp_path: Path, cli: Cli) -> None:
    ok(cli(large_folder, tmp_path / "whole", "--size", 24))
    out, rng, went_on = tmp_path / "out", np.random.default_rng(0), 0
    for _ in range(5):
        child = start(large_folder, out, "--size", 24)
        deadline = time.monotonic() + 60
        while not (out / "train_images.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.05, 1.0))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        journal = out / "journal.jsonl"
        went_on += journal.exists() and journal.stat().st_size > 0
        if journal.exists():
            with open(journal, "ab") as file:  # what a torn write leaves
                file.write(b'{"images": 5')
    assert went_on
    ok(cli(large_folder, out, "--size", 24, "--workers", 2))
    ok(cli("--check", out))
    assert maps(out) == maps(tmp_path / "whole")


def test_a_kill_before_the_manifest_loses_nothing(folder: Path, tmp_path: Path, cli: Cli) -> None:
    out, partial = tmp_path / "out", tmp_path / "partial"
    ok(cli(folder, out, "--size", 16))
    manifest = json.loads((out / MANIFEST).read_text())
    # As it stands after the images got their final names: request and journal, neither partial files nor a manifest.
    shutil.copytree(out, partial, ignore=shutil.ignore_patterns(MANIFEST))
    (partial / "request.json").write_text(json.dumps(manifest["request"]))
    (partial / "journal.jsonl").write_text(json.dumps({"images": 60, "unreadable": []}) + "\n")
    ok(cli(folder, partial, "--size", 16))
    ok(cli("--check", partial))
    assert maps(partial) == maps(out)


@pytest.mark.slow
def test_a_second_process_waits_and_finds_it_ready(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        second = start(folder, out, "--size", 16)
        assert second.stderr is not None
        line = ""
        while "another process prepares" not in line:
            line = second.stderr.readline()
            assert line
        assert not (out / MANIFEST).exists()
    pair = [second, start(folder, out, "--size", 16)]
    outputs = [child.communicate()[0] for child in pair]
    assert [child.returncode for child in pair] == [0, 0]
    assert sum("is prepared already" in text for text in outputs) == 1
