"""A comparison of runs as tables and sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from archsearch.errors import one_line
from archsearch.report.comparable import SCORE
from archsearch.report.compare import SPEED
from archsearch.report.run_tables import score_text
from archsearch.report.tables import HEADINGS, Document, make_table, memory_text, text, titled
from archsearch.units import format_count, format_names

_ROWS_SHOWN = 40
_SETTINGS_SHOWN = 8
_LONGEST_VALUE, _LONGEST_REASON = 60, 2000
_MATRIX_RUNS = 12
_SIDE_BY_SIDE = 4  # runs whose figures stand side by side; of more their range
_STATES = {"running": "at work"}


def comparison_parts(document: Document) -> Iterator[RenderableType]:
    """The whole comparison, part by part."""
    objectives = document["objectives"]
    yield _head(document)
    yield _runs_table(document)
    yield "\n".join(_about_runs(document))
    yield from _seeds(document)
    if objectives and document["joint_front"]:
        if len(document["runs"]) > _MATRIX_RUNS:
            yield f"Coverage of {len(document['runs'])} runs: --json has it."
        else:
            yield _coverage_table(document)
            yield (
                "A cell: members of the front of the column's run that the row's front dominates, and in brackets those that it dominates "
                "beyond the noise in all that is noisy. Two measurements of one architecture do not count."
            )
        yield _joint_table(document)
        if any(member["unresolved_by"] for member in document["joint_front"]):
            yield "?: another trial may dominate it within the noise of scores and timings."
    yield from _measured_in_several(document)
    if SCORE in objectives:
        yield f"Scores rank trials of one proxy_id; they are not ImageNet accuracy. proxy_id: {one_line(str(document['proxy_id']))}"


def _head(document: Document) -> str:
    words = ", ".join(f"{name} {direction[:3]}" for name, direction in document["objectives"].items())
    lines = [f"{len(document['runs'])} runs, compared in {words or 'nothing'}."]
    lines += [
        f"{name} is not compared: {_ended(one_line(reason, _LONGEST_REASON))}"
        for name, reason in document["not_compared"].items()
    ]
    if not words:
        lines.append("They share no objective that may be compared; what remains are their exact costs.")
    return "\n".join(lines)


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(".") else f"{sentence}."


def _runs_table(document: Document) -> RenderableType:
    runs = document["runs"]
    with_compared = any(run["trials"]["compared"] != run["trials"]["complete"] for run in runs)
    columns = ["", "run", "trials", *(["compared"] if with_compared else [])]
    columns += ["front", "hypervolume", "joint front"] if document["objectives"] else []
    columns += ["best score"] if document["score_refusal"] is None else []
    columns += ["best img/s"] if document["speed_refusal"] is None else []
    columns += [
        *(["params", "MACs"] if _shows_costs(document) else []),
        *(["state"] if _shows_states(document) else []),
    ]
    rows = [_run_row(run, document, with_compared=with_compared) for run in runs]
    return make_table(columns, rows, left=("", "run", "state"))


def _run_row(run: Document, document: Document, *, with_compared: bool) -> list[str]:
    trials, joint = run["trials"], run["joint"]
    cells = [run["label"], run["run"], f"{trials['complete']} of {trials['asked']}"]
    cells += [str(trials["compared"])] if with_compared else []
    if document["objectives"]:
        part = f"{joint['members']} of {len(document['joint_front'])}" if joint["share"] is not None else "-"
        cells += [str(run["front"]), text(run["hypervolume"], ".4f"), part]
    if document["score_refusal"] is None:
        best = run["best_score"] or {"value": None, "standard_error": None}
        cells.append(score_text({SCORE: best["value"], "proxy_score_se": best["standard_error"]}))
    if document["speed_refusal"] is None:
        cells.append(text(run["best_speed"] and run["best_speed"]["value"], ".1f"))
    if _shows_costs(document):
        cells += [_range(run["costs"].get("params")), _range(run["costs"].get("macs"))]
    return [*cells, *([_STATES.get(run["state"], one_line(run["state"]))] if _shows_states(document) else [])]


def _shows_states(document: Document) -> bool:
    return any(run["state"] != "complete" for run in document["runs"])


def _shows_costs(document: Document) -> bool:
    """Exact costs are what remains where scores or speeds are not compared."""
    return document["score_refusal"] is not None or document["speed_refusal"] is not None


def _range(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else "-".join(map(format_count, ends))


def _about_runs(document: Document) -> Iterator[str]:
    """What the table's figures mean, and what was asked or measured otherwise."""
    volume, joint = document["hypervolume"], len(document["joint_front"])
    if volume["joint"] is not None:
        yield f"hypervolume: {volume['scale']}. That of the joint front is {volume['joint']:.4f}."
        yield (
            f"joint front: of the {joint} architectures that no trial of any run dominates those that the run found, whether or not "
            "another one found them too."
        )
    rates = {label: rate for label, rate in document["reference_rates"].items() if rate is not None}
    if document["speed_refusal"] is None and len({f"{rate:.6g}" for rate in rates.values()}) > 1:
        first = next(iter(rates))
        yield f"Speeds are ratios to the reference; images/s of all runs are at the rate that it had in {first} ({rates[first]:.1f} img/s)."
    seeds = document["training_seeds"]
    if document["score_refusal"] is None and len(set(seeds.values())) > 1:
        words = ", ".join(f"{_value_text(seed)} in {label}" for label, seed in seeds.items())
        yield f"Trained from different seeds ({words}): the same network has other scores there, by the noise of a training."
    if document["differences"]:
        parts = [_difference_text(one) for one in document["differences"]]
        yield f"Asked or measured otherwise: {format_names(parts, _SETTINGS_SHOWN, '; ')}" + (
            " (--json has all)." if len(parts) > _SETTINGS_SHOWN else "."
        )
    for labels in document["copies"]:
        yield f"{' '.join(labels)}: copies of one run, whose trials are not independent."
    counts = {run["trials"]["compared"] for run in document["runs"]}
    if volume["joint"] is not None and len(counts) > 1:
        yield "The runs have different numbers of trials: more trials alone give a larger hypervolume."


