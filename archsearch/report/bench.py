"""`archsearch bench`: the measurements beside the reference, failures, and the conditions."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from rich.console import RenderableType
from rich.table import Table

from archsearch.report.tables import Document, conditions_line, make_table, memory_text, text, titled
from archsearch.units import ImageSize, format_count, format_image, format_sides

Column = tuple[str, Callable[[Document], str]]


def bench_parts(document: Document) -> Iterator[RenderableType]:
    """Tables, failures as sentences, the conditions, and the meaning of the columns."""
    figures = [result for result in document["results"] if not result["error"]]
    if figures:
        yield from _sweep_tables(document, figures) if document["is_sweep"] else [_table(document, figures)]
    sentences = [f"{result['asked']}: {result['error']}" for result in document["results"] if result["error"]]
    sentences += [f"{name}: the sweep ends here; {reason}" for name, reason in document["sweep_ends"].items()]
    if sentences:
        yield "\n".join(sentences)
    if document["results"]:
        yield "\n".join([conditions_of(document), *_telemetry(document, figures)])
    if figures:
        yield " ".join([*_order_sentences(figures), *_column_sentences(document, figures)])


def interrupted_sentence(document: Document) -> str:
    """How much was measured before Ctrl-C."""
    return f"interrupted: {document['measured']} of {document['asked']} measurements were made"


def _table(document: Document, figures: Sequence[Document]) -> Table:
    """One row for each architecture, after the reference at each size and number of channels."""
    columns: list[Column] = [("architecture", name_of)]
    if len({figure["image_size"] for figure in figures}) > 1:
        columns.append(("px", lambda row: format_sides(row["image_size"])))
    if len({figure["in_chans"] for figure in figures}) > 1:
        columns.append(("channels", lambda row: str(row["in_chans"])))
    columns += _figure_columns(figures)
    columns.append(("MACs", lambda row: format_count(row["macs"])))
    columns.append(("params", lambda row: format_count(row["params"])))
    return _make(columns, [*_reference_rows(document, figures), *figures])


def _sweep_tables(document: Document, figures: Sequence[Document]) -> Iterator[RenderableType]:
    """One table for each architecture, a row for each batch size."""
    columns: list[Column] = [("batch", lambda row: str(row["batch_size"])), *_figure_columns(figures)]
    for asked in dict.fromkeys(figure["asked"] for figure in figures):
        rows = [figure for figure in figures if figure["asked"] == asked]
        counts = f"{format_count(rows[0]['macs'])} MACs, {format_count(rows[0]['params'])} params"
        title = (
            f"{name_of(rows[0])}, {counts}, {format_image(*_image(rows[0]))}; ratio to {document['reference']['name']}"
        )
        yield titled(title, _make(columns, rows))


def _figure_columns(figures: Sequence[Document]) -> list[Column]:
    columns: list[Column] = [
        ("img/s", mark_rate),
        ("IQR", lambda row: text(row["throughput_iqr"], ".1%")),
        ("ms/batch", lambda row: f"{row['latency_ms']:.1f}"),
        ("ratio", lambda row: text(row["ratio_to_reference"], ".3f")),
    ]
    if any(figure["ratio_spread"] is not None for figure in figures):
        columns.append(("spread", lambda row: text(row["ratio_spread"], ".1%")))
    if any(figure["compile_s"] is not None for figure in figures):
        columns.append(("compile", lambda row: text(row["compile_s"], ".1f", "s")))
    if any(figure["difference_from_torch"] is not None for figure in figures):
        columns.append(("off", lambda row: text(row["difference_from_torch"], ".1g")))
    return [*columns, ("memory", lambda row: memory_text(row["peak_memory_bytes"]))]


def _make(columns: Sequence[Column], rows: Sequence[Document]) -> Table:
    names = [name for name, _ in columns]
    return make_table(names, [[cell(row) for _, cell in columns] for row in rows], left=["architecture"])


def _reference_rows(document: Document, figures: Sequence[Document]) -> Iterator[Document]:
    """The reference for each kind of images, with the median of all its timings."""
    for image in dict.fromkeys(map(_image, figures)):
        beside = [figure for figure in figures if _image(figure) == image]
        rate = statistics.median(one["reference_img_s"] for figure in beside for one in figure["rounds"])
        yield {
            "name": f"{document['reference']['name']} (reference)",
            "image_size": image[0],
            "in_chans": image[1],
            "throughput_img_s": rate,
            "throughput_iqr": None,
            "latency_ms": 1000 * beside[0]["batch_size"] / rate,
            "ratio_to_reference": 1.0,
            "ratio_spread": None,
            "compile_s": None,
            "difference_from_torch": None,
            "peak_memory_bytes": None,
            "macs": beside[0]["reference_macs"],
            "params": beside[0]["reference_params"],
        }


def _image(row: Document) -> tuple[ImageSize, int]:
    """Size in pixels and channels of the timed images."""
    return row["image_size"], row["in_chans"]


def name_of(row: Document) -> str:
    """A paper's name, else the argument of the command, or the arch_id for one read from stdin."""
    if row["name"]:
        return str(row["name"])
    return str(row["arch_id"] if row["asked"] == "-" else row["asked"])


