"""Maps that windows do not tile: Swin's and MSG-Transformer's layers against slow references that pad, mask and crop position by position."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import MergingDownsample, MsgBlock, RegularWindowBlock, Shape, ShiftedWindowBlock
from archsearch.blocks.msg import MessengerDownsample, MessengersLayer
from archsearch.blocks.swin import ShiftedWindowAttention

WIDTH, HEADS, HEAD_DIM = 32, 2, 16
MAPS = ((7, 9), (12, 13), (5, 23), (8, 8), (9, 4))


def filled(module: nn.Module) -> Any:
    """Random weights that all matter, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    return module


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attend(block: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of (N, C) tokens among themselves with a bias (heads, N, N), by the block's weights."""
    attn = block.attn
    query, key, value = (part.view(len(tokens), HEADS, HEAD_DIM) for part in attn.qkv(tokens).chunk(3, dim=-1))
    out = [
        ((query[:, head] / math.sqrt(HEAD_DIM)) @ key[:, head].t() + bias[head]).softmax(-1) @ value[:, head]
        for head in range(HEADS)
    ]
    result: Tensor = attn.proj(torch.cat(out, dim=-1))
    return result


def table_bias(block: Any, side: int, places: list[tuple[int, int]]) -> Tensor:
    """(heads, N, N) from the table, pair by pair, for places inside a window."""
    table = block.attn.relative_position_bias_table
    bias = torch.zeros(HEADS, len(places), len(places), dtype=torch.float64)
    for i, (yi, xi) in enumerate(places):
        for j, (yj, xj) in enumerate(places):
            bias[:, i, j] = table[(yi - yj + side - 1) * (2 * side - 1) + xi - xj + side - 1]
    return bias


# --- Swin -----------------------------------------------------------------------------------------------------------


def swin_reference(block: Any, x: Tensor, window: int, shift: int) -> Tensor:
    """Swin's block as its detection code has it, on one (C, H, W) map, window by window with regions by their definition."""
    _, height, width = x.shape
    rows, columns = -(-height // window) * window, -(-width // window) * window
    tokens = x.permute(1, 2, 0)
    padded = torch.zeros(rows, columns, WIDTH, dtype=torch.float64)
    padded[:height, :width] = block.norm1(tokens)
    mixed = torch.zeros_like(padded)
    places = [(y, x) for y in range(window) for x in range(window)]

    def region(place: int, side: int) -> int:
        return 0 if place < side - window else 1 if place < side - shift else 2

    for top in range(0, rows, window):
        for left in range(0, columns, window):
            shifted = [(top + y, left + x) for y, x in places]
            source = [((y + shift) % rows, (x + shift) % columns) for y, x in shifted]
            bias = table_bias(block, window, places)
            if shift:
                regions = [(region(y, rows), region(x, columns)) for y, x in shifted]
                bias += torch.tensor([[0.0 if one == other else -100.0 for other in regions] for one in regions])
            out = attend(block, torch.stack([padded[place] for place in source]), bias)
            for place, value in zip(source, out, strict=True):
                mixed[place] = value
    tokens = tokens + mixed[:height, :width]
    tokens = tokens + block.mlp(block.norm2(tokens))
    result: Tensor = tokens.permute(2, 0, 1)
    return result


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("is_shifted", [False, True])
def test_swins_windows_on_any_map_are_those_of_a_padded_masked_map(is_shifted: bool, size: tuple[int, int]) -> None:
    kind = ShiftedWindowBlock if is_shifted else RegularWindowBlock
    layer = kind(window=4, head_dim=HEAD_DIM, mlp_ratio=2.0)
    shape = Shape(WIDTH, *size)
    layer.check_at(shape)
    block, x = filled(layer.build(shape)), image(2, WIDTH, *size)
    side = min(4, *size)
    with torch.no_grad():
        out = block(x.contiguous(memory_format=torch.channels_last))
        for given, got in zip(x, out, strict=True):
            expected = swin_reference(block, given, side, 2 if is_shifted and min(size) > 4 else 0)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("size", MAPS)
def test_swins_attention_is_bit_equal_to_itself_on_the_map_padded_by_hand(
    size: tuple[int, int], is_shifted: bool
) -> None:
    """The mask of the padded map, the padded tokens' part in it, and the crop: nothing else happens."""
    height, width = size
    side = min(4, *size)
    bottom, right = -height % side, -width % side
    attention = filled(ShiftedWindowAttention(Shape(WIDTH, *size), HEAD_DIM, 4, is_shifted=is_shifted)).float()
    whole = ShiftedWindowAttention(
        Shape(WIDTH, height + bottom, width + right), HEAD_DIM, side, is_shifted=is_shifted and min(size) > 4
    )
    whole.load_state_dict(attention.state_dict())
    tokens = image(2, *size, WIDTH).float()
    with torch.no_grad():
        padded = whole.eval()(functional.pad(tokens, (0, 0, 0, right, 0, bottom)))
        assert torch.equal(attention(tokens), padded[:, :height, :width])


@pytest.mark.parametrize("size", [(5, 7), (4, 9), (1, 1), (6, 6)])
def test_merging_pads_odd_sides_with_zeros(size: tuple[int, int]) -> None:
    layer, shape = MergingDownsample(width=48), Shape(8, *size)
    merging, x = filled(layer.build(shape)), image(1, 8, *size)
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    assert layer.out(shape) == Shape(48, rows, columns)
    with torch.no_grad():
        out = merging(x)
        for row in range(rows):
            for column in range(columns):
                cell = torch.zeros(4, 8, dtype=torch.float64)
                for index, (y, z) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
                    if 2 * row + y < size[0] and 2 * column + z < size[1]:
                        cell[index] = x[0, :, 2 * row + y, 2 * column + z]
                expected = merging.reduction(merging.norm(cell.flatten()))
                torch.testing.assert_close(out[0, :, row, column], expected, rtol=1e-12, atol=1e-12)


# --- MSG-Transformer ------------------------------------------------------------------------------------------------

# Messengers by window, and the map (H, W, C), which has no padding.
Stream = tuple[dict[tuple[int, int], Tensor], Tensor]


def born(module: Any, x: Tensor, window: int, shuffle: int) -> Stream:
    """Each window's messenger by its place in its region."""
    token = module.token
    grid = [(row, column) for row in range(-(-x.shape[1] // window)) for column in range(-(-x.shape[2] // window))]
    return {(r, c): token[0, r % shuffle * shuffle + c % shuffle, 0] for r, c in grid}, x.permute(1, 2, 0)


def msg_reference(block: Any, stream: Stream, window: int, shuffle: int) -> Stream:
    """MSG-Transformer's block on windows that hold only the positions that exist."""
    messengers, tokens = stream
    height, width, _ = tokens.shape
    norm1, norm2, mlp = block.norm1, block.norm2, block.mlp
    scalars = block.attn.rel_pos_msg
    after, mixed = dict(messengers), tokens.clone()
    for (row, column), messenger in messengers.items():
        top, left = row * window, column * window
        there = [(y, x) for y in range(window) for x in range(window) if top + y < height and left + x < width]
        own = torch.stack([messenger, *(tokens[top + y, left + x] for y, x in there)])
        bias = torch.zeros(HEADS, len(own), len(own), dtype=torch.float64)
        bias[:, 1:, 1:] = table_bias(block, window, there)
        bias[:, 1:, :1], bias[:, :1] = scalars[:, 0], scalars[:, 1]
        out = own + attend(block, norm1(own), bias)
        after[row, column] = out[0]
        for (y, x), value in zip(there, out[1:], strict=True):
            mixed[top + y, left + x] = value
    exchanged = {}
    for (row, column), messenger in after.items():
        chunks = list(messenger.view(shuffle**2, -1))
        for index in range(shuffle**2):
            other = (row - row % shuffle + index // shuffle, column - column % shuffle + index % shuffle)
            if other in after:
                chunks[index] = after[other].view(shuffle**2, -1)[row % shuffle * shuffle + column % shuffle]
        exchanged[row, column] = torch.cat(chunks)
    return {place: token + mlp(norm2(token)) for place, token in exchanged.items()}, mixed + mlp(norm2(mixed))


def merge_reference(merging: Any, stream: Stream) -> Stream:
    """The convolution over the map, and over the messengers as a map."""
    messengers, tokens = stream
    rows, columns = (1 + max(place[axis] for place in messengers) for axis in (0, 1))
    small = torch.stack([messengers[row, column] for row in range(rows) for column in range(columns)])

    def merge(x: Tensor) -> Tensor:
        out: Tensor = merging.norm(merging.reduction(x.permute(2, 0, 1)[None]))
        return out[0].permute(1, 2, 0)

    half = merge(small.view(rows, columns, -1))
    places = [(row, column) for row in range(half.shape[0]) for column in range(half.shape[1])]
    return {place: half[place] for place in places}, merge(tokens)


def assert_stream(got: Tensor, expected: Stream, window: int) -> None:
    """A module's (C, windows, 1 + n) output has the reference's messengers and positions; what fills up windows may be anything."""
    messengers, tokens = expected
    for index, ((row, column), messenger) in enumerate(messengers.items()):
        torch.testing.assert_close(got[:, index, 0], messenger, rtol=1e-11, atol=1e-11)
        inside = got[:, index, 1:].view(-1, window, window).permute(1, 2, 0)
        own = tokens[row * window : (row + 1) * window, column * window : (column + 1) * window]
        torch.testing.assert_close(inside[: own.shape[0], : own.shape[1]], own, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(7, 9), (5, 17), (2, 3), (12, 12), (16, 8)])
def test_messengers_on_any_map_never_see_padding(size: tuple[int, int]) -> None:
    """Two blocks, the merging and a block behind it, with regions of 2x2 windows that the map's windows do not fill."""
    window, shuffle = 4, 2
    shape = Shape(WIDTH, *size)
    opening = MessengersLayer(window=window, shuffle=shuffle)
    layer = MsgBlock(window=window, shuffle=shuffle, head_dim=HEAD_DIM, mlp_ratio=2.0)
    downsample = MessengerDownsample(width=WIDTH)
    x = image(2, WIDTH, *size)
    layers = [opening, layer, layer, downsample, layer]
    modules, shapes = [], []
    for item in layers:
        item.check_at(shape)
        modules.append(filled(item.build(shape)))
        shape = item.out(shape)
        shapes.append(shape)
    streams = [born(modules[0], given, window, shuffle) for given in x]
    out = x
    with torch.no_grad():
        for item, module, after in zip(layers, modules, shapes, strict=True):
            out = module(out)
            assert out.shape[1:] == after.tensor
            if item is layer:
                streams = [msg_reference(module, stream, window, shuffle) for stream in streams]
            elif item is downsample:
                streams = [merge_reference(module, stream) for stream in streams]
            for got, stream in zip(out, streams, strict=True):
                assert_stream(got, stream, window)


def test_regions_that_are_cut_off_are_dropped_as_wholes() -> None:
    """Stochastic depth is by region also at the edge: the windows of a region keep a branch or lose it together."""
    shape = MessengersLayer(window=2, shuffle=2).out(Shape(WIDTH, 5, 7))
    block: Any = MsgBlock(window=2, shuffle=2, head_dim=HEAD_DIM).build(shape, drop_path=0.5).train()
    torch.manual_seed(0)
    scale = block._drop(torch.ones(64, shape.tokens, 1, 1)).view(64, 3, 4)
    assert {0.0, 2.0} == set(scale.flatten().tolist())
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(2, 3), slice(2, 4))):
        region = scale[:, rows, columns].flatten(1)
        assert torch.equal(region.amin(1), region.amax(1))
    assert not torch.equal(scale[:, 0, 0], scale[:, 2, 2])
