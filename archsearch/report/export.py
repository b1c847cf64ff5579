"""`archsearch export`: what was written, what it was compared with, and how it is loaded, as a table and as sentences."""

from collections.abc import Iterator

from rich.console import RenderableType

from archsearch.report.card import weights_sentence
from archsearch.report.tables import Document, make_table, text, titled, unbroken
from archsearch.units import format_bytes, format_image

EXPORT_NOTE = (
    "Difference: the largest between the logits of what was written, loaded again, and the network's in torch, as a share of the largest logit, "
    "on so many random images."
)


def export_parts(document: Document) -> Iterator[RenderableType]:
    """The files as a table, where the weights come from, what was done to them, and a line that loads each file."""
    rows = [
        [
            each["format"],
            format_bytes(each["bytes"]),
            f"{each['seconds']:.1f}",
            text(each.get("relative_difference"), ".1g"),
            text(each.get("images")),
            text(each.get("equal_top1")),
        ]
        for each in document["files"]
    ]
    name = document["name"] or document["arch_id"]
    image = format_image(document["image_size"], document["in_chans"])
    title = f"{name} for {image}, {document['num_classes']} classes, in {document['out']}"
    yield titled(
        title, make_table(["format", "size", "seconds", "difference", "images", "same top-1"], rows, left=["format"])
    )
    if document["weights"]:
        yield EXPORT_NOTE
    yield "\n".join([weights_sentence(document), *(f"Note: {note}." for note in document["notes"])])
    yield unbroken("\n".join(["Load it:", *(f"  {each['load']}" for each in document["files"])]))