def _difference_text(one: Mapping[str, Any]) -> str:
    values = ", ".join(f"{_value_text(each['value'])} in {' '.join(each['runs'])}" for each in one["values"])
    return f"{_setting(one['setting'])} {values}"


def _setting(name: str) -> str:
    return one_line(name.removeprefix("settings."), _LONGEST_VALUE)


def _value_text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return one_line(",".join(map(str, value)) if isinstance(value, list) else str(value), _LONGEST_VALUE)


def _seeds(document: Document) -> Iterator[RenderableType]:
    """Mean and spread of the hypervolumes of each request, and which differences the spread resolves; or why no order is claimed."""
    groups = document["groups"]
    if not document["objectives"] or all(run["hypervolume"] is None for run in document["runs"]):
        return
    if max(len(group["runs"]) for group in groups) == 1:
        yield (
            "One run of each request: how much a hypervolume changes from seed to seed is not known, so no order of these runs is claimed. "
            "Run each request with other seeds too (--seed 1, --seed 2), and compare all."
        )
        return
    rows = [
        [_group_name(group), str(each["n"]), _seed_words(group), text(each["mean"], ".4f"), text(each["sd"], ".4f")]
        for group in groups
        if (each := group["hypervolume"])
    ]
    yield titled(
        "Runs that differ by --seed alone: hypervolume on the scale above",
        make_table(["request", "n", "seeds", "mean", "sd"], rows, left=("request", "seeds")),
    )
    sentences = [
        *_repeated_seeds(groups),
        *_unfinished(document),
        *(_group_sentence(each, groups) for each in document["group_differences"][:_ROWS_SHOWN]),
    ]
    if len(document["group_differences"]) > 1:
        sentences.append("Each interval is for one comparison; of many, one in twenty leaves out 0 by chance.")
    if len(groups) > 1 and not document["group_differences"]:
        sentences.append("No two requests have several seeds each, so no order of them is claimed.")
    if sentences:
        yield "\n".join(sentences)


def _group_name(group: Document) -> str:
    """The settings in which a request differs from the others, and the labels of its runs."""
    labels = " ".join(group["runs"])
    words = ", ".join(f"{_setting(name)} {_value_text(value)}" for name, value in list(group["differs"].items())[:3])
    return f"{labels} ({words})" if words else labels


def _seed_words(group: Document) -> str:
    return format_names([str(seed) for seed in group["seeds"]], 8)


def _repeated_seeds(groups: Sequence[Document]) -> Iterator[str]:
    """Which groups have a seed twice."""
    for group in groups:
        if len(set(group["seeds"])) < len(group["seeds"]):
            yield f"{' '.join(group['runs'])}: a seed is there more than once; these runs are not independent, and the true spread is larger."


def _unfinished(document: Document) -> Iterator[str]:
    """Which runs of the groups are not complete."""
    states = {run["label"]: run["state"] for run in document["runs"]}
    open_ones = [label for group in document["groups"] if len(group["runs"]) > 1 for label in group["runs"]]
    open_ones = [label for label in open_ones if states[label] != "complete"]
    if open_ones:
        yield f"{' '.join(open_ones)}: not complete; with more trials hypervolumes grow, so these means are not the last word."


def _group_sentence(each: Document, groups: Sequence[Document]) -> str:
    one, other = (groups[place] for place in each["groups"])
    names = f"{_group_name(other)} less {_group_name(one)}: {each['difference']:+.4f}"
    if each["low"] is None:
        return f"{names}; neither changes from seed to seed, so nothing is said of how sure that is."
    verdict = "resolved" if each["is_resolved"] else "not resolved, so no order is claimed"
    return f"{names}, 95 % interval {each['low']:+.4f} to {each['high']:+.4f} (Welch): {verdict}."


