"""What `gpu.py` prints and page `benchmarks` shows of a file's rows: two tables, and whether the targets are reached. No torch."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gpu_rows import Row

Cells = list[list[str]]
NETWORK_COLUMNS = (
    "model",
    "autocast",
    "autocast compiled",
    "bfloat16",
    "over timm",
    "bfloat16 compiled",
    "over timm",
    "training",
    "GiB",
    "over timm",
)
OPERATION_COLUMNS = ("operation", "dtype", "pass", "ours", "torch", "another way")
# Images/s of commit 3c6dc8f on an H100, eager and compiled, and how many times as fast they are to become.
TARGETS = {"van_b2": (2.0, 2955, 3390), "crossformer_small": (1.6, 4985, 5636)}
MODES = ("eager", "compile")


# The figures that page `benchmarks` shows.
SHOWN_FILE, SHOWN_COMMIT = "gpu-nvidia-h100-80gb-hbm3.parquet", "3c6dc8f"


class Verdict(NamedTuple):
    """A figure against its target; None where it was not measured."""

    what: str
    target: str
    figure: str | None
    is_reached: bool

    def __str__(self) -> str:
        word = "not measured" if self.figure is None else "reached" if self.is_reached else "not reached"
        return f"{word:12s} {self.what}: {self.figure or '-'}, target {self.target}"


class Figures:
    """The figures of one commit, by what they are of."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def find(self, section: str, what: str, unit: str, **conditions: str) -> float | None:
        """The largest such value, which of rates is that of the faster layout; None where there is none."""
        wanted = {"section": section, "what": what, "unit": unit, **conditions}
        found = [row["value"] for row in self.rows if all(row[name] == value for name, value in wanted.items())]
        return max((value for value in found if value is not None), default=None)

    def names(self, section: str) -> list[str]:
        """What a section has rows of, in their order."""
        return list(dict.fromkeys(row["what"] for row in self.rows if row["section"] == section))

    def rate(self, model: str, dtype: str, mode: str, side: str = "ours") -> float | None:
        """Images per second forward."""
        section = "autocast" if dtype == "amp_bfloat16" else "forward"
        return self.find(section, model, "img/s", side=side, dtype=dtype, mode=mode)

    def over_timm(self, model: str, mode: str) -> float | None:
        """Ours over timm's, forward in bfloat16."""
        return _over(*(self.rate(model, "bfloat16", mode, side) for side in ("ours", "timm")))

    def training(self, model: str, unit: str, side: str = "ours") -> float | None:
        """Images per second or GiB of a training step."""
        return self.find("train", model, unit, side=side, mode="eager")


def _over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _shown(value: float | None, pattern: str = ",.0f") -> str:
    return "-" if value is None else format(value, pattern)


def network_cells(rows: Sequence[Row]) -> Cells:
    """A line for each model: images/s forward at batch 128 and 224 px, and of a training step."""
    figures = Figures(rows)
    names = dict.fromkeys(name for section in ("forward", "autocast", "train") for name in figures.names(section))
    return [
        [
            name,
            *(_shown(figures.rate(name, "amp_bfloat16", mode)) for mode in MODES),
            *(text for mode in MODES for text in _against(figures, name, mode)),
            _shown(figures.training(name, "img/s")),
            _shown(figures.training(name, "GiB"), ".0f"),
            _shown(_over(*(figures.training(name, "img/s", side) for side in ("ours", "timm"))), ".2f"),
        ]
        for name in names
    ]


def _against(figures: Figures, name: str, mode: str) -> list[str]:
    return [_shown(figures.rate(name, "bfloat16", mode)), _shown(figures.over_timm(name, mode), ".2f")]


def operation_cells(rows: Sequence[Row]) -> Cells:
    """A line for each operation: milliseconds of ours, of torch's own, and of the fastest other way."""
    groups: dict[tuple[str, str, str], dict[str, float | None]] = {}
    for row in rows:
        if row["section"] == "kernels":
            groups.setdefault((row["what"], row["dtype"], row["mode"]), {})[row["side"]] = row["value"]
    return [[*key, *_sides(sides)] for key, sides in groups.items()]


def _sides(sides: dict[str, float | None]) -> list[str]:
    others = {name: value for name, value in sides.items() if name not in ("ours", "torch") and value is not None}
    best = min(others, key=others.__getitem__, default=None)
    other = "-" if best is None else f"{others[best]:.3f} ({best})"
    return [_shown(sides.get("ours"), ".3f"), _shown(sides.get("torch"), ".3f"), other]


def verdicts(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Every target; those in images/s are of an H100."""
    figures = Figures(rows)
    compared = list(dict.fromkeys(row["what"] for row in rows if row["section"] == "forward" and row["side"] == "timm"))
    for mode in MODES:
        ratios = {name: figures.over_timm(name, mode) for name in compared}
        yield from _of_ratios(mode, {name: ratio for name, ratio in ratios.items() if ratio is not None})
    for name, (factor, *before) in TARGETS.items():
        for mode, rate in zip(MODES, before, strict=True):
            value = figures.rate(name, "bfloat16", mode)
            yield _judged(f"{name}, {mode}, img/s on an H100", value, factor * rate, "at least", ",.0f")
    trained = [figures.training(name, "img/s") for name in figures.names("train")]
    count = None if not trained else float(sum(rate is not None for rate in trained))
    yield _judged("fixed trials that train at batch 1,024", count, 10, "at least", ".0f")
    tau = figures.find("order", "both orders", "tau")
    yield _judged("tau between two orders", tau, 0.98, "at least", ".3f")
    trial = figures.find("run", "median trial, total", "s")
    yield _judged("median trial of the embedded proxy, s", trial, 6, "at most", ".1f")
    failed = figures.find("cuda-tests", "failed", "tests")
    yield _judged("CUDA tests that fail", failed, 0, "at most", ".0f")


def _of_ratios(mode: str, ratios: dict[str, float]) -> Iterator[Verdict]:
    """The least ratio to timm, of four models, and eager their geometric mean."""
    least = min(ratios, key=ratios.__getitem__, default="")
    what = f"least ratio to timm of {len(ratios)} models, {mode}" + f" ({least})" * bool(least)
    yield _judged(what, ratios.get(least), 1.0, "at least", ".3f")
    if mode == "eager":
        mean = math.exp(statistics.fmean(map(math.log, ratios.values()))) if ratios else None
        yield _judged("geometric mean of the ratios, eager", mean, 1.3, "at least", ".3f")


def _judged(what: str, figure: float | None, target: float, bound: str, pattern: str) -> Verdict:
    if figure is None:
        return Verdict(what, f"{bound} {target:{pattern}}", None, False)
    is_reached = figure >= target if bound == "at least" else figure <= target
    return Verdict(what, f"{bound} {target:{pattern}}", format(figure, pattern), is_reached)
