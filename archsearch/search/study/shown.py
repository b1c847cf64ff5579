"""What a study shows in Optuna's own tools: names of its objectives, a few flat attributes of each trial, and notes in optuna-dashboard."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES

from archsearch.results import Row
from archsearch.search.config import RunConfig
from archsearch.space import paper_names, paper_table

# User attributes of a trial by the names of the run's columns, from its start and from its end on.
AT_START = ("paper", "architecture", "arch_id", "macs", "params", "reused_from")
_AT_END = ("reason", "throughput_img_s", "proxy_score", "rung_score", "seconds_total")
SHOWN = (*AT_START, *_AT_END)
# optuna-dashboard keeps notes, in Markdown, among the system attributes of the study, in pieces of so many characters.
NOTES = "dashboard:"
_PIECE = 2045


def shown_attrs(row: Mapping[str, Any], names: Sequence[str] = SHOWN) -> dict[str, Any]:
    """The user attributes of a trial for people: its columns of these names that are not empty."""
    return {name: row[name] for name in names if row.get(name) is not None}


def end_attrs(row: Row, objectives: Sequence[str], reason: str | None) -> dict[str, Any]:
    """Those that a trial is given at its end; a complete one has its objectives as values."""
    names = _AT_END if reason is not None else [name for name in _AT_END if name not in objectives]
    return shown_attrs({**row, "reason": reason}, names)


def study_user_attrs(config: RunConfig) -> dict[str, Any]:
    """The user attributes of a study."""
    return {
        "space": config.space_name,
        "budget": config.budget_text.removeprefix("at "),
        "sampler": config.sampler,
        "seed": config.seed,
        "device": config.settings["device"],
        "proxy_id": config.settings.get("proxy_id"),
    }


def study_notes(config: RunConfig, fixed: Mapping[int, str]) -> dict[str, Any]:
    """System attributes of a study: the names of its objectives, and the notes of it and of its fixed trials, of which `fixed` gives name by id."""
    found: dict[str, Any] = {_SYSTEM_ATTR_METRIC_NAMES: list(config.objectives), **_note(_study_text(config))}
    for trial_id, name in fixed.items():
        found |= paper_note(trial_id, name)
    return found


def paper_note(trial_id: int, name: str) -> dict[str, Any]:
    """System attributes of a study: the note of a fixed trial."""
    return _note(_paper_text(name), f"{trial_id}:")


def _note(text: str, where: str = "") -> dict[str, Any]:
    """A note as optuna-dashboard stores it; the version comes last, since there is no note without it."""
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    notes: dict[str, Any] = {f"{NOTES}{where}note_str:{place}": piece for place, piece in enumerate(pieces)}
    return {**notes, f"{NOTES}{where}note_ver": 1}


def _study_text(config: RunConfig) -> str:
    return f"""## A run of archsearch

Space `{config.space_name}` {config.budget_text}, sampler `{config.sampler}`; objectives: {", ".join(config.objectives)}.

- A trial with the attribute `paper` is a fixed trial: a model of a paper, or a network of `--include`. It has no parameters.
- A *pruned* trial was stopped early, a *failed* one could not be evaluated; the attribute `reason` says why.
- `proxy_score` ranks the candidates of this run; it is not ImageNet accuracy.
- *Best trials* follow the first figures of each trial; `archsearch report` shows second timings, further seeds, and what the noise leaves open.
"""


def _paper_text(name: str) -> str:
    if name not in paper_names():
        return f"**{name}**, a network of `--include`, measured as a fixed trial."
    table = paper_table(name)
    return f"**{name}**, a paper's model, measured as a fixed trial.\n\n{table['title']}, [arXiv {table['arxiv']}](https://arxiv.org/abs/{table['arxiv']})"
