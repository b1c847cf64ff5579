"""Layers that price and build themselves: the base, its registry, ten block families; importing this package fills the registry."""

from archsearch.blocks.base import (
    Block,
    Layer,
    LayerError,
    Role,
    Scalar,
    Scale,
    Shape,
    choice,
    field_scale,
    own_choices,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.crossformer import CrossScaleDownsample, CrossScaleStem, LongDistanceBlock, ShortDistanceBlock
from archsearch.blocks.davit import ChannelBlock, WindowBlock
from archsearch.blocks.files import BlockFile, files_of, load_blocks, read_block_file, register_file
from archsearch.blocks.head import PoolHead, TokenHead
from archsearch.blocks.lit import DeformableDownsample, GlobalAttentionBlock, MlpBlock
from archsearch.blocks.litv2 import HiLoBlock
from archsearch.blocks.msg import MessengerDownsample, MessengersLayer, MsgBlock
from archsearch.blocks.patch import PatchDownsample, PatchStem
from archsearch.blocks.positions import LearnedPositions, PatchesLayer
from archsearch.blocks.pvt import SpatialReductionBlock
from archsearch.blocks.registry import (
    BlocksWarning,
    installed_packages,
    layer_type,
    origin,
    register,
    registered_layers,
)
from archsearch.blocks.spectral import layer_capacities, module_spectral_capacity
from archsearch.blocks.swin import MergingDownsample, RegularWindowBlock, ShiftedWindowBlock
from archsearch.blocks.twins import GlobalBlock, LocalBlock, PegLayer
from archsearch.blocks.van import LargeKernel, OverlappingDownsample, OverlappingStem, StageNorm

__all__ = [
    "Block",
    "BlockFile",
    "BlocksWarning",
    "ChannelBlock",
    "Cost",
    "CrossScaleDownsample",
    "CrossScaleStem",
    "DeformableDownsample",
    "GlobalAttentionBlock",
    "GlobalBlock",
    "HiLoBlock",
    "LargeKernel",
    "Layer",
    "LayerError",
    "LearnedPositions",
    "LocalBlock",
    "LongDistanceBlock",
    "MergingDownsample",
    "MessengerDownsample",
    "MessengersLayer",
    "MlpBlock",
    "MsgBlock",
    "OverlappingDownsample",
    "OverlappingStem",
    "PatchDownsample",
    "PatchStem",
    "PatchesLayer",
    "PegLayer",
    "PoolHead",
    "RegularWindowBlock",
    "Role",
    "Scalar",
    "Scale",
    "Shape",
    "ShiftedWindowBlock",
    "ShortDistanceBlock",
    "SpatialReductionBlock",
    "StageNorm",
    "TokenHead",
    "WindowBlock",
    "choice",
    "field_scale",
    "files_of",
    "installed_packages",
    "layer_capacities",
    "layer_type",
    "load_blocks",
    "module_spectral_capacity",
    "origin",
    "own_choices",
    "read_block_file",
    "register",
    "register_file",
    "registered_layers",
]
