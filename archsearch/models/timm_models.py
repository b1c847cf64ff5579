"""The models that `import archsearch.timm` registers with timm: every paper's, and one for any architecture."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import generate_default_cfgs, is_model, register_model

from archsearch.errors import UserError, shown
from archsearch.models.timm_network import HYBRID, create_timm_network, timm_config
from archsearch.space import Arch, paper, paper_names

# Read by timm's register_model, for the names of models that it registers here.
default_cfgs = generate_default_cfgs({f"archsearch_{name}": timm_config(paper(name)) for name in paper_names()})


def archsearch_hybrid(pretrained: bool = False, arch: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Any architecture: `arch` is what `Arch.to_dict()` gives. Raises UserError without one, and where a layer of it is not registered."""
    if not isinstance(arch, Mapping):
        got = "no arch" if arch is None else f"arch is {shown(arch)}"
        raise UserError(f"{HYBRID}: {got}; give the dict of an architecture, arch=archsearch.Arch.to_dict()")
    return create_timm_network(HYBRID, Arch.from_dict(arch, HYBRID), pretrained, **options)


def _entry(name: str) -> Callable[..., Any]:
    """timm's entry point of a paper's model."""

    def create(pretrained: bool = False, **options: Any) -> Any:
        return create_timm_network(f"archsearch_{name}", paper(name), pretrained, **options)

    create.__name__ = create.__qualname__ = f"archsearch_{name}"
    create.__doc__ = f"{name} of {paper(name).name}, built by archsearch."
    return create


def register_timm_models() -> None:
    """Register the models with timm, unless they are registered."""
    for entry in (archsearch_hybrid, *map(_entry, paper_names())):
        if not is_model(entry.__name__):
            register_model(entry)
