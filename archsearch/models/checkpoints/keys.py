"""The papers' own state-dict keys for our modules, as data: one table for each key pattern, in which the longest matching place counts.

No other module knows a paper's names of its modules. `[paper].keys` in a paper's file names its pattern.
Sources: the state dicts of the papers' repositories; `tests/support/official_keys.py` writes them down independently.
"""

import re

# Left: a place in our networks, `*` for the numbers of stage and block, which count from 0. Right: the same place in the paper's code;
# {stage} counts from 1, {index} from 0, {before} is the stage before a merging, from 0;
# {block} counts from 0, {pair} and {member} are block // 2 and block % 2. The rest of a key is the same on both sides.
_HEAD = {"norm": "norm", "head.fc": "head"}
_LAYERS = {
    **_HEAD,
    "stem": "patch_embed",
    "stages.*.downsample": "layers.{before}.downsample",
    "stages.*.blocks.*": "layers.{index}.blocks.{block}",
}
_NUMBERED = {
    **_HEAD,
    "stem": "patch_embed1",
    "stages.*.downsample": "patch_embed{stage}",
    "stages.*.blocks.*": "block{stage}.{block}",
}
_LEARNED_POSITIONS = {"stages.*.positions.table": "pos_embed{stage}", "stages.*.positions.token": "cls_token"}
_PATTERNS: dict[str, dict[str, str]] = {
    "crossformer": _LAYERS,
    "davit": {
        "head.norm": "norms",
        "head.fc": "head",
        "stem": "patch_embeds.0",
        "stages.*.downsample": "patch_embeds.{index}",
        "stages.*.blocks.*": "main_blocks.{index}.{pair}.{member}",
        "stages.*.blocks.*.cpe1": "main_blocks.{index}.{pair}.{member}.cpe.0.proj",
        "stages.*.blocks.*.cpe2": "main_blocks.{index}.{pair}.{member}.cpe.1.proj",
    },
    "lit": _LAYERS,
    "lit_ti": {**_NUMBERED, **_LEARNED_POSITIONS},
    "litv2": {**_LAYERS, "stages.*.blocks.*.mlp.dwconv": "layers.{index}.blocks.{block}.mlp.dwconv.dwconv"},
    "msg_transformer": {**_LAYERS, "stages.*.messengers.token": "msg_tokens"},
    "pvt": {**_NUMBERED, **_LEARNED_POSITIONS},
    "swin": {**_LAYERS, "stages.*.blocks.*.attn.attn_mask": "layers.{index}.blocks.{block}.attn_mask"},
    "twins": {
        **_HEAD,
        "stem": "patch_embeds.0",
        "stages.*.downsample": "patch_embeds.{index}",
        "stages.*.blocks.*": "blocks.{index}.{block}",
        "stages.*.peg.proj": "pos_block.{index}.proj.0",
    },
    "van": {
        **_NUMBERED,
        "norm": "norm4",
        "stages.*.norm": "norm{stage}",
        "stages.*.blocks.*.mlp.dwconv": "block{stage}.{block}.mlp.dwconv.dwconv",
    },
}
_POINTWISE_CONVS = {"van"}  # patterns in which the Linear layers inside blocks are 1x1 convolutions in the paper's code
_NUMBERS = re.compile(r"^stages\.(\d+)(?:\.blocks\.(\d+))?")


def official_key(pattern: str, key: str) -> str:
    """The official key of one of ours (`stages.1.blocks.0.attn.qkv.weight`) under a key pattern (`swin`)."""
    places, match = _PATTERNS[pattern], _NUMBERS.match(key)
    index, block = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    starred = _NUMBERS.sub("stages.*.blocks.*" if match and match[2] else "stages.*", key)
    place = starred
    while place and place not in places:
        place = place.rpartition(".")[0]
    named = places[place].format(
        stage=index + 1, index=index, before=index - 1, block=block, pair=block // 2, member=block % 2
    )
    return named + starred[len(place) :]


def official_shape(pattern: str, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The official shape of one of our tensors: our Linear layers that are 1x1 convolutions there have two more dimensions."""
    pointwise = pattern in _POINTWISE_CONVS and ".blocks." in key and len(shape) == 2
    return (*shape, 1, 1) if pointwise else shape
