"""A run's document as rich tables and sentences."""

import shlex
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archsearch.proxy import STARVED_UNDER
from archsearch.report.busy import busy_sentence, slow_sentence
from archsearch.report.caveats import MARKS, conditions_text, fronts_text, left_out, reliability, remeasure_command
from archsearch.report.fixed import included_sentences, published_rates, unscored_sentences
from archsearch.report.repeatability import is_changed, noisy_sentence
from archsearch.report.scatter import scatter_parts
from archsearch.report.tables import Document, make_table, memory_text, text, titled
from archsearch.results import missing_words
from archsearch.throughput import Protocol
from archsearch.units import format_count, format_names, format_seconds

_NAMES_SHOWN = 6
_REASONS_SHOWN = 3
_ROWS_SHOWN = 40
# Objectives that have a column in the front's table only where the run has them.
_EXTRA = {"latency_ms": "ms/batch", "peak_memory_bytes": "memory"}
# How a run stands, by the states of `results.run_state`.
_STATES = {
    "running": "at work",
    "complete": "complete",
    "timeout": "stopped by --timeout",
    "interrupted": "interrupted",
    "failed": "failed",
    "killed": "killed, since no process here is at work in it",
}


def report_parts(document: Document) -> Iterator[RenderableType]:
    """The whole report, part by part: what to take, what was found, and at the end how far it can be relied on."""
    yield from _heads(document)
    yield from _ending(document)
    yield from picks_parts(document)
    yield from scatter_parts(document)
    yield front_table(document) if document["front"] else _nothing_sentence(document)
    yield from _fixed(document)
    if document["stopped"]:
        yield stopped_table(document)
    if document["failed"]:
        yield failed_table(document)
    yield from _training(document)
    yield from left_out(document)
    if document["front"]:
        yield from fronts_text(document)
        yield from reliability(document)
        yield MARKS
    yield f"{document['score']['meaning']}\nproxy_id: {document['score']['proxy_id'] or '-'}"
    yield conditions_text(document)


def summary_parts(document: Document) -> Iterator[RenderableType]:
    """What a run prints when it ends: what to take, the front, what the score means, and at the end what is missing."""
    yield from _heads(document)
    yield from picks_parts(document)
    yield front_table(document) if document["front"] else _nothing_sentence(document)
    yield from _training(document)
    yield from left_out(document)
    if document["front"]:
        yield from reliability(document)
        yield MARKS
    yield document["score"]["meaning"]
    yield from _ending(document)


def picks_parts(document: Document) -> Iterator[RenderableType]:
    """The picks in words under a title; of a trial that was picked before only what was not said yet."""
    grid, said = Table.grid(padding=(0, 1, 0, 0)), dict[int, set[str]]()
    for pick in document["picks"]:
        sentence, trial = pick["sentence"], pick["trial"]
        if trial in said:
            left = [words for words in pick["unresolved"] if words not in said[trial]]
            not_resolved = f" Not resolved: {'; '.join(left)}." if left else ""
            sentence = f"{sentence.partition(':')[0]}: trial {trial} again.{not_resolved}"
        if trial is not None:
            said.setdefault(trial, set()).update(pick["unresolved"])
        grid.add_row("-", Text(sentence))
    if document["picks"]:
        yield Group(Text("Which one?", style="bold"), grid)


def _fixed(document: Document) -> Iterator[RenderableType]:
    """The fixed trials beside their published figures, and how they compare with the candidates."""
    fixed = [*document["fixed"], *document["unscored"]]
    if fixed:
        yield fixed_table(fixed)
        sentences = dominance_sentences(document) if document["fixed"] else ()
        yield "\n".join(
            [*sentences, *unscored_sentences(document["unscored"]), *included_sentences(fixed), *published_rates(fixed)]
        )


def _ending(document: Document) -> Iterator[str]:
    """How a run ended before its end, what is missing, and the command that goes on; nothing of one that is complete or at work."""
    missing = missing_words(document["missing"], document["trials"]["asked"])
    if document["state"] == "running" or (document["state"] == "complete" and not missing):
        return
    parts = [
        _STATES[document["state"]] + (f" ({document['reason']})" if document["reason"] else ""),
        *([f"missing: {missing}"] if missing else []),
        f"go on with: {shlex.join(document['command'])}",
    ]
    yield "; ".join(parts)


def _heads(document: Document) -> Iterator[str]:
    """The run's headline; before it, where it is so, that the order by speed is not to be used."""
    if document["noisy"]:
        yield noisy_sentence(document["noisy"], remeasure_command(document))
    yield headline(document)


def _training(document: Document) -> Iterator[str]:
    if document["busy"]:
        yield busy_sentence(document["busy"])
    if document["slow"]:
        yield slow_sentence(document["slow"])
    if document["training"] and document["training"]["trials"]:
        yield training_sentence(document["training"])
    if document["starved"]:
        yield (
            f"Trainings waited for images in {len(document['starved'])} trials (first {document['starved'][0]}): batches came less than "
            f"{STARVED_UNDER} times as fast as they were trained on. Scores stay right; `archsearch prepare` the images, or give the loader more cores."
        )


