"""The sentences of the report that the page shows, by where it shows them."""

from collections.abc import Iterator

from archsearch.report.busy import busy_sentence, slow_sentence
from archsearch.report.caveats import audit_sentence, conditions_text, left_out, remeasure_command, taken_sentence
from archsearch.report.fixed import included_sentences, published_rates, unscored_sentences
from archsearch.report.repeatability import (
    again_sentence,
    noisy_sentence,
    predicted_sentence,
    transfer_sentence,
)
from archsearch.report.run_tables import dominance_sentences, headline, training_sentence
from archsearch.report.tables import Document
from archsearch.results import missing_words


def sentences(document: Document) -> dict[str, list[str]]:
    """What the report says: `headline`, `conditions`, `caveats`, `audit`, `fixed` and `training`."""
    fixed = [*document["fixed"], *document["unscored"]]
    return {
        "headline": [headline(document)],
        "conditions": conditions_text(document).splitlines(),
        "caveats": list(_caveats(document)),
        "audit": [audit_sentence(document)] if document["score"]["proxy_id"] else [],
        "fixed": [
            *published_rates(fixed),
            *included_sentences(fixed),
            *(dominance_sentences(document) if document["fixed"] else ()),
            *unscored_sentences(document["unscored"]),
        ],
        "training": [training_sentence(document["training"])]
        if document["training"] and document["training"]["trials"]
        else [],
    }


def _caveats(document: Document) -> Iterator[str]:
    """What to know before the figures are used."""
    if missing := missing_words(document["missing"], document["trials"]["asked"]):
        yield f"Missing: {missing}."
    if document["noisy"]:
        yield noisy_sentence(document["noisy"], remeasure_command(document))
    for part in left_out(document):
        yield from part.splitlines()
    one_of_several = (
        ("again", again_sentence),
        ("predicted", predicted_sentence),
        ("busy", busy_sentence),
        ("slow", slow_sentence),
    )
    yield from (sentence(document[name]) for name, sentence in one_of_several if document[name])
    yield from map(taken_sentence, document["taken_from"])
    if document["starved"]:
        yield f"Trainings waited for images in {len(document['starved'])} trials; scores stay right."
    warning = transfer_sentence(document["conditions"]["device"], document["conditions"]["mode"])
    if document["ranked_figure"] and warning:
        yield warning
