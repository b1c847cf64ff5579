"""Proxy tasks: profiles, the small copies that are trained, their training and its score, training-free scores, and audits of how well they order."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
