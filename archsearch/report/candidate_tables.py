"""The document of one trial as tables and sentences."""

import os
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from archsearch.report.drawing import Drawing, curve_lines
from archsearch.report.run_tables import rate_text, score_text
from archsearch.report.tables import (
    Document,
    conditions_line,
    make_table,
    memory_text,
    signed_percent,
    text,
    titled,
    unbroken,
)
from archsearch.system import command_line
from archsearch.throughput import Protocol
from archsearch.units import format_count, format_names, format_seconds

_NAMES_SHOWN = 8
_FREE = ("naswot", "zico", "expressivity", "progressivity", "trainability")


def candidate_parts(document: Document) -> Iterator[RenderableType]:
    """The whole page of a trial."""
    yield _headline(document)
    if document["stages"]:
        yield Drawing(document["stages"], document["image"])
    yield _figures_table(document)
    yield "\n".join(_place_sentences(document))
    if document["learning_curve"]:
        yield _Curve(document)
    yield from _architecture_parts(document)
    if document["unknown"]:
        yield "\n".join(["Not known:", *(f"- {words}" for words in document["unknown"])])
    yield _conditions(document)
    yield unbroken(f"proxy_id: {document['score']['proxy_id'] or '-'}")
    yield _next_lines(document)


def _architecture_parts(document: Document) -> Iterator[RenderableType]:
    """Costs and changes; nothing where there is no architecture."""
    if document["arch"] is None:
        return
    from archsearch.report.changes import change_sentences, change_table, out_sentence  # these load torch
    from archsearch.report.cost import cost_table, stage_table
    from archsearch.space import Arch

    changes = document["changes"]
    yield stage_table(document["stages"])
    if changes["reason"]:
        yield f"No change of one choice: {changes['reason']}."
    else:
        yield change_table(changes)
        yield " ".join(filter(None, [change_sentences(changes), out_sentence(changes)]))
    yield cost_table(Arch.from_dict(document["arch"]))


def _headline(document: Document) -> Text:
    row = document["figures"]
    name = f"{document['name']}, fixed: " if document["name"] else ""
    state = {"unscored": "without a score"}.get(document["state"], document["state"])
    reason = f": {row['reason']}" if row["reason"] else ""
    line = f"Trial {document['trial']} of {document['run']}, {row['arch_id']}, {state}{reason}"
    return Text(f"{line}\n{name}{row['architecture']}")


def _figures_table(document: Document) -> Group:
    rows = [[name, value, remark] for name, value, remark in _figures(document) if value != "-"]
    return titled("Figures", make_table(["figure", "value", "conditions"], rows, left=["figure", "conditions"]))


def _figures(document: Document) -> Iterator[tuple[str, str, str]]:
    row, published = document["figures"], document["published"] or {}
    paper = {
        name: f"the paper says {published[key]:g}{unit}"
        for name, key, unit in (("macs", "flops_g", "G"), ("params", "params_m", "M"))
        if published.get(key) is not None
    }
    yield "score", score_text(row), "share of the proxy's validation images; no ImageNet accuracy"
    if row["proxy_seeds"]:
        spread = text(row["proxy_score_sd"], ".3f")
        yield "  mean over seeds", text(row["proxy_score_mean"], ".3f"), f"{row['proxy_seeds']} seeds, sd {spread}"
    if row["proxy_score"] is None:
        where = score_text({"proxy_score": row["rung_score"], "proxy_score_se": row["rung_score_se"]})
        yield "score at its rung", where, f"rung {row['rung']}, of an unfinished training"
    yield "images/s", rate_text(row), _rate_remark(document)
    yield "  timed again", text(row["throughput_again_img_s"], ".1f"), "at the end of the run, in another order"
    predicted = "by the run's calibration, before it was timed"
    yield "  predicted", text(row["throughput_predicted_img_s"], ".1f"), predicted
    yield "latency", text(row["latency_ms"], ".1f", " ms"), f"a batch of {row['batch_size']}"
    yield "peak memory", memory_text(row["peak_memory_bytes"]), "of a timed forward pass"
    yield (
        "training memory",
        memory_text(row["train_memory_bytes"]),
        "with AdamW at the batch size, by what a step saves",
    )
    yield "MACs", format_count(row["macs"]), ", ".join(filter(None, [_band_words(document), paper.get("macs")]))
    yield "params", format_count(row["params"]), paper.get("params", "")
    yield "activations", "-" if row["activations"] is None else format_count(row["activations"]), "of one image"
    for name in _FREE:
        yield name, text(row[f"free_{name}"], ".4g"), "training-free; no accuracy"
    seconds = "-" if row["seconds_total"] is None else format_seconds(row["seconds_total"])
    yield "time it took", seconds, _seconds_remark(document)
    if published.get("top1"):
        yield "ImageNet top-1", f"{published['top1']:g}", "as the paper says; not measured here"


