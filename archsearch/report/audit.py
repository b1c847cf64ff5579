"""`archsearch audit`: an audit's document as rich tables and sentences."""

from collections.abc import Iterator

from rich.console import Group, RenderableType

from archsearch.proxy.audit.verdict import interval_ends, number
from archsearch.report.tables import Document, make_table, text, titled
from archsearch.units import format_count, format_seconds

_GROUPS = {"papers": "papers' models", "hybrids": "hybrids"}
_JUDGES = {"proxy": "the proxy", "params": "parameters", "macs": "MACs"}
_KEY = (
    "Kendall tau is 1 for the same order, 0 for none, -1 for the reverse; 95 % by bootstrap over architectures. "
    "One seed: the mean tau of a single training, which is what a run has. Seed to seed: how far two seeds of the "
    "proxy agree with each other. The other judges need no training: counts, and scores of untrained networks."
)


def audit_parts(document: Document) -> Iterator[RenderableType]:
    """Scores, noise, a table for each comparison, and the verdict."""
    origin = f" of run {document['run']}" if document["run"] else ""
    yield (
        f"Audit of the proxy{origin}, {document['created_at']}: {document['trainings']} trainings, "
        f"{format_seconds(document['seconds'])} of training in all, kept in {document['folder']}"
    )
    for group in ("papers", "hybrids"):
        if any(row["group"] == group for row in document["architectures"]):
            yield _score_table(document, group)
    if document["groups"]:
        yield _noise_table(document)
    for comparison in document["comparisons"]:
        yield _comparison_table(document, comparison)
    if document["comparisons"]:
        yield _KEY
    failed = [[row["name"] or row["architecture"], row["reason"]] for row in document["architectures"] if row["reason"]]
    if failed:
        columns = ["architecture", "reason"]
        yield titled("Not trained, and left out", make_table(columns, failed, left=columns))
    yield document["verdict"]
    lines = [f"proxy_id: {document['proxy_id']}"]
    for one in document["conditions"]:
        threads = "" if one["threads"] is None else f", {one['threads']} thread{'s' * (one['threads'] > 1)}"
        lines.append(f"trained on {one['device']} ({one['device_name']}), torch {one['torch']}{threads}")
    yield "\n".join(lines)


def _score_table(document: Document, group: str) -> Group:
    """Each architecture with the score of every seed, and the top-1 or longer training that it is compared with."""
    is_papers = group == "papers"
    target = "top-1" if is_papers else f"{document['longer']}x steps"
    has_target = is_papers or bool(document["longer"])
    rows = []
    members = [row for row in document["architectures"] if row["group"] == group]
    for row in sorted(members, key=lambda row: -(row["mean"] or 0.0)):
        value = text(row["top1"], ".1f") if is_papers else text(row["longer"], ".3f")
        rows.append(
            [
                row["name"] or row["architecture"],
                text(row["mean"], ".3f"),
                " ".join(f"{score:.3f}" for score in row["scores"].values()) or "-",
                *([value] if has_target else []),
                format_count(row["params"]),
                format_count(row["macs"]),
            ]
        )
    columns = ["architecture", "score", "of each seed", *([target] if has_target else []), "params", "MACs"]
    title = f"The {_GROUPS[group]}, the best score first" + (", and their papers' ImageNet top-1" if is_papers else "")
    return titled(title, make_table(columns, rows, left=columns[:1]))


def _noise_table(document: Document) -> Group:
    """The spread of scores between architectures, and the noise of one score."""
    columns = ["scores of", "count", "seeds", "range", "sd", "binomial se", "sd of seeds", "ties", "a training"]
    rows = [
        [
            _GROUPS[name],
            str(group["count"]),
            str(group["seeds"]),
            f"{group['lowest']:.3f} to {group['highest']:.3f}",
            f"{group['sd_between_architectures']:.4f}",
            f"{group['binomial_standard_error']:.4f}",
            text(group["sd_between_seeds"], ".4f"),
            f"{group['tied_pairs_share']:.0%}",
            format_seconds(group["seconds_per_training"]),
        ]
        for name, group in document["groups"].items()
    ]
    title = "Spread and noise; ties are pairs of single scores within 2 standard errors of their difference"
    return titled(title, make_table(columns, rows, left=columns[:1]))


def _comparison_table(document: Document, comparison: Document) -> Group:
    """Rank correlation of each judge with one target."""
    rows = [_judge_row(_JUDGES.get(judge["judge"], judge["judge"]), judge) for judge in comparison["judges"]]
    if comparison["minus_params"]:
        rows.append(_judge_row("the proxy minus parameters", comparison["minus_params"]))
    if comparison["ceiling"]:
        rows.append(_judge_row("the proxy, seed to seed", comparison["ceiling"]))
    targets = {
        "proxy": "against the proxy's own whole training",
        "top1": "against the published ImageNet top-1",
        "longer": f"against {document['longer']} times the steps",
    }
    title = f"Who orders the {comparison['count']} {_GROUPS[comparison['group']]}, {targets[comparison['target']]}"
    columns = ["judge", "tau", "95 %", "one seed"]
    return titled(title, make_table(columns, rows, left=columns[:1]))


def _judge_row(name: str, judge: Document) -> list[str]:
    if judge["value"] is None:
        return [name, "-", "-", "-"]
    return [
        name,
        number(judge["value"]),
        interval_ends(judge),
        "-" if judge.get("single") is None else number(judge["single"]),
    ]
