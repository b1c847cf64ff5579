"""`archsearch evaluate`: the measured accuracy of a checkpoint beside the published one, as a table and as sentences."""

from collections.abc import Iterator

from rich.console import RenderableType

from archsearch.report.tables import Document, make_table, text, titled

_ROUNDING = 0.05  # points: published figures have one decimal


def evaluate_parts(document: Document) -> Iterator[RenderableType]:
    """The figures as a table, the comparison with the published ones, the preprocessing, and the conditions."""
    published, points = document["published"], document["difference"]
    images = f"{document['images']} images" + ("" if document["complete"] else f" of {document['total']} (partial)")
    rows = [
        [
            words,
            f"{100 * document[key]:.2f}",
            f"{100 * document[f'{key}_se']:.2f}",
            # A published figure beside one of other images or another size would invite a wrong comparison.
            text(None if points["reason"] else published[key], "g"),
            text(points[key], "+.2f"),
        ]
        for key, words in (("top1", "top-1 %"), ("top5", "top-5 %"))
    ]
    columns = [document["name"], "measured here", "standard error", "published", "difference"]
    yield titled(f"{document['name']} on {images}", make_table(columns, rows, left=[document["name"]]))
    yield comparison(document)
    yield document["preprocessing"]["words"]
    where = document["conditions"]
    yield f"{where['device']} ({where['device_name']}), {document['dtype']}, {document['images_s']:.1f} img/s with decoding"


def comparison(document: Document) -> str:
    """The published top-1 beside ours, in one sentence."""
    published, points = document["published"], document["difference"]["top1"]
    if published["top1"] is None:
        return "No top-1 is published."
    top5 = f", top-5 {published['top5']:g}" if published["top5"] is not None else ""
    sentence = f"Published top-1 {published['top1']:g}{top5} ({published['source']})"
    if points is None:
        return f"{sentence}; no difference is given: {document['difference']['reason']}."
    return f"{sentence}, measured here {100 * document['top1']:.2f}: {_explain_difference(points, 100 * document['top1_se'])}."


def _explain_difference(points: float, standard_error: float) -> str:
    """What may cause a difference of so many points; on the same images only rounding is expected."""
    size = abs(points)
    if size <= _ROUNDING + 1e-9:
        return f"equal up to rounding ({_ROUNDING})"
    beyond = f"{size:.2f} points {'above' if points > 0 else 'below'}, more than rounding ({_ROUNDING})"
    if size <= _ROUNDING + 2 * standard_error:
        within = f"{beyond} though within two standard errors ({2 * standard_error:.2f}) of it"
        return f"{within}; on the same images that points to weights, libraries or number format"
    return f"{beyond} and two standard errors ({2 * standard_error:.2f}) together explain; these are other weights or other images"
