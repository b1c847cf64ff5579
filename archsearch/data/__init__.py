"""Image data: sources in every form, preparing them once, and loading what candidates are trained and scored on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
