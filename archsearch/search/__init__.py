"""A run: its configuration, its study, the engine that evaluates candidates, and early stopping."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