def _coverage_table(document: Document) -> RenderableType:
    labels = [run["label"] for run in document["runs"]]
    cells = {
        (each["by"], each["of"]): f"{each['dominated']} of {each['members']} ({each['beyond_noise']})"
        for each in document["coverage"]
    }
    rows = [[by, *(cells.get((by, of), "") for of in labels)] for by in labels]
    table = make_table(["", *labels], rows, left=("",))
    return titled("Coverage: what each front dominates of another one", table)


def _joint_table(document: Document) -> RenderableType:
    members, objectives = document["joint_front"], document["objectives"]
    names = [name for name in HEADINGS if name in objectives or name in ("params", "macs")]
    rows = [
        [
            _member_places(member),
            *(_figure(member, name) + "?" * (bool(member["unresolved_by"]) and name == names[0]) for name in names),
            f"{member['paper']} (fixed)" if member["is_fixed"] else member["architecture"],
        ]
        for member in members[:_ROWS_SHOWN]
    ]
    title = f"Joint front of {len(members)}"
    title += f", the first {_ROWS_SHOWN}; --json has all" if len(members) > _ROWS_SHOWN else ""
    columns = ["run:trial", *(HEADINGS[name] for name in names), "architecture"]
    return titled(title, make_table(columns, rows, left=("run:trial", "architecture")))


def _member_places(member: Document) -> str:
    return format_names([f"{one['run']}:{one['trial']}" for one in member["on_front"]], _SIDE_BY_SIDE, " ")


def _figure(row: Document, name: str) -> str:
    value = row[name]
    if name == SCORE:
        return score_text(row)
    if name == "peak_memory_bytes":
        return memory_text(value)
    return format_count(value) if name in ("params", "macs") else text(value, ".1f")


def _measured_in_several(document: Document) -> Iterator[RenderableType]:
    """Fixed trials of several runs side by side, and how far two measurements of one architecture differ."""
    shared = document["measured_in_several"]
    fixed = [each for each in shared["architectures"] if each["is_fixed"]]
    can_score, can_time = document["score_refusal"] is None, document["speed_refusal"] is None
    if fixed and (can_score or can_time):
        yield _shared_table(
            fixed[:_ROWS_SHOWN], [run["label"] for run in document["runs"]], can_score=can_score, can_time=can_time
        )
    if shared["number"]:
        yield "\n".join(_shared_sentences(shared, document["drift_limit"], can_score=can_score, can_time=can_time))


def _shared_table(
    fixed: Sequence[Document], labels: Sequence[str], *, can_score: bool, can_time: bool
) -> RenderableType:
    names = [*([SCORE] if can_score else []), *([SPEED] if can_time else [])]
    is_narrow = len(labels) <= _SIDE_BY_SIDE
    columns = ["fixed trial", *(f"{HEADINGS[name]} {label}" for name in names for label in labels)]
    if not is_narrow:
        columns = ["fixed trial", "runs", *(f"{HEADINGS[name]} {end}" for name in names for end in ("least", "most"))]
    rows = []
    for each in fixed:
        cells = [_cells(each, name, labels if is_narrow else None) for name in names]
        head = [each["paper"]] if is_narrow else [each["paper"], str(len({one["run"] for one in each["measured"]}))]
        rows.append([*head, *(cell for own in cells for cell in own)])
    return titled("Measured in several runs", make_table(columns, rows, left=("fixed trial",)))


def _cells(each: Document, name: str, labels: Sequence[str] | None) -> list[str]:
    """The figure of an architecture in each run, or its range over the runs."""
    pattern = ".3f" if name == SCORE else ".1f"
    by_label = {one["run"]: one[name] for one in each["measured"]}
    if labels is not None:
        return [text(by_label.get(label), pattern) for label in labels]
    values = [value for value in by_label.values() if value is not None]
    return [text(min(values, default=None), pattern), text(max(values, default=None), pattern)]


def _shared_sentences(shared: Document, limit: float, *, can_score: bool, can_time: bool) -> Iterator[str]:
    number, scores, speeds = shared["number"], shared["scores"], shared["speeds"]
    yield f"{number} architecture{'s' * (number != 1)} measured in several runs, as a check of the conditions:"
    if can_score and scores["pairs"]:
        yield (
            f"scores of {scores['pairs']} pairs differ by {scores['median']:.3f} in the median, at most {scores['largest']:.3f}; "
            f"{scores['beyond_noise']} beyond the noise."
        )
    if can_time and speeds["pairs"]:
        words = f"speeds of {speeds['pairs']} pairs differ by {speeds['median']:.1%} in the median, at most {speeds['largest']:.1%}"
        many = speeds["beyond_drift"] > speeds["pairs"] / 2
        yield f"{words}; {speeds['beyond_drift']} by more than the {limit:.0%} of drift allowed." + (
            " The conditions were not the same: do not read small differences of speed between the runs."
            if many
            else ""
        )
    if not scores["pairs"] and not speeds["pairs"]:
        yield "none of them by figures that may be compared and were measured in both."