def mark_rate(row: Document) -> str:
    """Images per second, marked where noisy, drifted or throttled."""
    marks = {"noisy": "~", "drifted": "!", "throttled": "^"}
    return f"{row['throughput_img_s']:.1f}" + "".join(mark for key, mark in marks.items() if row.get(key))


def conditions_of(document: Document) -> str:
    """The conditions that all figures share; what differs between them has a column."""
    results, where = document["results"], document["conditions"]
    shared = {key: results[0][key] for key in ("dtype", "mode")}
    sizes, channels = ({result[key] for result in results} for key in ("image_size", "in_chans"))
    batches = sorted({result["batch_size"] for result in results})
    batch = f"{batches[0]} to {batches[-1]}" if len(batches) > 1 else batches[0]
    size, in_chans = (found.pop() if len(found) == 1 else None for found in (sizes, channels))
    line = conditions_line({**where, **shared, "batch_size": batch, "image_size": size, "in_chans": in_chans})
    if results[0]["task"] == "train":
        line += ", training steps"
    cores = where["affinity"]
    if cores and len(cores) < (os.cpu_count() or 1):
        line += f", on core{'s' * (len(cores) > 1)} {', '.join(map(str, cores))} alone"
    return line


def _telemetry(document: Document, figures: Sequence[Document]) -> Iterator[str]:
    """The GPU's clocks, power, temperature and throttling while the figures were taken, or why NVML gave none."""
    if document["telemetry_missing"]:
        yield document["telemetry_missing"]
    samples = [figure["telemetry"] for figure in figures if figure["telemetry"]]
    if not samples:
        return
    parts = []
    units = {
        "sm_clock_mhz": ("SM clock", "MHz"),
        "memory_clock_mhz": ("memory clock", "MHz"),
        "power_w": ("power", "W"),
    }
    for key, (name, unit) in units.items():
        spreads = [one[key] for one in samples if one[key]]
        if spreads:
            low, high = min(one["min"] for one in spreads), max(one["max"] for one in spreads)
            parts.append(f"{name} {low:.0f} to {high:.0f} {unit}")
    degrees = [one["max_temperature_c"] for one in samples if one["max_temperature_c"] is not None]
    if degrees:
        parts.append(f"up to {max(degrees):.0f} C")
    reasons = sorted({reason for one in samples for reason in one["throttle_reasons"] or ()} - {"gpu_idle"})
    yield f"GPU meanwhile: {', '.join([*parts, 'clocks limited by ' + (', '.join(reasons) or 'nothing')])}"


def _order_sentences(figures: Sequence[Document]) -> Iterator[str]:
    """Which neighbours in the order by ratio changed places between rounds, where there were several rounds."""
    if not all(len(figure["rounds"]) > 1 for figure in figures):
        return
    order = sorted(figures, key=lambda figure: float(figure["ratio_to_reference"]), reverse=True)
    pairs = [
        f"{name_of(faster)} and {name_of(slower)}"
        for faster, slower in pairwise(order)
        if min(_ratios(faster)) <= max(_ratios(slower))
    ]
    number = min(len(figure["rounds"]) for figure in figures)
    if pairs:
        yield f"Over {number} rounds the order is not settled between {'; '.join(pairs)}."
    elif len(figures) > 1:
        yield f"The order was the same in all {number} rounds, and the ranges of the ratios do not overlap."


def _ratios(figure: Document) -> list[float]:
    return [one["ratio_to_reference"] for one in figure["rounds"]]


def _column_sentences(document: Document, figures: Sequence[Document]) -> Iterator[str]:
    """What the columns mean."""
    yield (
        "img/s is the median of timed blocks, IQR their relative spread, ratio the median over blocks of the rate over the reference's beside it. "
        "~ spread above the protocol's limit, ! reference drifted meanwhile"
        + (", ^ clocks reduced by heat or power brake." if document["conditions"]["device"] == "cuda" else ".")
    )
    if any(figure["ratio_spread"] is not None for figure in figures):
        yield "A row is the round with the median ratio, spread the range of the rounds' ratios over it."
    if any(figure["compile_s"] is not None for figure in figures):
        yield "compile is the first pass; torch.compile's cache of an earlier run shortens it."
    if any(figure["difference_from_torch"] is not None for figure in figures):
        yield "off is the largest difference of the logits from torch's, as a share of the largest logit."
    if document["conditions"]["device"] != "cuda":
        yield "memory is that of the whole process, with interpreter and reference: an upper bound of the network's own."
    yield "Figures measured under other conditions cannot be compared with these."
