"""The papers' models that are shipped as spaces of size one: by name, the nearest to a budget, and the one that is timed beside every candidate."""

import math
from functools import cache

from archsearch.errors import UserError, did_you_mean
from archsearch.space.arch import Arch
from archsearch.space.shipped import paper_names
from archsearch.space.space import Space, load_space
from archsearch.units import ImageSize, format_image

# Timed before and after every candidate, so every trial pays for it: the smallest of the papers' models.
REFERENCE = "van_b0"


def reference_arch() -> Arch:
    """The fixed model that is timed around every candidate."""
    return paper(REFERENCE)


def choose_papers(text: str, budget_macs: int, image_size: ImageSize, in_chans: int = 3) -> tuple[str, ...]:
    """The fixed trials for `nearest` (of each family the model nearest to the budget in log-MACs), `all`, `none`, or names with commas.

    Figures for different images are never compared: `nearest` and `all` take models of this size and these channels, another one by name is a UserError.
    """
    if text == "none":
        return ()
    if text not in ("nearest", "all"):
        return _named_papers(text, image_size, in_chans)
    usable = [name for name in paper_names() if _takes(name, image_size, in_chans)]
    if text == "all":
        return tuple(usable)
    families: dict[str, list[str]] = {}
    for name in usable:
        families.setdefault(str(paper_space(name).paper.get("family", name)), []).append(name)

    def distance(name: str) -> float:
        return abs(math.log(paper(name).cost().macs / budget_macs))

    return tuple(min(names, key=distance) for names in families.values())


def _takes(name: str, image_size: ImageSize, in_chans: int) -> bool:
    """Whether a paper's model is one for such images."""
    return (paper(name).image_size, paper(name).in_chans) == (image_size, in_chans)


def _named_papers(text: str, image_size: ImageSize, in_chans: int) -> tuple[str, ...]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"--papers: got {text!r}; write nearest, all, none, or names that `archsearch papers` lists")
    for name in names:
        if name not in paper_names():
            hint = did_you_mean(name, ["nearest", "all", "none", *paper_names()])
            raise UserError(
                f"--papers: unknown paper {name!r}{hint}; `archsearch papers` lists them; nearest, all and none are allowed too"
            )
        if not _takes(name, image_size, in_chans):
            own, wanted = format_image(paper(name).image_size), format_image(image_size, in_chans)
            raise UserError(
                f"--papers: {name} is a model for {own}, the space is for {wanted}; their figures cannot be compared"
            )
    return tuple(names)


@cache
def paper(name: str) -> Arch:
    """A paper's model by name, such as `davit_tiny`. Raises UserError with the nearest name."""
    return paper_space(name).arch()


@cache
def paper_space(name: str) -> Space:
    """A paper's model as the space of size one it is, with its `[paper]` table."""
    if name not in paper_names():
        known = paper_names()
        raise UserError(f"unknown paper {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return load_space(name)
