"""The official state dicts of all 39 variants, from the specifications' tables: key -> (shape, dtype, parameter or buffer).

Written independently of archsearch's mapping, as its oracle; itself compared with eleven official models (data/keys.json).
"""

from collections.abc import Callable, Sequence

Entry = tuple[tuple[int, ...], str, str]
Entries = dict[str, Entry]
Depths = tuple[int, int, int, int]


def _parameter(*shape: int) -> Entry:
    return shape, "float32", "parameter"


def _buffer(*shape: int, dtype: str = "float32") -> Entry:
    return shape, dtype, "buffer"


def _weight(key: str, *shape: int) -> Entries:
    """A weight and its bias: a Linear layer, a convolution, or a norm."""
    return {f"{key}.weight": _parameter(*shape), f"{key}.bias": _parameter(shape[0])}


def _batch_norm(key: str, width: int) -> Entries:
    return {
        **_weight(key, width),
        f"{key}.running_mean": _buffer(width),
        f"{key}.running_var": _buffer(width),
        f"{key}.num_batches_tracked": _buffer(dtype="int64"),
    }


def _mlp(key: str, width: int, ratio: int) -> Entries:
    return {**_weight(f"{key}.fc1", ratio * width, width), **_weight(f"{key}.fc2", width, ratio * width)}


def _attention(key: str, width: int) -> Entries:
    return {**_weight(f"{key}.qkv", 3 * width, width), **_weight(f"{key}.proj", width, width)}


def _norms(key: str, width: int) -> Entries:
    return {**_weight(f"{key}.norm1", width), **_weight(f"{key}.norm2", width)}


def _tail(width: int, norm: str = "norm") -> Entries:
    return {**_weight(norm, width), **_weight("head", 1000, width)}


def _patch(key: str, width: int, inputs: int, kernel: int, normed: int | None = None) -> Entries:
    return {**_weight(f"{key}.proj", width, inputs, kernel, kernel), **_weight(f"{key}.norm", normed or width)}


def _doubled(first: int) -> list[int]:
    return [first, 2 * first, 4 * first, 8 * first]


def _davit(first: int, pairs: Depths) -> Entries:
    dims = _doubled(first)
    keys = {**_patch("patch_embeds.0", first, 3, 7), **_tail(dims[3], "norms")}
    for stage, width in enumerate(dims):
        if stage:
            keys |= _patch(f"patch_embeds.{stage}", width, dims[stage - 1], 2, normed=dims[stage - 1])
        for pair in range(pairs[stage]):
            for member in (0, 1):
                block = f"main_blocks.{stage}.{pair}.{member}"
                for cpe in (0, 1):
                    keys |= _weight(f"{block}.cpe.{cpe}.proj", width, 1, 3, 3)
                keys |= {**_norms(block, width), **_attention(f"{block}.attn", width), **_mlp(f"{block}.mlp", width, 4)}
    return keys


