"""Networks of one's own as fixed trials, `archsearch run --include`: read, built and counted before a run begins."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archsearch.blocks import BlockFile, files_of
from archsearch.errors import UserError, shown
from archsearch.models import TIMM, GivenNetwork
from archsearch.proxy import ProxyTask
from archsearch.search.evaluate import refuse_unknown_shape
from archsearch.space import Arch, ImageSize, Space, load_space, paper_names
from archsearch.system import Say, read_text, user_path
from archsearch.units import format_count, format_image

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_FORMS = "FILE.toml (a space of size one), FILE.json (an architecture), RUN:TRIAL, an arch_id, timm:NAME and package.module:function are allowed"


@dataclass(frozen=True, kw_only=True)
class Included:
    """The networks to include by name, as `RunConfig.include` has them, and the files of blocks that they are made of."""

    documents: Mapping[str, Mapping[str, Any]]
    files: Sequence[BlockFile]


def include(
    networks: Sequence[str | Arch],
    space: Space,
    task: ProxyTask,
    *,
    image_size: ImageSize | None = None,
    ray: bool = False,
    say: Say,
) -> Included:
    """The networks that `--include` names or gives, for a run of this space and proxy; `image_size` is the one that the run was asked for.

    The code of functions and of files of blocks is run. Raises UserError for one that cannot be measured beside the space's candidates.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    files: dict[str, BlockFile] = {file.name: file for file in space.block_files}
    for one in dict.fromkeys(networks):
        text = one if isinstance(one, str) else one.arch_id
        network, name, own_files = _read(one, space, image_size, ray=ray)
        _check_name(text, name, documents)
        for file in own_files:
            if files.setdefault(file.name, file).text != file.text:
                raise UserError(
                    f"--include {text}: its {file.name} is another file than the run's; rename one of the two"
                )
        if isinstance(network, GivenNetwork):
            network = replace(network, no_score=_why_no_score(network, task))
        else:
            refuse_unknown_shape(network, task)
        documents[name] = {"arch_id": network.arch_id, "network": network.to_dict()}
        say(_sentence(name, network))
    return Included(documents=documents, files=list(files.values()))


def _read(
    text: str | Arch, space: Space, image_size: ImageSize | None, *, ray: bool
) -> tuple[Arch | GivenNetwork, str, Sequence[BlockFile]]:
    """A network, its name, and its files of blocks."""
    plan = space.plan
    if isinstance(text, Arch):
        arch = replace(text, name=text.name or text.arch_id)
        _check_images(arch.arch_id, arch, space)
        return arch, str(arch.name), files_of({type(placed.layer) for placed in arch.layers()})
    if text.startswith(TIMM) or _FUNCTION.fullmatch(text):
        if ray and not text.startswith(TIMM):
            raise UserError(
                f"--include {text}: with --ray other machines evaluate, which may lack its code; only timm:NAME and files can be included there"
            )
        counted = GivenNetwork.count(
            text, image_size=plan.image_size, in_chans=plan.in_chans, num_classes=plan.num_classes
        )
        return counted, text, ()
    files: Sequence[BlockFile] = ()
    if text.endswith(".json"):
        arch = _read_json(text)
    elif text.endswith(".toml"):
        own = load_space(user_path(text)).resized(image_size)
        arch, files = replace(own.arch(), name=own.name), own.block_files
    else:
        hint = "; a paper's model is included by --papers" if text in paper_names() else ""
        raise UserError(f"--include: got {shown(text)}; {_FORMS}{hint}")
    _check_images(text, arch, space)
    return arch, str(arch.name), files


def _check_images(text: str, arch: Arch, space: Space) -> None:
    """Raise UserError for an architecture that takes other images than the space's."""
    plan = space.plan
    if (arch.image_size, arch.in_chans) != (plan.image_size, plan.in_chans):
        own_images, wanted = (format_image(one.image_size, one.in_chans) for one in (arch, plan))
        raise UserError(
            f"--include {text}: is for {own_images}, the space is for {wanted}; their figures cannot be compared"
        )


def _read_json(text: str) -> Arch:
    """An architecture as `Arch.to_dict` gives it, or an object of `archsearch sample --json`; named after the file where it has no name."""
    arch = Arch.from_json(read_text(user_path(text), "an architecture"), f"--include {text}")
    return replace(arch, name=arch.name or Path(text).stem)


def _check_name(text: str, name: str, others: Mapping[str, Any]) -> None:
    """Raise UserError for a name that a trial of the run has already, or that would be taken for a paper's model."""
    if name in paper_names():
        raise UserError(
            f"--include {text}: is named {name}, as a paper's model; give it another `name`, or include that by --papers"
        )
    if name in others:
        raise UserError(f"--include {text}: another included network is named {name} too; give it another `name`")


def _why_no_score(network: GivenNetwork, task: ProxyTask) -> str | None:
    """Why the proxy of a run cannot train a given network, which has no small copy; None where it trains it as it is."""
    if task.scale.width_divisor != 1:
        return (
            f"no proxy score: it has no architecture to make a small copy of, and this proxy trains copies at 1/{task.scale.width_divisor} "
            "of the widths; a --proxy with width_divisor = 1 trains it as it is"
        )
    try:
        network.check_trainable(task.scale.image_size, task.num_classes)
    except UserError as error:
        return f"no proxy score: this proxy cannot train it as it is at {task.scale.image_size} px: {error}"
    return None


def _sentence(name: str, network: Arch | GivenNetwork) -> str:
    """What is included, with its costs, and what is not known of it."""
    cost = network.cost()
    words = f"included {name}: {network.describe()}, {format_count(cost.macs)} MACs, {format_count(cost.params)} params"
    no_score = network.no_score if isinstance(network, GivenNetwork) else None
    return f"{words}; {no_score}" if no_score else words
