"""Importing this module registers archsearch's models with timm: `archsearch_hybrid`, and every paper's as `archsearch_NAME`.

`timm.create_model("local-dir:FOLDER", pretrained=True)` then loads what `archsearch export --format timm` wrote.
"""

from archsearch.models import register_timm_models

register_timm_models()
