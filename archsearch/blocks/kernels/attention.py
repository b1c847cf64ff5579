"""Softmax attention: fused, by hand, or fused in parts."""

import torch
from torch import Tensor
from torch.nn import functional

from archsearch.blocks.kernels import cpu, cuda
from archsearch.blocks.kernels.modes import is_eager_cpu, is_exported


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, images: int | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; (B, heads, N, d), (B, heads, M, d) twice and a bias -> (B, heads, N, d).

    The bias has four dimensions and broadcasts to (B, heads, N, M); with `images` its first is that of one image's groups, B / images.
    Fused or by hand, whichever is faster (`cpu` and `cuda` have the times), in parts where B is more than fused attention takes.
    """
    if _is_unfused(query, key, bias):
        return attention_by_hand(query, key, value, bias)
    if bias is not None and images is not None:
        bias = bias.repeat(images, 1, 1, 1)
    if cuda.is_too_long(query):
        return attention_in_parts(query, key, value, bias)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _is_unfused(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    if is_eager_cpu(query):
        return cpu.is_unfused(query, key, bias)
    return not is_exported() and cuda.is_unfused(query, key, bias)


def attention_by_hand(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attention` as two products with softmax between them; the bias needs no copy for each image."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        by_image = scores.unflatten(0, (-1, bias.shape[0]))
        by_image += bias.to(scores.dtype)  # float32 under autocast: 256 x 3 x 49 x 49 takes 1.4 ms mixed, 0.5 cast
    out: Tensor = scores.softmax(-1) @ value
    return out


def attention_in_parts(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, most: int = cuda.MOST_ROWS
) -> Tensor:
    """`attention` fused, at most so many of the first dimension at once."""
    count = -(-query.shape[0] // most)
    biases = [bias] * count if bias is None or bias.shape[0] == 1 else bias.tensor_split(count)
    parts = zip(*(tensor.tensor_split(count) for tensor in (query, key, value)), biases, strict=True)
    # Joined as they lie in memory, positions before heads.
    outs = [functional.scaled_dot_product_attention(q, k, v, attn_mask=b).transpose(1, 2) for q, k, v, b in parts]
    return torch.cat(outs).transpose(1, 2)