def _crossformer(first: int, depths: Depths) -> Entries:
    dims = _doubled(first)
    keys = {**_weight("patch_embed.norm", first), **_tail(dims[3])}
    for kernel, share in enumerate((2, 4, 8, 8)):
        keys |= _weight(f"patch_embed.projs.{kernel}", first // share, 3, 4 << kernel, 4 << kernel)
    for stage, width in enumerate(dims):
        for index in range(depths[stage]):
            block = f"layers.{stage}.blocks.{index}"
            keys |= {**_norms(block, width), **_attention(f"{block}.attn", width), **_mlp(f"{block}.mlp", width, 4)}
            keys |= _position_bias(f"{block}.attn.pos", width // 16, width // 32)
        if stage < 3:
            down = f"layers.{stage}.downsample"
            keys |= _weight(f"{down}.reductions.0", width, width, 2, 2)
            keys |= _weight(f"{down}.reductions.1", width, width, 4, 4)
            keys |= _weight(f"{down}.norm", width)
    return keys


def _position_bias(key: str, hidden: int, heads: int) -> Entries:
    keys = _weight(f"{key}.pos_proj", hidden, 2)
    for layer, outputs in ((1, hidden), (2, hidden), (3, heads)):
        keys |= {**_weight(f"{key}.pos{layer}.0", hidden), **_weight(f"{key}.pos{layer}.2", outputs, hidden)}
    return keys


def _van(dims: Depths, depths: Depths) -> Entries:
    keys = _weight("head", 1000, dims[3])
    for stage, width in enumerate(dims):
        embed, kernel = f"patch_embed{stage + 1}", 3 if stage else 7
        keys |= _weight(f"{embed}.proj", width, dims[stage - 1] if stage else 3, kernel, kernel)
        keys |= {**_batch_norm(f"{embed}.norm", width), **_weight(f"norm{stage + 1}", width)}
        for index in range(depths[stage]):
            keys |= _van_block(f"block{stage + 1}.{index}", width, (8, 8, 4, 4)[stage])
    return keys


def _van_block(block: str, width: int, ratio: int) -> Entries:
    gate = f"{block}.attn.spatial_gating_unit"
    return {
        **_batch_norm(f"{block}.norm1", width),
        **_batch_norm(f"{block}.norm2", width),
        f"{block}.layer_scale_1": _parameter(width),
        f"{block}.layer_scale_2": _parameter(width),
        **_weight(f"{block}.attn.proj_1", width, width, 1, 1),
        **_weight(f"{block}.attn.proj_2", width, width, 1, 1),
        **_weight(f"{gate}.conv0", width, 1, 5, 5),
        **_weight(f"{gate}.conv_spatial", width, 1, 7, 7),
        **_weight(f"{gate}.conv1", width, width, 1, 1),
        **_weight(f"{block}.mlp.fc1", ratio * width, width, 1, 1),
        **_weight(f"{block}.mlp.dwconv.dwconv", ratio * width, 1, 3, 3),
        **_weight(f"{block}.mlp.fc2", width, ratio * width, 1, 1),
    }


def _reduced_attention(key: str, width: int, reduction: int) -> Entries:
    keys = {
        **_weight(f"{key}.q", width, width),
        **_weight(f"{key}.kv", 2 * width, width),
        **_weight(f"{key}.proj", width, width),
    }
    if reduction > 1:
        keys |= {**_weight(f"{key}.sr", width, width, reduction, reduction), **_weight(f"{key}.norm", width)}
    return keys


def _twins(dims: Sequence[int], depths: Depths, *, alternate: bool) -> Entries:
    keys = _tail(dims[3])
    for stage, width in enumerate(dims):
        inputs, patch = (dims[stage - 1], 2) if stage else (3, 4)
        keys |= _patch(f"patch_embeds.{stage}", width, inputs, patch)
        keys |= _weight(f"pos_block.{stage}.proj.0", width, 1, 3, 3)
        for index in range(depths[stage]):
            block = f"blocks.{stage}.{index}"
            keys |= {**_norms(block, width), **_mlp(f"{block}.mlp", width, 4 if alternate else (8, 8, 4, 4)[stage])}
            is_local = alternate and index % 2 == 0
            keys |= (
                _attention(f"{block}.attn", width)
                if is_local
                else _reduced_attention(f"{block}.attn", width, (8, 4, 2, 1)[stage])
            )
    return keys


def _svt(first: int, depths: Depths) -> Entries:
    return _twins(_doubled(first), depths, alternate=True)


def _pcpvt(depths: Depths) -> Entries:
    return _twins((64, 128, 320, 512), depths, alternate=False)


def _learned_positions(dims: Sequence[int]) -> Entries:
    tables = {
        f"pos_embed{stage + 1}": _parameter(1, (3136, 784, 196, 50)[stage], width) for stage, width in enumerate(dims)
    }
    return {**tables, "cls_token": _parameter(1, 1, dims[3])}


def _pvt(depths: Depths) -> Entries:
    dims = (64, 128, 320, 512)
    keys = {**_tail(dims[3]), **_learned_positions(dims)}
    for stage, width in enumerate(dims):
        inputs, patch = (dims[stage - 1], 2) if stage else (3, 4)
        keys |= _patch(f"patch_embed{stage + 1}", width, inputs, patch)
        for index in range(depths[stage]):
            block = f"block{stage + 1}.{index}"
            keys |= {**_norms(block, width), **_mlp(f"{block}.mlp", width, (8, 8, 4, 4)[stage])}
            keys |= _reduced_attention(f"{block}.attn", width, (8, 4, 2, 1)[stage])
    return keys


def _deformable(key: str, width: int, inputs: int) -> Entries:
    return {
        **_weight(f"{key}.dconv", width, inputs, 2, 2),
        **_weight(f"{key}.dconv.conv_offset", 8, inputs, 2, 2),
        **_batch_norm(f"{key}.norm_layer", width),
    }


def _lit_ti() -> Entries:
    dims, depths = (64, 128, 320, 512), (3, 4, 6, 3)
    keys = {**_patch("patch_embed1", dims[0], 3, 4), **_tail(dims[3]), **_learned_positions(dims)}
    for stage, width in enumerate(dims):
        if stage:
            keys |= _deformable(f"patch_embed{stage + 1}", width, dims[stage - 1])
        for index in range(depths[stage]):
            block = f"block{stage + 1}.{index}"
            keys |= {**_weight(f"{block}.norm2", width), **_mlp(f"{block}.mlp", width, (8, 8, 4, 4)[stage])}
            if stage >= 2:
                keys |= {**_weight(f"{block}.norm1", width), **_attention(f"{block}.attn", width)}
    return keys


def _lit(first: int, depths: Depths, attention: Callable[[str, int, int], Entries], *, conv: bool = False) -> Entries:
    dims = _doubled(first)
    keys = {**_patch("patch_embed", first, 3, 4), **_tail(dims[3])}
    for stage, width in enumerate(dims):
        for index in range(depths[stage]):
            block = f"layers.{stage}.blocks.{index}"
            keys |= {**_weight(f"{block}.norm2", width), **_mlp(f"{block}.mlp", width, 4)}
            if conv:
                keys |= _weight(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            if stage >= 2:
                keys |= {**_weight(f"{block}.norm1", width), **attention(f"{block}.attn", width, stage)}
        if stage < 3:
            keys |= _deformable(f"layers.{stage}.downsample", 2 * width, width)
    return keys


def _biased(key: str, width: int, side: int) -> Entries:
    return {
        **_attention(key, width),
        f"{key}.relative_position_bias_table": _parameter((2 * side - 1) ** 2, width // 32),
        f"{key}.relative_position_index": _buffer(side**2, side**2, dtype="int64"),
    }


def _whole_map(key: str, width: int, stage: int) -> Entries:
    return _biased(key, width, {2: 14, 3: 7}[stage])


def _hilo(key: str, width: int, stage: int) -> Entries:
    heads = width // 32
    low = 32 * (heads if stage == 3 else int(0.9 * heads))
    high = width - low
    keys = {
        **_weight(f"{key}.l_q", low, width),
        **_weight(f"{key}.l_kv", 2 * low, width),
        **_weight(f"{key}.l_proj", low, low),
    }
    if high:
        keys |= {**_weight(f"{key}.h_qkv", 3 * high, width), **_weight(f"{key}.h_proj", high, high)}
    return keys


def _msg(first: int, depths: Depths) -> Entries:
    dims = _doubled(first)
    keys = {**_patch("patch_embed", first, 3, 7), **_tail(dims[3]), "msg_tokens": _parameter(1, 16, 1, first)}
    for stage, width in enumerate(dims):
        for index in range(depths[stage]):
            block = f"layers.{stage}.blocks.{index}"
            keys |= {**_norms(block, width), **_biased(f"{block}.attn", width, 7), **_mlp(f"{block}.mlp", width, 4)}
            keys[f"{block}.attn.rel_pos_msg"] = _parameter(width // 32, 2, 1, 1)
        if stage < 3:
            keys |= _weight(f"layers.{stage}.downsample.reduction", 2 * width, width, 3, 3)
            keys |= _weight(f"layers.{stage}.downsample.norm", 2 * width)
    return keys


def _swin(first: int, depths: Depths, window: int = 7) -> Entries:
    dims = _doubled(first)
    keys = {**_patch("patch_embed", first, 3, 4), **_tail(dims[3])}
    for stage, width in enumerate(dims):
        for index in range(depths[stage]):
            block = f"layers.{stage}.blocks.{index}"
            keys |= {
                **_norms(block, width),
                **_biased(f"{block}.attn", width, window),
                **_mlp(f"{block}.mlp", width, 4),
            }
            if index % 2 and stage < 3:
                keys[f"{block}.attn_mask"] = _buffer((64, 16, 4)[stage], window**2, window**2)
        if stage < 3:
            keys[f"layers.{stage}.downsample.reduction.weight"] = _parameter(2 * width, 4 * width)
            keys |= _weight(f"layers.{stage}.downsample.norm", 4 * width)
    return keys


OFFICIAL: dict[str, Callable[[], Entries]] = {
    "davit_tiny": lambda: _davit(96, (1, 1, 3, 1)),
    "davit_small": lambda: _davit(96, (1, 1, 9, 1)),
    "davit_base": lambda: _davit(128, (1, 1, 9, 1)),
    "crossformer_tiny": lambda: _crossformer(64, (1, 1, 8, 6)),
    "crossformer_small": lambda: _crossformer(96, (2, 2, 6, 2)),
    "crossformer_base": lambda: _crossformer(96, (2, 2, 18, 2)),
    "crossformer_large": lambda: _crossformer(128, (2, 2, 18, 2)),
    "van_b0": lambda: _van((32, 64, 160, 256), (3, 3, 5, 2)),
    "van_b1": lambda: _van((64, 128, 320, 512), (2, 2, 4, 2)),
    "van_b2": lambda: _van((64, 128, 320, 512), (3, 3, 12, 3)),
    "van_b3": lambda: _van((64, 128, 320, 512), (3, 5, 27, 3)),
    "van_b4": lambda: _van((64, 128, 320, 512), (3, 6, 40, 3)),
    "van_b5": lambda: _van((96, 192, 480, 768), (3, 3, 24, 3)),
    "van_b6": lambda: _van((96, 192, 384, 768), (6, 6, 90, 6)),
    "twins_svt_small": lambda: _svt(64, (2, 2, 10, 4)),
    "twins_svt_base": lambda: _svt(96, (2, 2, 18, 2)),
    "twins_svt_large": lambda: _svt(128, (2, 2, 18, 2)),
    "twins_pcpvt_small": lambda: _pcpvt((3, 4, 6, 3)),
    "twins_pcpvt_base": lambda: _pcpvt((3, 4, 18, 3)),
    "twins_pcpvt_large": lambda: _pcpvt((3, 8, 27, 3)),
    "lit_ti": _lit_ti,
    "lit_s": lambda: _lit(96, (2, 2, 6, 2), _whole_map),
    "lit_m": lambda: _lit(96, (2, 2, 18, 2), _whole_map),
    "lit_b": lambda: _lit(128, (2, 2, 18, 2), _whole_map),
    "litv2_s": lambda: _lit(96, (2, 2, 6, 2), _hilo, conv=True),
    "litv2_m": lambda: _lit(96, (2, 2, 18, 2), _hilo, conv=True),
    "litv2_b": lambda: _lit(128, (2, 2, 18, 2), _hilo, conv=True),
    "litv2_b_384": lambda: _lit(128, (2, 2, 18, 2), _hilo, conv=True),
    "msg_transformer_tiny": lambda: _msg(64, (2, 4, 12, 4)),
    "msg_transformer_small": lambda: _msg(96, (2, 4, 12, 4)),
    "msg_transformer_base": lambda: _msg(96, (2, 4, 28, 4)),
    "pvt_tiny": lambda: _pvt((2, 2, 2, 2)),
    "pvt_small": lambda: _pvt((3, 4, 6, 3)),
    "pvt_medium": lambda: _pvt((3, 4, 18, 3)),
    "pvt_large": lambda: _pvt((3, 8, 27, 3)),
    "swin_tiny": lambda: _swin(96, (2, 2, 6, 2)),
    "swin_small": lambda: _swin(96, (2, 2, 18, 2)),
    "swin_base": lambda: _swin(128, (2, 2, 18, 2)),
    "swin_base_384": lambda: _swin(128, (2, 2, 18, 2), 12),
}
