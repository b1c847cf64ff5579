"""Writes the table of timm's hierarchical mixers that `archsearch audit --timm` compares with.

    python -m tests.support.timm_table FOLDER

FOLDER has `accuracy.parquet` and `speed.parquet`: the numbers of timm's `results/` tables. A network is in the table if

- its family (its module in timm) is one of MIXERS: the family's paper presents a token mixer inside residual blocks. The older CNNs, whose
  stages fall in resolution too (ResNet, RegNet, EfficientNet, DenseNet and theirs), are left out;
- its maps fall in resolution: `feature_info` of the network on the meta device has three different reductions or more, each at least the one before.
  That leaves out plain and isotropic ViTs, and what has two resolutions;
- timm publishes its multiply-adds and a top-1, both at 224 px.
"""

import csv
import sys
import warnings
from pathlib import Path
from typing import cast

import pandas as pd
import timm
import torch

import archsearch

SIDE = 224
COLUMNS = ["architecture", "family", "mixer", "top1_in1k", "top1_any", "gmacs", "macts_m", "params_m"]
TABLE = Path(archsearch.__file__).parent / "proxy" / "shipped" / "timm" / "networks.csv"
# What mixes the tokens: attention in every stage, attention in some stages or beside convolutions, or neither (convolution, pooling, modulation).
MIXERS = {
    **dict.fromkeys("coat davit gcvit hiera levit mvitv2 nest pvt_v2 swin_transformer".split(), "attention"),
    **dict.fromkeys("swin_transformer_v2 swin_transformer_v2_cr twins".split(), "attention"),
    **dict.fromkeys("edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra".split(), "mixed"),
    **dict.fromkeys("fastvit maxxvit mobilevit nextvit shvit swiftformer tiny_vit visformer".split(), "mixed"),
    **dict.fromkeys("convnext fasternet focalnet inception_next mambaout repvit starnet".split(), "convolution"),
    "metaformer": "convolution",
}
ATTENDING = ("caformer",)  # of the family metaformer
SAME = ("levit_conv_",)  # the networks of `levit_` in another memory layout


def rows(folder: Path) -> list[dict[str, object]]:
    """One for each network, by name."""
    accuracy, speed = (pd.read_parquet(folder / f"{name}.parquet") for name in ("accuracy", "speed"))
    accuracy, speed = accuracy[accuracy.image_size == SIDE], speed[speed.image_size == SIDE].dropna(subset=["gmacs"])
    best = accuracy.groupby("architecture").top1.max()
    best_in1k = accuracy[accuracy.in1k_only].groupby("architecture").top1.max()
    costs = speed.groupby("architecture")[["gmacs", "macts_m", "params_m"]].median()
    found = []
    for name in sorted(set(best.index) & set(costs.index) & set(timm.list_models())):
        family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        if family in MIXERS and not name.startswith(SAME) and is_hierarchical(name):
            mixer = "mixed" if name.startswith(ATTENDING) else MIXERS[family]
            top1 = {"top1_in1k": best_in1k.get(name, ""), "top1_any": best[name]}
            found.append({"architecture": name, "family": family, "mixer": mixer, **top1, **costs.loc[name]})
    return found


def is_hierarchical(name: str) -> bool:
    """Whether the maps fall in resolution three times or more, and never rise."""
    with torch.device("meta"):
        network = timm.create_model(name)
    reductions = [entry["reduction"] for entry in cast("list[dict[str, int]]", network.feature_info)]
    return len(set(reductions)) >= 3 and reductions == sorted(reductions)


def write(folder: Path) -> None:
    """The table beside the shipped profiles."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(folder))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # timm's of its own deprecated names
    write(Path(sys.argv[1]))
