"""The block families; importing this package fills the registry."""

from archsearch.blocks.crossformer import CrossScaleDownsample, CrossScaleStem, LongDistanceBlock, ShortDistanceBlock
from archsearch.blocks.davit import ChannelBlock, WindowBlock
from archsearch.blocks.head import PoolHead
from archsearch.blocks.lit import DeformableDownsample, GlobalAttentionBlock, MlpBlock
from archsearch.blocks.litv2 import HiLoBlock
from archsearch.blocks.patch import PatchDownsample, PatchStem
from archsearch.blocks.twins import GlobalBlock, LocalBlock, PegLayer
from archsearch.blocks.van import LargeKernel, OverlappingDownsample, OverlappingStem, StageNorm

__all__ = [
    "ChannelBlock",
    "CrossScaleDownsample",
    "CrossScaleStem",
    "DeformableDownsample",
    "GlobalAttentionBlock",
    "GlobalBlock",
    "HiLoBlock",
    "LargeKernel",
    "LocalBlock",
    "LongDistanceBlock",
    "MlpBlock",
    "OverlappingDownsample",
    "OverlappingStem",
    "PatchDownsample",
    "PatchStem",
    "PegLayer",
    "PoolHead",
    "ShortDistanceBlock",
    "StageNorm",
    "WindowBlock",
]
