"""Hardware-aware architecture search over hybrid vision backbones.

The public names stand in `__init__.pyi`. They are imported when they are first used, so that `import archsearch` costs nothing and
`archsearch --help` never loads torch; the rooms' own `__init__` modules do the same.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
