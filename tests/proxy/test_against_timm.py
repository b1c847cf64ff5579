"""The audit against timm's published top-1: its table, its statistics against plain loops, the blocks that it finds, and its command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.networks import MIXED, arch_of
from support.timm_table import is_hierarchical
from torch import nn

from archsearch.cli.audit import audit as audit_command
from archsearch.errors import UserError
from archsearch.metrics import estimate, kendall_tau
from archsearch.models import build
from archsearch.proxy.audit.against_timm import JUDGES, SUM, fitted_sum, like_params_tau
from archsearch.proxy.audit.timm_networks import timm_networks
from archsearch.proxy.training_free.az_nas import to_samples
from archsearch.proxy.training_free.blocks import find_blocks
from archsearch.proxy.training_free.scores import block_names
from archsearch.space import Band, choose_papers

BAND = "0.25G-0.3G"
SMALL = ["convnext_zepto_rms", "efficientvit_m3", "efficientvit_m4", "levit_128s"]


def _band(low: float, high: float) -> Band:
    return Band(round(low * 1e9), round(high * 1e9))


@pytest.mark.parametrize(("low", "high", "count"), [(1.5, 2.5, 18), (3.5, 6, 37), (7, 10, 26)])
def test_the_table_has_so_many_networks_of_a_band(low: float, high: float, count: int) -> None:
    networks = timm_networks(_band(low, high))
    assert len({network.name for network in networks}) == len(networks) == count
    assert all(60 < network.top1 <= network.top1_any < 90 for network in networks)
    assert all(low * 1e9 <= network.macs <= high * 1e9 for network in networks)


@pytest.mark.slow
def test_hierarchical_is_what_falls_in_resolution_three_times() -> None:
    names = [network.name for network in timm_networks(_band(0, 0.7))]
    assert all(map(is_hierarchical, names))
    assert not any(map(is_hierarchical, ("deit_tiny_patch16_224", "convmixer_768_32", "sequencer2d_s")))


def test_the_fitted_sum_of_a_family_does_not_see_its_own_top1() -> None:
    rng = np.random.default_rng(0)
    values, families = rng.standard_normal((12, 3)), np.repeat(list("abcd"), 3)
    target = values @ [1.0, 0.5, 0.0] + 0.1 * rng.standard_normal(12)
    found = fitted_sum(values, target, families)
    other = fitted_sum(values, np.where(families == "b", -100, target), families)
    assert np.array_equal(found[families == "b"], other[families == "b"])
    assert not np.array_equal(found[families == "a"], other[families == "a"])
    assert kendall_tau(found, target) > 0.5


def test_the_fitted_sum_is_ridge_regression_on_ranks() -> None:
    rng = np.random.default_rng(1)
    values, target, families = rng.standard_normal((9, 2)), rng.standard_normal(9), np.repeat(list("abc"), 3)
    ranks = values.argsort(0).argsort(0).astype(float)
    ranks = (ranks - ranks.mean(0)) / ranks.std(0)
    known = np.vstack([ranks[3:], np.sqrt(6) * np.eye(2)])  # the penalty as two further rows of least squares
    weights = np.linalg.lstsq(known, np.concatenate([target[3:] - target[3:].mean(), [0, 0]]), rcond=None)[0]
    assert fitted_sum(values, target, families)[:3] == pytest.approx(ranks[:3] @ weights)


def test_like_params_counts_pairs_within_a_tenth() -> None:
    rng = np.random.default_rng(2)
    values, target = rng.integers(0, 5, 20).astype(float), rng.integers(0, 5, 20).astype(float)
    params = rng.uniform(20, 30, 20)
    signs = [
        np.sign((values[i] - values[j]) * (target[i] - target[j]))
        for i in range(20)
        for j in range(i)
        if abs(params[i] - params[j]) < 0.1 * max(params[i], params[j]) and target[i] != target[j]
    ]
    assert like_params_tau(values, target, params) == pytest.approx(np.mean(signs))
    assert np.isnan(like_params_tau(values[:2], target[:2], np.array([1.0, 2.0])))


def test_whole_clusters_are_drawn_for_an_interval() -> None:
    """Of four copies of each thing the interval is that of the things themselves, not a narrower one."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal(12)
    second = first + rng.standard_normal(12)
    alone = estimate(np.mean, first - second)
    copies = estimate(np.mean, np.repeat(first - second, 4), clusters=np.repeat(np.arange(12), 4).tolist())
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("name", MIXED)
def test_the_blocks_found_are_an_architectures_blocks(name: str) -> None:
    arch = arch_of(name)
    found = find_blocks(build(arch), torch.randn(1, *arch.image()[:3]))
    wanted = [block for stage in block_names(arch) for block in stage]
    assert set(wanted) - {block for stage in found.names for block in stage} <= {
        block for block in wanted if _has_one_matrix(build(arch).get_submodule(block))
    }
    assert set(found.channel_dims.values()) == {1}