def headline(document: Document) -> str:
    """The run, its state, its band, and the numbers of its trials."""
    counts = document["trials"]
    reused = f" ({counts['reused']} reused)" if counts["reused"] else ""
    stopped = f", {counts['stopped']} stopped early" if counts["stopped"] else ""
    stopped += f", {len(document['unscored'])} without a score" if document["unscored"] else ""
    running = f", {counts['running']} at work" if counts["running"] else ""
    all_met = "; the band holds no architecture that it has not met" if document["exhausted"] else ""
    return (
        f"Run {document['run']}, {_STATES[document['state']]} at {document['updated_at']}: {document['space']} at "
        f"{_budget_text(document)}; of {counts['asked']} trials "
        f"{counts['complete']} complete{reused}{stopped}, {counts['failed']} failed{running}{all_met}."
    )


def _budget_text(document: Document) -> str:
    """`4.50G MACs, band 4.28G to 4.72G, latency_ms up to 8 ms`, or `any MACs`."""
    budget = "any MACs"
    if document["band"]:
        low, high = map(format_count, document["band"])
        budget = f"{format_count(document['budget_macs'])} MACs, band {low} to {high}"
    return ", ".join([budget, *document["limits"]])


def _nothing_sentence(document: Document) -> str:
    counts = document["trials"]
    if counts["failed"] and not counts["complete"]:
        return f"No trial is complete, so there is no front: all {counts['failed']} that ended failed."
    if counts["complete"]:
        return f"No complete trial keeps the limits ({', '.join(document['limits'])}), so there is no front."
    return "No trial is complete yet, so there is no front."


def front_table(document: Document) -> Group:
    """The front over the run's objectives, best first objective first; of a large one the best of each objective and some evenly between."""
    words = ", ".join(f"{name} {direction[:3]}" for name, direction in document["objectives"].items())
    extra = [name for name in _EXTRA if name in document["objectives"]]
    front, shown = document["front"], _some_members(document)
    with_seeds = any(row["proxy_score_mean"] is not None for row in shown)
    with_chances = any(row["front_chance"] is not None for row in shown)
    rows = [_front_row(row, front[0], extra, with_seeds=with_seeds, with_chances=with_chances) for row in shown]
    columns = ["trial", "score", *(["mean over seeds"] if with_seeds else []), *(["on front"] if with_chances else [])]
    columns += ["img/s", "params", "MACs"]
    columns += [*(_EXTRA[name] for name in extra), "architecture"]
    title = f"Front of {len(front)} ({words})"
    if len(shown) < len(front):
        title += f": {len(shown)} members along it; front.parquet has all"
    return titled(title, make_table(columns, rows, left=["architecture"]))


def _some_members(document: Document) -> list[Document]:
    """All members of a small front; of a large one the best of each objective and others evenly between, in order."""
    front, places = document["front"], range(len(document["front"]))
    if len(front) <= _ROWS_SHOWN:
        return list(front)
    best = {
        (max if direction == "maximize" else min)(places, key=lambda place: front[place][name])
        for name, direction in document["objectives"].items()
    }
    even = {round(step * (len(front) - 1) / (_ROWS_SHOWN - 1)) for step in range(_ROWS_SHOWN)}
    return [front[place] for place in sorted(best | even)]


def _front_row(
    row: Document, first: Document, extra: Sequence[str], *, with_seeds: bool, with_chances: bool
) -> list[str]:
    figures = {"latency_ms": text(row["latency_ms"], ".1f"), "peak_memory_bytes": memory_text(row["peak_memory_bytes"])}
    seeds = "-"
    if row["proxy_score_mean"] is not None:
        seeds = f"{row['proxy_score_mean']:.3f} ({row['proxy_seeds']}, sd {row['proxy_score_sd']:.3f})"
    return [
        str(row["trial"]),
        score_text(row) + ("=" if first["trial"] in row["score_ties"] else "") + ("?" if row["unresolved_by"] else ""),
        *([seeds] if with_seeds else []),
        *([text(row["front_chance"], ".0%")] if with_chances else []),
        rate_text(row),
        format_count(row["params"]),
        format_count(row["macs"]),
        *(figures[name] for name in extra),
        _architecture_name(row),
    ]


def score_text(row: Document) -> str:
    """`0.712+-0.010`."""
    if row["proxy_score"] is None:
        return "-"
    error = row["proxy_score_se"]
    return f"{row['proxy_score']:.3f}" + (f"+-{error:.3f}" if error is not None else "")


