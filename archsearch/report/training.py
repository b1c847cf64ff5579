"""What a training reached, beside what its paper published."""

from collections.abc import Iterator

from rich.console import RenderableType

from archsearch.report.tables import Document, make_table, titled
from archsearch.system import command_line


def train_parts(document: Document) -> Iterator[RenderableType]:
    """The figures of the weights and of their average, the published ones with what they are, the recipe, and the next command."""
    rows = [
        [
            words,
            f"{100 * found['top1']:.2f}",
            f"{100 * found['top1_se']:.2f}",
            f"{100 * found['top5']:.2f}",
            f"{found['val_loss']:.3f}",
        ]
        for words, found in (("weights", document["raw"]), ("average of the weights (EMA)", document["ema"]))
    ]
    columns = ["measured here", "top-1 %", "standard error", "top-5 %", "loss"]
    images = f"{document['val_images']} validation images of {document['data']['name']}"
    title = f"{document['what']} after {document['epochs']} epochs, on {images}"
    yield titled(title, make_table(columns, rows, left=["measured here"]))
    if document["published"] is not None:
        yield published_sentence(document)
    recipe = document["recipe"]
    yield f"Recipe {recipe['name']}: {recipe['reason']} ({recipe['source']})."
    if document["init_from"] is not None:
        yield f"Started from another network: {document['init_from']['words']}."
    yield f"Next: {command_line(document['export'])}"


def published_sentence(document: Document) -> str:
    """The paper's figure, labelled as what it is."""
    published = document["published"]
    if published["top1"] is None:
        return "The paper publishes no top-1 of this model."
    top5 = f", top-5 {published['top5']:g}" if published["top5"] is not None else ""
    sentence = f"Published by the paper, on ImageNet-1K: top-1 {published['top1']:g}{top5} ({published['source']})"
    if published["not_compared"]:
        return f"{sentence}. The two cannot be compared: {published['not_compared']}."
    return f"{sentence}; the figures above were measured here on the same images, with weights trained here."
