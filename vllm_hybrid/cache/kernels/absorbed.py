"""Decode attention straight from hidden states: K and V are never formed.

Where K and V are affine in x, scores_h = (Wk_h^T q_h) . x_s + const and out_h = Wv_h (sum_s p_s x_s) + bv_h; the
constant cancels in the softmax. So the query is multiplied by Wk once, attention runs in the space of x with one "KV
head" of width H, and its result z is multiplied by Wv once (both are plain batched products, `absorb_query`,
`project_output`).

The accumulators of all heads over all of H (40 x 5120 floats) fit no multiprocessor. Hence three kernels (flash
decoding with the value product cut along H): *scores* leaves p = exp(s - max of its tile) and the tile's max and sum,
*values* rescales tiles online while it sums p * x for one slice of H, *combine* merges parts of the context where it
was split. x is read twice. Tokens (or columns of x) are the M side of every product and heads the N side, so 32 heads
are not padded to the 64 rows that the matrix units of Hopper want.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_hybrid.cache.kernels.view import HalfBlockView, half_block_offset, interpreted

LOG2_E = 1.4426950408889634
TILE_TOKENS = 64
FEW_ROWS_PARTS = 4


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How the work is cut; changes speed, never the result beyond rounding."""

    tokens: int = TILE_TOKENS
    """Cached tokens per tile: the softmax is first taken within one."""

    depth: int = 64
    """Columns of x that the score product sums at a time."""

    columns: int = 128
    """Columns of x that one program of the value product owns."""

    score_parts: int = 4
    """Programs that share a row's tiles in the score product; may change from step to step."""

    value_parts: int = 1
    """Programs that share a row's tiles in the value product; above 1, `combine` merges them. Each value is compiled
    for itself."""

    warps: int = 4
    score_stages: int = 3
    value_stages: int = 5


def choose_tiles(rows: int, max_seq_len: int, multiprocessors: int) -> DecodeTiles:
    """Enough programs to fill the device; the context of the value product is split for few rows only, since its
    partial sums are fp32 over all of H: at 32 rows they would be two thirds of x itself at 1000 tokens."""
    tiles = max(1, triton.cdiv(max_seq_len, TILE_TOKENS))
    wanted = triton.cdiv(2 * multiprocessors, max(1, rows))
    value_parts = FEW_ROWS_PARTS if rows <= 4 and tiles >= FEW_ROWS_PARTS else 1
    return DecodeTiles(score_parts=min(tiles, wanted), value_parts=value_parts)


@triton.jit
def _row_tiles(seq_lens, row, part, parts, TOKENS: tl.constexpr):
    """Cached tokens of a row, and the tiles [begin, end) of it that are this part's."""
    length = tl.load(seq_lens + row)
    tiles = tl.cdiv(length, TOKENS)
    share = tl.cdiv(tiles, parts)
    begin = part * share
    return length, begin, tl.minimum(begin + share, tiles)