def rate_text(row: Document) -> str:
    """Images per second, marked where noisy, drifted or not repeated."""
    noisy = "~" if row["throughput_noisy"] else ""
    drifted = "!" if (row["throughput_drift"] or 0.0) > Protocol.drift_limit else ""
    return text(row["throughput_img_s"], ".1f") + noisy + drifted + ("*" if is_changed(row) else "")


def _architecture_name(row: Document) -> str:
    return f"{row['paper']} (fixed)" if row["is_fixed"] else str(row["architecture"])


def fixed_table(rows: Sequence[Document]) -> Group:
    """The papers' models, beside their published figures, and included networks as measured here."""
    columns = ["fixed trial", "trial", "score", "img/s", "MACs", "paper's", "params", "paper's", "top-1"]
    title = "Fixed trials: measured here, and the papers' figures (top-1 is ImageNet-1K)"
    cells = [_fixed_row(row) for row in rows]
    if any(row["outside"] for row in rows):
        columns, title = [*columns, "outside"], f"{title}; one that is outside a limit is in no front"
        cells = [[*own, row["outside"] or ""] for own, row in zip(cells, rows, strict=True)]
    return titled(title, make_table(columns, cells, left=["fixed trial", "outside"]))


def _fixed_row(row: Document) -> list[str]:
    figures = row["published"] or {}
    return [
        row["paper"],
        str(row["trial"]),
        text(row["proxy_score"], ".3f"),
        rate_text(row),
        format_count(row["macs"]),
        text(figures.get("flops_g"), "g", "G"),
        format_count(row["params"]),
        text(figures.get("params_m"), "g", "M"),
        text(figures.get("top1"), "g"),
    ]


def dominance_sentences(document: Document) -> Iterator[str]:
    """Which candidates dominate which fixed trials and the reverse, with ties in score marked."""
    verbs = {"dominated_by": "is dominated by", "dominates": "dominates"}
    related = [(row, key) for row in document["fixed"] for key in verbs if row[key]]
    for row, key in related:
        trials = [f"{item['trial']}{'=' if item['score_tie'] else ''}" for item in row[key]]
        names = format_names(trials, _NAMES_SHOWN, number=row[f"num_{key}"])
        yield f"{row['paper']} {verbs[key]} trial{'s' * (len(trials) > 1)} {names}."
    if not related:
        yield "No candidate dominates a fixed trial, and no fixed trial dominates a candidate."
    if any(item["score_tie"] for row, key in related for item in row[key]):
        yield "= marks a pair whose scores lie within 2 standard errors: there the other objectives decide alone."


def stopped_table(document: Document) -> Group:
    """Stopped trials by the rung at which they stopped, or before the first one: how many, and the reasons of the last few."""
    cells = []
    for rung, number in document["stopped_at"].items():
        latest = [row for row in document["stopped"] if row["rung"] == rung][-_REASONS_SHOWN:]
        cells += [] if latest else [[str(rung or "before"), str(number), "", "", ""]]
        for place, row in enumerate(latest):
            first = [str(rung or "before"), str(number)] if place == 0 else ["", ""]
            score = score_text({"proxy_score": row["rung_score"], "proxy_score_se": row["rung_score_se"]})
            cells.append([*first, str(row["trial"]), score, row["reason"]])
    columns = ["rung", "stopped", "trial", "score there", "why (the last ones)"]
    table = make_table(columns, cells, left=columns[-1:])
    number = document["trials"]["stopped"]
    return titled(f"Stopped early: {number}; their scores are of unfinished trainings, and in no front", table)


def training_sentence(training: Document) -> str:
    """What was spent on training, and what the rungs saved."""
    spent, saved = training["images_spent"], training["images_not_spent"]
    words = f"Training: {format_count(spent)} images in {format_seconds(training['seconds_spent'])}"
    steps = training["rungs"]
    rungs = (
        f"with rungs at {', '.join(map(str, steps[:-1]))} of {steps[-1]} steps" if len(steps) > 1 else "without rungs"
    )
    if not training["stopped"]:
        return f"{words}, {rungs}; no trial was stopped." if len(steps) > 1 else f"{words}, {rungs}."
    share, seconds = f"{saved / (spent + saved):.0%}", format_seconds(training["seconds_not_spent"])
    which = "which" if len(steps) > 1 else "and limits that"
    rest = f", about {seconds}" if training["seconds_not_spent"] else ""
    return f"{words}, {rungs}, {which} saved {format_count(saved)} images ({share} of what the same candidates would have taken{rest})."


def failed_table(document: Document) -> Group:
    """The last failed trials with their reasons."""
    rows, number = document["failed"][-_ROWS_SHOWN:], document["trials"]["failed"]
    cells = [[str(row["trial"]), _architecture_name(row), row["reason"] or "-"] for row in rows]
    table = make_table(["trial", "architecture", "reason"], cells, left=["architecture", "reason"])
    return titled(f"Failed: {number}" + (f", the last {len(rows)}:" if len(rows) < number else ""), table)
