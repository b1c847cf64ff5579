"""How far a run's report can be relied on: what its front leaves out, what is not resolved, the proxy's audit, the conditions."""

from collections.abc import Iterator

from archsearch.report.repeatability import (
    again_sentence,
    calibration_sentence,
    figure_sentence,
    left_out_sentence,
    not_compiled_sentence,
    predicted_sentence,
    transfer_sentence,
)
from archsearch.report.tables import Document, conditions_line
from archsearch.system import command_line
from archsearch.throughput import Protocol
from archsearch.units import format_names

_NAMES_SHOWN, _REASONS_SHOWN, _TRIALS_SHOWN = 6, 3, 40
MARKS = (
    "score: standard error behind +-, = ties with the first row, ? on the front by no more than noise. "
    "on front: the chance to be there, by the noise of the scores alone. "
    f"img/s: ~ noisy, ! the reference drifted meanwhile, * timed again it was over {Protocol.drift_limit:.0%} away."
)


def fronts_text(document: Document) -> Iterator[str]:
    """The fronts over two objectives and the hypervolume."""
    pairs = [
        f"{name}: {format_names([str(trial) for trial in sorted(each)], _TRIALS_SHOWN)}"
        for name, each in document["pair_fronts"].items()
    ]
    volume = document["hypervolume"]
    lines = [f"Trials on the fronts of two: {'; '.join(pairs)}."] if pairs else []
    yield "\n".join([*lines, f"Hypervolume of the front: {volume['value']:.4f} ({volume['normalisation']})."])


def left_out(document: Document) -> Iterator[str]:
    """Which complete trials the front leaves out, and why."""
    sentences = []
    if document["num_outside"]:
        were = "candidate is" if document["num_outside"] == 1 else "candidates are"
        limits = ", ".join(document["limits"])
        sentences.append(f"{document['num_outside']} complete {were} outside a limit ({limits}), and in no front.")
    if document["not_compiled"]:
        sentences.append(not_compiled_sentence(document["not_compiled"]))
    sentences += [left_out_sentence(each, remeasure_command(document)) for each in document["left_out"]]
    if sentences:
        yield "\n".join(sentences)


def remeasure_command(document: Document) -> str:
    """The run's command with --remeasure."""
    return command_line([*(word for word in document["command"][1:] if word != "--remeasure"), "--remeasure"])


def reliability(document: Document) -> Iterator[str]:
    """How far the front is resolved, how well its figures were repeated and predicted, and the proxy's audit."""
    sentences = [
        *_resolution(document),
        *([again_sentence(document["again"])] if document["again"] else []),
        *([predicted_sentence(document["predicted"])] if document["predicted"] else []),
        *map(taken_sentence, document["taken_from"]),
        *_transfer(document),
        *([audit_sentence(document)] if document["score"]["proxy_id"] else []),
    ]
    if sentences:
        yield "\n".join(sentences)


def taken_sentence(taken: Document) -> str:
    """What was taken from an earlier run, and how well its scores order this run's."""
    timings, scores = taken["timings"], taken["scores"]
    counts = f"{timings} timing{'s' * (timings != 1)} and {scores} score{'s' * (scores != 1)}"
    used = f"{counts} of {taken['folder']} used again"
    order = taken["order"]
    if order is None:
        return f"{used}; too few scores to tell how well it orders this run's trials."
    number = f"{order['trials']} trials measured here"
    return f"{used}; its scores order this run's {number} by tau {order['tau']:.2f} +-{order['standard_error']:.2f}."


def _transfer(document: Document) -> Iterator[str]:
    """What the order by speed tells of other devices and modes, in a run that ranks by it."""
    conditions = document["conditions"]
    sentence = transfer_sentence(conditions["device"], conditions["mode"])
    if document["ranked_figure"] and sentence:
        yield sentence


def _resolution(document: Document) -> Iterator[str]:
    """Members of the front that may be dominated within noise, and the noise of the scores."""
    front = document["front"]
    open_rows = [row for row in front if row["unresolved_by"]]
    if open_rows:
        words = [
            f"{row['trial']} by {format_names([str(trial) for trial in row['unresolved_by']], _REASONS_SHOWN)}"
            for row in open_rows
        ]
        count = f"{len(open_rows)} of {len(front)} may be dominated within measurement noise"
        yield f"Not resolved, {count}: {format_names(words, _NAMES_SHOWN, '; ')}."
    if document["near_front"]:
        near = [f"{row['trial']} ({row['front_chance']:.0%})" for row in document["near_front"]]
        yield f"Beside the front, but no less likely to be on it than its least likely member: trials {format_names(near, _NAMES_SHOWN)}."
    if document["score"]["training_sd"] is not None:
        yield f"Scores of one architecture differ from seed to seed by a standard deviation of {document['score']['training_sd']:.3f}."


def audit_sentence(document: Document) -> str:
    """How well the score's proxy orders architectures, as the last audit of it found."""
    audit = document["audit"]
    if audit:
        origin = ""
        if audit["is_shipped"]:
            devices = dict.fromkeys(f"{one['device']} ({one['device_name']})" for one in audit["conditions"])
            origin = f", shipped with archsearch, run on {', '.join(devices)}"
        return f"Audit of {audit['created_at'][:10]}{origin}: {audit['verdict']}"
    return f"This proxy has not been audited; `{command_line(['audit', document['folder']])}` measures how well it orders architectures."


def conditions_text(document: Document) -> str:
    """The conditions under which every figure of the run was measured."""
    given, source = document["conditions"], document["calibration"]
    own = {key: value for key, value in given.items() if key != "machine"}
    lines = [conditions_line({**(given["machine"] or {}), **own})]
    lines += (
        [figure_sentence(document["ranked_figure"], remeasure_command(document))] if document["ranked_figure"] else []
    )
    lines += [calibration_sentence(source)] if source else []
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n".join([*lines, f"versions: {versions}"])
