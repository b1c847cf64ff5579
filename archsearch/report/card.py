"""The model card of an exported network: what it is, what was measured of it and how, where its weights come from, how it is loaded."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from archsearch.report.tables import Document, conditions_line
from archsearch.results import RUN_FRONT, damage_is_an_error, read_front, read_manifest, read_rows
from archsearch.space import paper_names, paper_table
from archsearch.units import format_count, format_image

_FIGURES = ("proxy_score", "throughput_img_s", "latency_ms", "peak_memory_bytes")


def run_facts(folder: Path, number: int) -> dict[str, Any]:
    """What a run measured of a trial, under which conditions, and whether it is on the front; empty figures are left out."""
    with damage_is_an_error(folder):
        manifest = read_manifest(folder)
        row = next(row for row in read_rows(folder, without=["arch"]) if row["trial"] == number)
        front = read_front(folder)
        members = front.loc[front["front_name"] == RUN_FRONT, "trial"]
        return {
            "run": str(manifest["name"]),
            "objectives": [str(name) for name in manifest["objectives"]],
            "members": int(members.nunique()),
            "is_member": bool((members == number).any()),
            "row": {key: value for key, value in row.items() if value is not None},
        }


def weights_sentence(document: Document) -> str:
    """Where the weights come from, in words."""
    weights = document["weights"]
    if weights is None:
        return "Weights: none; a TOML file holds the architecture alone."
    if document["weights_kind"] == "initial":
        return "Weights: initial, NOT TRAINED; give --weights FILE for others."
    file = f" ({weights['file']})" if "file" in weights else ""
    return f"Weights: {weights['weights']}{file}."


def model_card(document: Document, facts: Document | None = None) -> str:
    """The card as Markdown with the front matter of model hubs; `facts` are those of `run_facts`."""
    sections = [
        _front_matter(document),
        f"# {document['name'] or 'hybrid ' + document['arch_id']}\n\n{_what(document)}",
        f"## Weights\n\n{_weights(document)}",
        f"## Cost\n\n{_cost(document)}",
        *([f"## Measured\n\n{_measured(facts)}"] if facts else []),
        f"## How to load it\n\n{_loading(document)}",
        f"## Licence\n\n{_licence(document)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(document: Document) -> str:
    """Tags by which hubs find a model."""
    licence = "other" if document["weights_kind"] == "official" else "apache-2.0"
    tags = "\n".join(f"- {tag}" for tag in ("image-classification", "timm", "archsearch"))
    return f"---\ntags:\n{tags}\nlibrary_name: timm\nlicense: {licence}\n---"


def _what(document: Document) -> str:
    name, image = document["name"], format_image(document["image_size"], document["in_chans"])
    if name in paper_names():
        table = paper_table(name)
        origin = f'The model {name} of "{table["title"]}" (arXiv {table["arxiv"]}), built by archsearch.'
    else:
        origin = "A vision backbone of published blocks, built by archsearch."
    return (
        f"{origin}\n\n"
        f"- architecture: {document['description']} (block, width x depth)\n"
        f"- arch_id: {document['arch_id']}\n"
        f"- input: {image}; output: {document['num_classes']} classes"
    )


def _weights(document: Document) -> str:
    """Where they come from, everything that is known of it, and what was done to them."""
    weights = document["weights"]
    if document["weights_kind"] == "initial":
        return "weights: initial. This network is NOT TRAINED: its predictions mean nothing until it is."
    known = [f"- {key}: {_listed(value)}" for key, value in weights.items()]
    return "\n".join([*known, *(f"- note: {note}" for note in document["notes"])])


def _listed(value: Any) -> str:
    """A value in words: of a table its names and values."""
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, Mapping) else str(value)


def _cost(document: Document) -> str:
    return (
        f"Exact, for one image of {format_image(document['image_size'], document['in_chans'])}:\n\n"
        f"| multiply-adds | parameters | activations |\n|---|---|---|\n"
        f"| {document['macs']} ({format_count(document['macs'])}) | {document['params']} ({format_count(document['params'])}) | {document['activations']} |"
    )


def _measured(facts: Document) -> str:
    """The figures of a row, with their conditions, and its place."""
    row = facts["row"]
    members = f"{facts['members']} trial{'s' * (facts['members'] != 1)}"
    place = "is on the front" if facts["is_member"] else "is not on the front"
    lines = [
        f"Trial {row['trial']} of the run {facts['run']}. It {place} of {members} by {', '.join(facts['objectives'])}.",
        "",
        *(f"- {line}" for line in _figures(row)),
    ]
    timed = any(name in row for name in _FIGURES[1:])
    where = conditions_line(json.loads(row.get("conditions", "{}")) | row)
    return "\n".join([*lines, *(["", f"Times and memory: {where}."] if timed else [])])


def _figures(row: Document) -> Iterator[str]:
    """The measured figures, in words."""
    if "proxy_score" in row:
        error = f" +- {row['proxy_score_se']:.3f}" if "proxy_score_se" in row else ""
        yield (
            f"proxy_score: {row['proxy_score']:.3f}{error} (proxy {row.get('proxy_id')}). It is the share of validation images that the proxy's "
            "short training gets right; it ranks the candidates of one run and is no accuracy of these weights."
        )
    if "throughput_img_s" in row:
        unsteady = ", on a machine that was not quiet" if row.get("throughput_noisy") else ""
        yield f"throughput: {row['throughput_img_s']:.1f} images per second{unsteady}"
    if "latency_ms" in row:
        yield f"latency: {row['latency_ms']:.2f} ms for a batch of {row['batch_size']}"
    if "peak_memory_bytes" in row:
        yield f"peak memory: {row['peak_memory_bytes']} bytes"


def _loading(document: Document) -> str:
    versions = document["versions"]
    first = [f'import archsearch.blocks; archsearch.blocks.load_blocks("{name}")' for name in document["blocks"]]
    lines = [each["load"].replace(document["out"], "PATH") for each in document["files"] if each["format"] != "toml"]
    checked = [
        f"- {each['format']}: {each['relative_difference']:.1g} of the largest logit, {each['images']} images"
        for each in document["files"]
        if "relative_difference" in each
    ]
    return (
        "`PATH` is this folder.\n\n```python\n" + "\n".join([*first, *lines]) + "\n```\n\n"
        f"Written with archsearch {versions['archsearch']}, torch {versions['torch']} and timm {versions['timm']}. Each file was loaded again and its "
        "logits compared with torch's on random images; the largest differences:\n\n" + "\n".join(checked)
    )


def _licence(document: Document) -> str:
    """Of the code, and of weights that are not ours."""
    code = "archsearch, whose code builds the network, is under the Apache License 2.0."
    if document["weights_kind"] != "official":
        return f"{code} Who trained the weights decides on theirs; initial weights may be used freely."
    repository = paper_table(document["name"])["repository"]
    return f"{code} The weights are the official checkpoint, under the licence of {repository}."
