"""Spaces and architectures: the grammar of space files, the papers' models, and exact counting and drawing inside a budget."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
