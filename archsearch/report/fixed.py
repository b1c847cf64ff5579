"""Fixed trials in a report: published throughputs, what included networks are, and those that the proxy cannot train beside the front."""

from collections.abc import Iterator, Sequence

import numpy as np

from archsearch.metrics import dominates
from archsearch.report.tables import Document
from archsearch.results import Row, comparable, minimised
from archsearch.units import format_names

_NAMES_SHOWN = 6


def against_front(row: Row, front: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> Document:
    """The candidates on the front that dominate such a trial in the objectives `compared_in`, which are none where its timing is not comparable."""
    others = [name for name in objectives if name != "proxy_score" and row[name] is not None]
    members = [member for member in front if not member["is_fixed"]]
    if not others or not members or not comparable([row], objectives, throughput_id):
        return {"compared_in": [], "dominated_by": []}
    values, own = minimised(members, others), minimised([row], others)[0]
    over = np.flatnonzero(dominates(values, own))
    return {"compared_in": others, "dominated_by": [members[place]["trial"] for place in over]}


def published_rates(rows: Sequence[Document]) -> Iterator[str]:
    """One sentence with the first throughput that each paper publishes, or nothing."""
    words = []
    for row in rows:
        for figure in ((row["published"] or {}).get("throughput") or [])[:1]:
            words.append(f"{row['paper']} {figure['images_per_s']:g} ({figure.get('device', 'device not stated')})")
    if words:
        yield f"Published img/s, on other devices and not to be compared with ours: {', '.join(words)}."


def included_sentences(rows: Sequence[Document]) -> Iterator[str]:
    """What each fixed trial is that is no paper's model, and what its MACs lack."""
    words = [f"{row['paper']} is {row['architecture']}" for row in rows if row["published"] is None]
    if words:
        yield f"Included networks: {'; '.join(words)}."


def unscored_sentences(documents: Sequence[Document]) -> Iterator[str]:
    """Why each such trial has no score, and which candidates on the front are better in all that is known of it."""
    for row in documents:
        yield f"{row['paper']} (trial {row['trial']}) is on no front that needs a score. {row['reason'][:1].upper()}{row['reason'][1:]}."
        if row["compared_in"]:
            trials = format_names(list(map(str, row["dominated_by"])), _NAMES_SHOWN) or "none"
            yield (
                f"Candidates on the front that dominate it in {' and '.join(row['compared_in'])}: {trials}. "
                "How accurate it is beside them is not known."
            )
