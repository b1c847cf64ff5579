"""`archsearch bench --against-runtime`: the figures of two runtimes side by side, and how far their orders agree."""

from collections.abc import Iterator

from rich.console import RenderableType

from archsearch.report.bench import bench_parts, conditions_of, mark_rate, name_of
from archsearch.report.tables import Document, make_table, text


def against_runtime_parts(document: Document) -> Iterator[RenderableType]:
    """One table with a row for each architecture measured in both, failures as sentences, both conditions, and Kendall's tau.

    Where nothing was measured in the second runtime, the first one's tables.
    """
    runtimes = document["runtimes"]
    if len(runtimes) < 2 or not runtimes[1]["results"]:
        yield from bench_parts(runtimes[0])
        return
    first, second = (
        {result["asked"]: result for result in each["results"] if not result["error"]} for each in runtimes
    )
    names = [each["conditions"]["runtime"] for each in runtimes]
    rows = [
        [
            name_of(one),
            *(mark_rate(each) for each in (one, second[asked])),
            *(f"{each['ratio_to_reference']:.3f}" for each in (one, second[asked])),
            f"{second[asked]['throughput_img_s'] / one['throughput_img_s']:.2f}",
        ]
        for asked, one in sorted(first.items(), key=lambda item: -float(item[1]["ratio_to_reference"]))
        if asked in second
    ]
    if rows:
        columns = [
            "architecture",
            *(f"{name} img/s" for name in names),
            *(f"ratio, {name}" for name in names),
            "second/first",
        ]
        yield make_table(columns, rows, left=["architecture"])
    failures = [
        f"{result['asked']} in {name}: {result['error']}"
        for name, each in zip(names, runtimes, strict=True)
        for result in each["results"]
        if result["error"]
    ]
    if failures:
        yield "\n".join(failures)
    yield "\n".join(conditions_of(each) for each in runtimes if each["results"])
    tau = text(document["kendall_tau"], ".2f")
    yield (
        f"Kendall's tau between the two orders of {document['compared']} architectures: {tau}. The orders are those of the ratio to the reference, "
        "which is timed in the same runtime; 1 is the same order, 0 none. Figures of two runtimes are never ranked together."
    )
