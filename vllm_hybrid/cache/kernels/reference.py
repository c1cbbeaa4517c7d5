"""What every kernel of this folder must compute, in plain torch and as plainly as possible.

Arithmetic is in `compute` (fp64 unless asked otherwise), on whatever device the tensors are: the tests under Triton's
interpreter and the checks on a GPU use the same functions. Signatures are the kernels' own, less what only tunes.
"""

from __future__ import annotations

import torch

from vllm_hybrid.cache.kernels.fp8 import SCALE_BITS, turned
from vllm_hybrid.cache.kernels.view import FP8, HalfBlockView


def hidden_write(x: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    """Store row t of x [>= T, H] at slot t [T], where that slot is of the half form."""
    _write(x[: len(slots)], view, slots)


def fp8_write(key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    """Store K and V [>= T, nkv, hd] of token t at slot t [T], where that slot is of the half form."""
    both = torch.stack([key, value], 2)[: len(slots)]
    _write(fp8_encoded(both).flatten(1), view, slots)


def fp8_encoded(x: torch.Tensor) -> torch.Tensor:
    """Vectors [..., hd] turned, as whole numbers with their scale inside: int8."""
    x = turned(x.float())
    bits = ((x.abs().amax(-1, keepdim=True) / 127).view(torch.int32) + 0x8000) >> 16
    number = (x / _scale(bits).clamp_min(1e-37)).clamp(-127, 127)
    first = number[..., : SCALE_BITS.value]
    bit = (bits >> torch.arange(SCALE_BITS.value, device=x.device)) & 1
    coded = ((first - bit) / 2).round() * 2 + bit
    coded = coded - 2 * (coded > 127) + 2 * (coded < -127)
    return torch.cat([coded, number[..., SCALE_BITS.value :].round()], -1).to(FP8)


def fp8_decoded(number: torch.Tensor) -> torch.Tensor:
    """What whole numbers [..., hd] stand for, still turned: fp32."""
    bit = number[..., : SCALE_BITS.value].int() & 1
    bits = (bit << torch.arange(SCALE_BITS.value, device=number.device)).sum(-1, keepdim=True, dtype=torch.int32)
    return number.float() * _scale(bits)


def _scale(bits: torch.Tensor) -> torch.Tensor:
    return (bits << 16).view(torch.float32)


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
    view: HalfBlockView, block_table: torch.Tensor, starts: torch.Tensor, head_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """K and V, still turned, of rows of the half form, one after the other: [starts[B], nkv, 2*hd]."""
    return fp8_decoded(gather(view, block_table, starts).unflatten(1, (-1, 2, head_size))).flatten(2).to(dtype)


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
