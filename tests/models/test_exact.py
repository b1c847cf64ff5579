"""The papers' models are exact: MACs, parameters, and float64 logits of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.official import fill_official, official_input

from archsearch import build, paper, paper_names
from archsearch.cli import main
from archsearch.models import build_for_timing
from archsearch.models.count import recount
from archsearch.space import paper_space

DATA = Path(__file__).parents[1] / "data"
MEASURED = json.loads((DATA / "papers.json").read_text())  # on the official code


def swin_counts(*, width: int, depths: tuple[int, ...], window: int, side: int) -> dict[str, int]:
    """MACs and parameters by the closed forms of the specification (swin.md 8 and 3), at an image side that all windows tile."""
    positions, heads = (side // 4) ** 2, width // 32
    macs, params = 53 * width * positions, 48 * width + 3 * width
    for stage, depth in enumerate(depths):
        if stage:
            macs += positions // 4 * (8 * width**2 + 20 * width)
            params += 8 * width**2 + 8 * width
            positions, width, heads = positions // 4, 2 * width, 2 * heads
        macs += depth * positions * (12 * width**2 + 2 * window**2 * width + 10 * width)
        params += depth * (12 * width**2 + 13 * width + (2 * window - 1) ** 2 * heads)
    return {"macs": macs + 5 * positions * width + 1000 * width, "params": params + 1002 * width + 1000}


COUNTS = {
    **MEASURED,
    "swin_base_384": swin_counts(width=128, depths=(2, 2, 18, 2), window=12, side=384),
}
LOGITS = np.load(DATA / "logits_float64.npz")
PLAIN = (
    "crossformer",
    "davit",
    "lit_s",
    "litv2",
    "msg",
    "pvt",
    "swin",
    "twins_svt",
    "van",
)  # one model a family, at its own size


def test_every_paper_is_shipped() -> None:
    assert paper_names() == sorted(COUNTS)
    assert (len(COUNTS), len(MEASURED)) == (39, 38)


@pytest.mark.parametrize(
    ("name", "width", "depths"),
    [("swin_tiny", 96, (2, 2, 6, 2)), ("swin_small", 96, (2, 2, 18, 2)), ("swin_base", 128, (2, 2, 18, 2))],
)
def test_the_closed_forms_of_swin_are_what_was_measured(name: str, width: int, depths: tuple[int, ...]) -> None:
    found = swin_counts(width=width, depths=depths, window=7, side=224)
    assert found == {key: MEASURED[name][key] for key in ("macs", "params")}


def test_swin_at_384_rounds_to_what_is_published() -> None:
    """88M parameters and 47.0 GFLOPs in the paper, whose estimate counts a LayerNorm as 1 an element and not as 5; timm's table has 87.90M."""
    cost, published = paper("swin_base_384").cost(), paper_space("swin_base_384").paper
    assert round(cost.params / 1e6) == published["params_m"]
    assert round(cost.params / 1e6, 2) == 87.90
    assert (cost.macs - cost.norm_macs * 4 / 5) / 1e9 == pytest.approx(published["flops_g"], rel=0.003)


@pytest.mark.parametrize("name", paper_names())
def test_paper_costs_what_its_code_costs(name: str) -> None:
    arch = paper(name)
    cost = arch.cost()
    assert (cost.macs, cost.params) == (COUNTS[name]["macs"], COUNTS[name]["params"])
    assert arch.name == name


QUICK = [case for case in LOGITS.files if case.endswith("@224x224") and case.startswith(PLAIN)]


def test_eleven_models_have_reference_logits() -> None:
    assert len({case.split("@")[0] for case in LOGITS.files}) == 11
    assert len(LOGITS.files) == 17


@pytest.mark.parametrize("case", QUICK)
def test_logits_equal_the_official_code(case: str) -> None:
    _assert_logits(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in LOGITS.files if case not in QUICK])
def test_logits_equal_the_official_code_at_other_sizes(case: str) -> None:
    _assert_logits(case)


def _assert_logits(case: str) -> None:
    name, size = case.split("@")
    height, width = map(int, size.split("x"))
    model = build(paper(name), image_size=(height, width))
    fill_official(model, name)
    with torch.inference_mode():
        logits = model.double().eval()(official_input(height, width).double())[0].numpy()
    assert np.abs(logits - LOGITS[case]).max() <= 1e-9 * np.abs(LOGITS[case]).max()


def test_recount_builds_and_counts_a_model() -> None:
    found = recount("van_b0")
    expected = COUNTS["van_b0"]
    assert found == {"macs_fvcore": expected["macs"], "params_built": expected["params"], "is_equal": True}


@pytest.mark.slow
def test_papers_check_recounts_every_model() -> None:
    result = CliRunner().invoke(main, ["papers", "--check", "--json"])
    assert result.exit_code == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == set(COUNTS)
    for name, row in rows.items():
        assert (row["check"]["macs_fvcore"], row["check"]["params_built"]) == (
            COUNTS[name]["macs"],
            COUNTS[name]["params"],
        )
        assert (row["macs"], row["params"]) == (COUNTS[name]["macs"], COUNTS[name]["params"])
    assert "39 of 39 models" in result.stderr


@pytest.mark.parametrize("name", ["davit_tiny", "van_b0", "crossformer_tiny", "pvt_tiny"])
def test_a_network_for_timing_is_the_network_with_other_numbers(name: str) -> None:
    state = torch.get_rng_state()
    timed = build_for_timing(paper(name))
    assert torch.equal(state, torch.get_rng_state())
    expected = build(paper(name)).state_dict()
    for key, tensor in timed.state_dict().items():
        assert (tensor.shape, tensor.dtype, tensor.stride()) == (
            expected[key].shape,
            expected[key].dtype,
            expected[key].stride(),
        ), key
    assert set(timed.state_dict()) == set(expected)
    with torch.inference_mode():
        logits = timed.eval()(torch.randn(2, 3, 224, 224))
    assert logits.isfinite().all()
    assert 1e-3 < logits.std() < 1e3  # numbers that vanish would be computed slower
