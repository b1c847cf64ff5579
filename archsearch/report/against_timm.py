"""`archsearch audit --timm`: its document as rich tables and sentences."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType

from archsearch.proxy.audit.verdict import interval_ends, number
from archsearch.report.tables import Document, make_table, titled
from archsearch.units import format_seconds

_JUDGES = {"params": "parameters", "macs": "MACs", "nsc": "NSC", "az_nas": "AZ-NAS", "naswot": "NASWOT", "zico": "ZiCo"}
# The sets of a band by their columns, in two tables that fit a terminal.
_TABLES = (("all", "in1k only", "like params"), ("attention", "mixed", "convolution"))
_HEADS = {"like params": "pairs of like params"}
_KEY = (
    "Kendall tau with the published ImageNet top-1: 1 for the same order, 0 for none, -1 for the reverse; 95 % by bootstrap over families, whose networks "
    "share their recipes; sets of fewer than five families are left out. All: the best checkpoint trained on ImageNet-1k alone, else the best of any. "
    "In1k only: networks that have such a checkpoint. Like params: of these the pairs whose parameters differ by less than 10 %. The fitted sum's weights "
    "for a family are fitted to the others."
)
_UNTRAINED = (
    "No proxy has trained these networks: the small copy that a profile trains is made of an architecture's layers, and timm's networks have none. They "
    "are scored untrained, at full width; MACs, activations and parameters of timm's networks are those that timm publishes."
)


def timm_audit_parts(document: Document) -> Iterator[RenderableType]:
    """Two tables for each band, one of the papers' models, and what they mean."""
    scored = sum(one["scores"] is not None for one in document["networks"])
    yield (
        f"Audit against timm's published top-1, {document['created_at']}: {scored} networks, {format_seconds(document['seconds'])} of scoring in all, "
        f"at {document['image_size']} px with {document['batch_size']} images, kept in {document['folder']}"
    )
    for band in document["bands"]:
        title = f"timm's hierarchical mixers of {band['band']}"
        sets = {one["set"]: one for one in band["sets"] if one["judges"]}
        if not sets:
            yield f"{title}: {band['sets'][0]['count']} networks, too few to tell anything"
        for names in _TABLES:
            if found := [sets[name] for name in names if name in sets]:
                yield _table(title, found)
    if document["papers"]["judges"]:
        yield _table("The papers' models", [document["papers"]])
    yield _KEY
    yield _UNTRAINED


def _table(title: str, sets: Sequence[Document]) -> Group:
    """A row for each judge, a column for each set of networks."""
    cells = {one["set"]: {judge["judge"]: judge for judge in one["judges"]} for one in sets}
    judges = list(dict.fromkeys(judge for own in cells.values() for judge in own))
    rows = [[_JUDGES.get(judge, judge), *(_cell(own.get(judge)) for own in cells.values())] for judge in judges]
    heads = [f"{_HEADS.get(one['set'], one['set'])} ({one['count']})" for one in sets]
    return titled(title, make_table(["judge", *heads], rows, left=["judge"]))


def _cell(judge: Document | None) -> str:
    if judge is None or judge["value"] is None:
        return "-"
    return f"{number(judge['value'])} ({interval_ends(judge)})"
