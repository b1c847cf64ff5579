"""Full training: a network on images of one's own by a paper's recipe, resumable to the same numbers, from weights that fit or from none."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
