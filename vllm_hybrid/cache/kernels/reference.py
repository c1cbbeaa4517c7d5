"""What every kernel of this folder must compute, in plain torch and as plainly as possible.

Arithmetic is in `compute` (fp64 unless asked otherwise), on whatever device the tensors are: the tests under Triton's
interpreter and the checks on a GPU use the same functions. Signatures are the kernels' own, less what only tunes.
"""

from __future__ import annotations

import torch

from vllm_hybrid.cache.kernels.fp8 import FP8_MAX
from vllm_hybrid.cache.kernels.view import FP8, HalfBlockView


def hidden_write(x: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    """Store row t of x [>= T, H] at slot t [T], where that slot is of the half form."""
    _write(x[: len(slots)], view, slots)


def fp8_write(
    key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, slots: torch.Tensor, k_scale: float, v_scale: float
) -> None:
    """Store K and V [>= T, nkv, hd] of token t at slot t [T], where that slot is of the half form."""
    both = torch.cat([key.float() / k_scale, value.float() / v_scale], -1)[: len(slots)]
    _write(both.clamp(-FP8_MAX.value, FP8_MAX.value).to(FP8).flatten(1), view, slots)


def _write(rows: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    first = view.num_blocks * view.block_tokens
    chosen = slots >= first
    half, position = (slots[chosen] - first) // view.block_tokens, slots[chosen] % view.block_tokens
    view.blocks()[half // view.ratio, half % view.ratio, position] = rows[chosen].to(view.data.dtype)


def row_tokens(view: HalfBlockView, block_ids: torch.Tensor, length: int) -> torch.Tensor:
    """What the cache holds for one row of the half form: [length, w] from its block ids [W]."""
    half = block_ids[: -(-length // view.block_tokens)].long() - view.num_blocks
    return view.blocks()[half // view.ratio, half % view.ratio].reshape(-1, view.width)[:length]


def gather(view: HalfBlockView, block_table: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Rows of the half form, one after the other: [starts[B], w]."""
    lengths = starts.diff().tolist()
    return torch.cat([row_tokens(view, ids, length) for ids, length in zip(block_table, lengths, strict=True)])


def fp8_read(
    view: HalfBlockView,
    block_table: torch.Tensor,
    starts: torch.Tensor,
    head_size: int,
    dtype: torch.dtype,
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """K and V of rows of the half form, one after the other: [starts[B], nkv, 2*hd]."""
    both = gather(view, block_table, starts).float().unflatten(1, (-1, 2, head_size))
    scales = torch.tensor([k_scale, v_scale], device=both.device)
    return (both * scales[:, None]).flatten(2).to(dtype)


def hidden_decode(
    query: torch.Tensor,
    view: HalfBlockView,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    slopes: torch.Tensor | None = None,
    compute: torch.dtype = torch.float64,
) -> torch.Tensor:
    """z [B, nh, H] in `compute` from absorbed queries [B, nh, H]; 0 in rows of the other form."""
    z = torch.zeros(query.shape, dtype=compute, device=query.device)
    for row, length in enumerate(seq_lens.tolist()):
        if block_table[row, 0] < view.num_blocks or length == 0:
            continue
        x = row_tokens(view, block_table[row], length).to(compute)
        scores = query[row].to(compute) @ x.T * scale
        if slopes is not None:
            distance = torch.arange(length, device=query.device) - (length - 1)
            scores += slopes.to(compute)[:, None] * distance
        z[row] = torch.softmax(scores, -1) @ x
    return z


def kv_decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    slopes: torch.Tensor | None = None,
    compute: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Attention of one token over K and V as stock has them: [nh, hd] from query [nh, hd] and K, V [S, nkv, hd]."""
    groups = query.shape[0] // key.shape[1]
    key, value = (kv.to(compute).repeat_interleave(groups, 1) for kv in (key, value))
    scores = torch.einsum("hd,shd->hs", query.to(compute), key) * scale
    if slopes is not None:
        distance = torch.arange(len(key), device=query.device) - (len(key) - 1)
        scores += slopes.to(compute)[:, None] * distance
    return torch.einsum("hs,shd->hd", torch.softmax(scores, -1), value)