def _rate_remark(document: Document) -> str:
    row = document["figures"]
    words = []
    if row["throughput_iqr"] is not None:
        words.append(f"blocks spread {row['throughput_iqr']:.1%}{', noisy (~)' if row['throughput_noisy'] else ''}")
    if row["throughput_ratio"] is not None:
        words.append(f"{row['throughput_ratio']:.3g} times the reference")
    if (row["throughput_drift"] or 0.0) > Protocol.drift_limit:
        words.append(f"which drifted {row['throughput_drift']:.0%} (!)")
    if row["throughput_change"] is not None:
        words.append(f"{signed_percent(row['throughput_change'])} when timed again")
    return ", ".join(words)


def _band_words(document: Document) -> str:
    if document["band"] is None:
        return ""
    low, high = document["band"]
    where = "inside" if low <= document["figures"]["macs"] <= high else "outside"
    return f"{where} the band {format_count(low)} to {format_count(high)}"


def _seconds_remark(document: Document) -> str:
    row = document["figures"]
    names = {"seconds_count": "counting", "seconds_throughput": "timing", "seconds_proxy": "training"}
    return ", ".join(f"{word} {format_seconds(row[name])}" for name, word in names.items() if row[name])


def _place_sentences(document: Document) -> Iterator[str]:
    """Whether it is on the front, and what it dominates."""
    place, names = document["place"], ", ".join(document["objectives"])
    if place["reason"]:
        yield f"It is on no front: {place['reason']}."
        return
    chance = place["front_chance"]
    sure = "" if chance is None else f"; by the noise of the scores its chance to be there is {chance:.0%}"
    if place["is_on_front"]:
        yield f"It is on the front ({names}), one of {place['front_size']}{sure}."
    else:
        better = place["dominated_by"]
        who = (
            f": dominated by {_trial_words(better, place['num_dominated_by'])}"
            if better
            else ", since it is outside a limit"
        )
        yield f"It is not on the front ({names}){who}{sure}."
    if place["score_ties"]:
        yield f"On the front its score is tied with {_trial_words(place['score_ties'])}."
    if place["unresolved_by"]:
        yield f"Within noise it may be dominated by {_trial_words(place['unresolved_by'])}."
    yield _paper_words(place["dominates_papers"], "It dominates", "no fixed trial")
    if place["num_dominates"]:
        of = f"{place['num_dominates']} of the {place['num_compared']} trials that can be compared"
        yield f"In all it dominates {of}."
    if place["dominated_by_papers"]:
        yield _paper_words(place["dominated_by_papers"], "It is dominated by", "")


def _trial_words(trials: Sequence[int], number: int | None = None) -> str:
    """`trial 4`, or `trials 4, 7 and 12 more`."""
    names = format_names([str(trial) for trial in trials], _NAMES_SHOWN, number=number)
    return f"trial{'s' * (len(trials) > 1)} {names}"


def _paper_words(papers: Sequence[Document], verb: str, none: str) -> str:
    names = [
        f"{each['paper']} (trial {each['trial']}{', scores tied' if each['score_tie'] else ''})" for each in papers
    ]
    return f"{verb} {format_names(names, _NAMES_SHOWN) or none}."


class _Curve:
    """The learning curve, as wide as the terminal has room for."""

    def __init__(self, document: Document) -> None:
        self._points, self._seeds = document["learning_curve"], document["seed_scores"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("Learning curve: score after so many steps, its rise, and a bar from 0 to 1", style="bold")
        is_plain = options.ascii_only or os.environ.get("TERM") == "dumb"
        for line in curve_lines(self._points, options.max_width, is_plain=is_plain):
            yield Text(line)
        if len(self._seeds) > 1:
            yield Text(f"Scores of its seeds: {', '.join(f'{score:.3f}' for score in self._seeds)}.")


def _conditions(document: Document) -> str:
    row, given = document["figures"], document["conditions"]
    score = str(document["score"]["meaning"])
    if row["throughput_img_s"] is None:
        return score
    names = ("device", "device_name", "dtype", "mode", "batch_size", "image_size", "image_width", "in_chans")
    line = conditions_line({**given, **{name: row[name] for name in names if row.get(name) is not None}})
    return f"{line}\n{score}"


def _next_lines(document: Document) -> str:
    """Commands that take this trial further."""
    if document["arch"] is None:
        return f"Next: {command_line(['report', document['folder']])}"
    what, out = f"{document['folder']}:{document['trial']}", f"trial{document['trial']}"
    return f"Next: {command_line(['export', what, out])}"
