"""The files of a run: the schema of trials.parquet, Pareto fronts, the manifest; writing and reading them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