def _has_one_matrix(block: nn.Module) -> bool:
    return sum(parameter.ndim > 1 for parameter in block.parameters()) < 2


@pytest.mark.slow
def test_and_so_are_those_of_the_papers_models_stage_by_stage() -> None:
    for name in choose_papers("nearest", 1_000_000_000, 224):
        arch = arch_of(name)
        assert find_blocks(build(arch), torch.randn(1, 3, 224, 224)).names == block_names(arch)


def test_samples_are_the_same_with_channels_last() -> None:
    maps = torch.randn(2, 5, 3, 4)
    assert torch.equal(to_samples(maps), to_samples(maps.permute(0, 2, 3, 1), 3))
    assert torch.equal(to_samples(maps), to_samples(maps.flatten(2).transpose(1, 2), 2))


def _run(folder: Path, band: str, *words: str) -> str:
    asked = ["--timm", band, "--papers", "none", "--device", "cpu", "--output", str(folder), *words]
    done = CliRunner().invoke(audit_command, asked, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.slow
def test_the_command_scores_each_network_once(tmp_path: Path) -> None:
    document = json.loads(_run(tmp_path, BAND, "--json"))
    assert sorted(one["name"] for one in document["networks"]) == SMALL
    assert all(np.isfinite(list(one["scores"].values())).all() for one in document["networks"])
    stored = (tmp_path / "training_free.json").read_bytes()
    assert "too few" in _run(tmp_path, BAND)
    assert (tmp_path / "training_free.json").read_bytes() == stored


def test_the_command_judges_by_what_was_stored(tmp_path: Path) -> None:
    """Every network of a band has stored scores, so none is built; taus are those of the documents' own numbers."""
    rng, networks = np.random.default_rng(4), timm_networks(_band(1.5, 2.5))
    names = ("nsc", "naswot", "zico", "expressivity", "progressivity", "trainability")
    stored = {
        f"timm:{one.name} 224px batch4 seed0 cpu": {
            "scores": dict(zip(names, rng.random(6), strict=True)),
            "seconds": 1.0,
        }
        for one in networks
    }
    (tmp_path / "training_free.json").write_text(json.dumps(stored))
    document = json.loads(_run(tmp_path, "1.5G-2.5G", "--json"))
    sets = {one["set"]: one for one in document["bands"][0]["sets"]}
    assert {name: one["count"] for name, one in sets.items() if name in ("all", "in1k only")} == {
        "all": 18,
        "in1k only": 13,
    }
    judges = {judge["judge"]: judge for judge in sets["all"]["judges"]}
    assert list(judges) == [*JUDGES, SUM]
    for judge in ("params", "nsc"):
        values = [one["scores"][judge] if judge == "nsc" else one[judge] for one in document["networks"]]
        tau = kendall_tau(values, [one["top1"] for one in document["networks"]])
        assert judges[judge]["value"] == pytest.approx(tau)
        assert judges[judge]["low"] <= tau <= judges[judge]["high"]
    shown = _run(tmp_path, "1.5G-2.5G")
    assert all(word in shown for word in ("NSC", "fitted sum", "No proxy has trained these networks"))


def test_options_of_trainings_and_bad_bands_are_refused() -> None:
    for words, noun in ((["--seeds", "2"], "--seeds"), (["--proxy", "cpu-small"], "--proxy"), (["a-run"], "a run")):
        refused = CliRunner().invoke(audit_command, ["--timm", "3.5G-6G", *words])
        assert refused.exit_code == 2
        assert noun in refused.output
    for band in ("6G-3.5G", "3.5G", "3.5-6", "a-b"):
        with pytest.raises(UserError, match="--timm"):
            CliRunner().invoke(audit_command, ["--timm", band], catch_exceptions=False)


def test_without_timm_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        CliRunner().invoke(audit_command, ["--timm", BAND], catch_exceptions=False)