@triton.jit
def _token_offsets(
    table_row, position, inside, num_blocks, block_stride, BS: tl.constexpr, H: tl.constexpr, R: tl.constexpr
):
    """Offset of x of each position of a row; positions outside get that of a block that exists."""
    block_id = tl.load(table_row + position // BS, mask=inside, other=num_blocks)
    return half_block_offset(block_id, num_blocks, block_stride, BS, H, R) + (position % BS) * H


@triton.jit(do_not_specialize=["parts"])
def _scores_kernel(
    query, query_row, query_head, cache, table, table_stride, seq_lens, first_tile, probs, tile_max, tile_sum, slopes,
    num_blocks, block_stride, parts, scale_log2, NH: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    R: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, ALIBI: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    table_row = table + row * table_stride
    if tl.load(table_row) < num_blocks:
        return
    length, begin, end = _row_tiles(seq_lens, row, tl.program_id(1), parts, TOKENS)
    base = tl.load(first_tile + row).to(tl.int64)
    head = tl.arange(0, HEADS)
    depth = tl.arange(0, DEPTH)
    query += row * query_row
    for tile in range(begin, end):
        position = tile * TOKENS + tl.arange(0, TOKENS)
        inside = position < length
        x_at = cache + _token_offsets(table_row, position, inside, num_blocks, block_stride, BS, H, R)
        scores = tl.zeros([TOKENS, HEADS], dtype=tl.float32)
        for k in range(0, H, DEPTH):
            column = k + depth
            x = tl.load(x_at[:, None] + column[None, :], mask=inside[:, None] & (column < H)[None, :], other=0.0)
            q_at = query + head[None, :] * query_head + column[:, None]
            q = tl.load(q_at, mask=(head < NH)[None, :] & (column < H)[:, None], other=0.0)
            if WIDEN:
                x, q = x.to(tl.float32), q.to(tl.float32)
            scores = tl.dot(x, q, scores, input_precision="ieee")
        scores *= scale_log2
        if ALIBI:
            slope = tl.load(slopes + head, mask=head < NH, other=0.0)
            scores += (position - (length - 1)).to(tl.float32)[:, None] * slope[None, :]
        scores = tl.where(inside[:, None], scores, float("-inf"))
        maximum = tl.max(scores, 0)
        p = tl.exp2(scores - maximum[None, :])
        at = (base + tile) * NH + head
        tl.store(tile_max + at, maximum, mask=head < NH)
        tl.store(tile_sum + at, tl.sum(p, 0), mask=head < NH)
        p_at = probs + ((base + tile) * TOKENS + tl.arange(0, TOKENS))[:, None] * NH + head[None, :]
        tl.store(p_at, p.to(probs.dtype.element_ty), mask=(head < NH)[None, :])


@triton.jit
def _values_kernel(
    cache, table, table_stride, seq_lens, first_tile, probs, tile_max, tile_sum, out, out_row, out_head,
    part_z, part_max, part_sum, num_blocks, block_stride, NH: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    R: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(2)
    table_row = table + row * table_stride
    if tl.load(table_row) < num_blocks:
        return
    length, begin, end = _row_tiles(seq_lens, row, part, PARTS, TOKENS)
    base = tl.load(first_tile + row).to(tl.int64)
    head = tl.arange(0, HEADS)
    real = head < NH
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    z = tl.zeros([COLUMNS, HEADS], dtype=tl.float32)
    maximum = tl.full([HEADS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HEADS], dtype=tl.float32)
    for tile in range(begin, end):
        position = tile * TOKENS + tl.arange(0, TOKENS)
        inside = position < length
        x_at = cache + _token_offsets(table_row, position, inside, num_blocks, block_stride, BS, H, R)
        x = tl.load(x_at[:, None] + column[None, :], mask=inside[:, None] & (column < H)[None, :], other=0.0)
        p_at = probs + ((base + tile) * TOKENS + tl.arange(0, TOKENS))[:, None] * NH + head[None, :]
        p = tl.load(p_at, mask=real[None, :], other=0.0)
        if WIDEN:
            x, p = x.to(tl.float32), p.to(tl.float32)
        at = (base + tile) * NH + head
        # Padded heads have a finite maximum, so that no difference of infinities arises.
        here = tl.load(tile_max + at, mask=real, other=0.0)
        new = tl.maximum(maximum, here)
        old_weight, here_weight = tl.exp2(maximum - new), tl.exp2(here - new)
        product = tl.dot(tl.trans(x), p.to(x.dtype), input_precision="ieee")
        z = z * old_weight[None, :] + product * here_weight[None, :]
        total = total * old_weight + tl.load(tile_sum + at, mask=real, other=0.0) * here_weight
        maximum = new
    keep = real[None, :] & (column < H)[:, None]
    if PARTS == 1:
        z = z / tl.where(total > 0, total, 1.0)[None, :]
        tl.store(
            out + row * out_row + head[None, :] * out_head + column[:, None], z.to(out.dtype.element_ty), mask=keep
        )
    else:
        at = (row * PARTS + part) * NH + head
        tl.store(part_z + at[None, :] * H + column[:, None], z, mask=keep)
        if tl.program_id(1) == 0:
            tl.store(part_max + at, maximum, mask=real)
            tl.store(part_sum + at, total, mask=real)


@triton.jit
def _combine_kernel(
    part_z, part_max, part_sum, out, out_row, out_head, table, table_stride, num_blocks,
    NH: tl.constexpr, H: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if tl.load(table + row * table_stride) < num_blocks:
        return
    part = tl.arange(0, PADDED)
    at = (row * PARTS + part) * NH + head
    total = tl.load(part_sum + at, mask=part < PARTS, other=0.0)
    # A part without tiles has sum 0; a finite stand-in for its maximum keeps differences of infinities out.
    maximum = tl.where(total > 0, tl.load(part_max + at, mask=part < PARTS, other=0.0), -1.0e38)
    top = tl.max(maximum, 0)
    weight = tl.where(total > 0, tl.exp2(maximum - top), 0.0)
    whole = tl.sum(weight * total, 0)
    weight = weight / tl.where(whole > 0, whole, 1.0)
    for begin in range(0, H, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = (weight > 0)[:, None] & (column < H)[None, :]
        z = tl.load(part_z + at[:, None] * H + column[None, :], mask=inside, other=0.0)
        z = tl.sum(z * weight[:, None], 0)
        tl.store(out + row * out_row + head * out_head + column, z.to(out.dtype.element_ty), mask=column < H)


def hidden_decode(
    query: torch.Tensor,
    view: HalfBlockView,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    first_tile: torch.Tensor,
    total_tiles: int,
    scale: float,
    tiles: DecodeTiles,
    slopes: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """z = softmax(scale * query x^T + ALiBi) x for every row of the half form: [B, nh, H].

    query: [B, nh, H] absorbed queries, columns dense; block_table: [B, W] int32; seq_lens: [B] int32, the token of
    this step counted and its x already written; first_tile: [B] int32 from `tile_offsets`, total_tiles at least its
    end; scale: on the scores, 1/sqrt(hd); slopes: [nh] fp32 ALiBi slopes; out: [B, nh, H] to write into, columns
    dense. Rows of the other form are left as they were in `out`, a row of the half form with no token becomes 0.
    """
    rows, heads, hidden = query.shape
    device = query.device
    out = torch.empty_like(query) if out is None else out
    probs = torch.empty(total_tiles, tiles.tokens, heads, dtype=query.dtype, device=device)
    tile_max = torch.empty(total_tiles, heads, dtype=torch.float32, device=device)
    tile_sum = torch.empty_like(tile_max)
    where = (view.data, block_table, block_table.stride(0), seq_lens, first_tile, probs, tile_max, tile_sum)
    shape = {"NH": heads, "H": hidden, "BS": view.block_tokens, "R": view.ratio, "TOKENS": tiles.tokens,
             "HEADS": max(16, triton.next_power_of_2(heads)), "num_warps": tiles.warps,
             "WIDEN": interpreted() and query.dtype == torch.bfloat16}  # fmt: skip
    _scores_kernel[(rows, tiles.score_parts)](
        query, query.stride(0), query.stride(1), *where, seq_lens if slopes is None else slopes * LOG2_E,
        view.num_blocks, view.block_stride, tiles.score_parts, scale * LOG2_E, **shape, DEPTH=tiles.depth,
        ALIBI=slopes is not None, num_stages=tiles.score_stages,
    )  # fmt: skip
    parts = tiles.value_parts
    part_z = torch.empty(rows, parts, heads, hidden, dtype=torch.float32, device=device) if parts > 1 else tile_max
    part_max = torch.empty(rows, parts, heads, dtype=torch.float32, device=device)
    part_sum = torch.empty_like(part_max)
    _values_kernel[(rows, triton.cdiv(hidden, tiles.columns), parts)](
        *where, out, out.stride(0), out.stride(1), part_z, part_max, part_sum, view.num_blocks, view.block_stride,
        **shape, COLUMNS=tiles.columns, PARTS=parts, num_stages=tiles.value_stages,
    )  # fmt: skip
    if parts > 1:
        _combine_kernel[(rows, heads)](
            part_z, part_max, part_sum, out, out.stride(0), out.stride(1), block_table, block_table.stride(0),
            view.num_blocks, NH=heads, H=hidden, PARTS=parts, PADDED=triton.next_power_of_2(parts),
            COLUMNS=min(512, triton.next_power_of_2(hidden)),
        )  # fmt: skip
    return out


def tile_offsets(half_seq_lens: torch.Tensor, tile_tokens: int) -> tuple[torch.Tensor, int]:
    """Each row's first tile [B] int32 and the number of all tiles, on the host.

    half_seq_lens: [B] tokens of each row on the host, 0 for rows of the other form; upper bounds do as well.
    """
    tiles = (half_seq_lens + tile_tokens - 1) // tile_tokens
    return (tiles.cumsum(0) - tiles).int(), int(tiles.sum())


def absorb_query(query: torch.Tensor, key_weight: torch.Tensor) -> torch.Tensor:
    """Wk_h^T q_h: [B, nh, H] from query [B, nh, hd] and key_weight [nh, hd, H]."""
    return torch.bmm(query.transpose(0, 1), key_weight).transpose(0, 1).contiguous()


def project_output(z: torch.Tensor, value_weight: torch.Tensor, value_bias: torch.Tensor | None) -> torch.Tensor:
    """Wv_h z_h + bv_h: [B, nh, hd] from z [B, nh, H], value_weight [nh, hd, H] and value_bias [nh, hd]."""
    out = torch.bmm(z.transpose(0, 1), value_weight.transpose(1, 2)).transpose(0, 1)
    return out if value_bias is None else out + value_bias
