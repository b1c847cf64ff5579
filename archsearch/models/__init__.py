"""Models: an architecture built as a torch module, its counts, feature maps, official checkpoints, and their validation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
