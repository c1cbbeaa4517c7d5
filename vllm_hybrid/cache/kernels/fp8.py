"""K and V in eight bits a number: write this step's tokens, attend to them in place, read whole rows back.

A floating-point format with one exponent for many numbers: every head of a token has, for K and for V, one scale and hd
whole numbers of -127 to 127. Two things make it several times as exact as e4m3, which spends four of eight bits on an
exponent for every number. K and V are first turned by a Hadamard matrix, which spreads the few large channels of K
over all of them; what is turned is also what attention is computed on, since (q T)(k T)^T = q k^T for an orthogonal T.
And the scale takes no room: its 15 bits (bf16, without the sign) are the lowest bits of the first 15 numbers, each
rounded to the nearest number with that bit.

One token is [nkv, K | V]; T is +-1 throughout, so turning back divides by its order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from vllm_hybrid.cache.kernels.absorbed import LOG2_E, TILE_TOKENS, _combine_kernel, _row_tiles
from vllm_hybrid.cache.kernels.view import HalfBlockView, half_block_offset, interpreted

SCALE_BITS = tl.constexpr(15)
TOP = tl.constexpr(127.0)
# Beside 1.5 * 2^23 fp32 has room for whole numbers only: adding and taking it away rounds, ties to even.
ANCHOR = tl.constexpr(12582912.0)


def turn_order(head_size: int) -> int:
    """The order of T: the largest power of two that divides the head size."""
    return head_size & -head_size


@lru_cache
def turn(head_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """T [hd, hd]: Hadamard matrices along the diagonal. It is symmetric, and T T = `turn_order` * identity."""
    order = turn_order(head_size)
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.block_diag(*[matrix] * (head_size // order)).to(device, dtype)


def turned(x: torch.Tensor) -> torch.Tensor:
    """x T [..., hd]: as K and V are stored."""
    return x @ turn(x.shape[-1], x.dtype, x.device)


def turned_back(x: torch.Tensor) -> torch.Tensor:
    """x T / order [..., hd]: of what was read, the K and V that were stored; of a query, what meets K T."""
    return turned(x) / turn_order(x.shape[-1])


@triton.jit
def _encoded(x, rotation, inner):
    """Whole numbers [M, W] of vectors x [M, W], their scales inside."""
    number = tl.dot(x, rotation, input_precision="ieee")
    # The scale in bf16, to nearest: a carry out of the mantissa is right, too.
    bits = ((tl.max(tl.abs(number), 1) / TOP).to(tl.int32, bitcast=True) + 0x8000) >> 16
    scale = (bits << 16).to(tl.float32, bitcast=True)
    number = number / tl.maximum(scale, 1.0e-37)[:, None]
    number = tl.minimum(tl.maximum(number, -TOP), TOP)
    bit = ((bits[:, None] >> tl.minimum(inner, SCALE_BITS)[None, :]) & 1).to(tl.float32)
    coded = ((((number - bit) * 0.5) + ANCHOR) - ANCHOR) * 2.0 + bit
    coded = tl.where(coded > TOP, coded - 2.0, tl.where(coded < -TOP, coded + 2.0, coded))
    return tl.where((inner < SCALE_BITS)[None, :], coded, (number + ANCHOR) - ANCHOR).to(tl.int8)


@triton.jit
def _scales(number, inner):
    """[M] of whole numbers [M, W]."""
    bit = (number.to(tl.int32) & 1) << tl.minimum(inner, SCALE_BITS)[None, :]
    return (tl.sum(tl.where((inner < SCALE_BITS)[None, :], bit, 0), 1) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _fp8_write_kernel(
    key, key_stride, value, value_stride, rotation, cache, slots, num_blocks, block_stride,
    BS: tl.constexpr, NKV: tl.constexpr, HD: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < num_blocks * BS:
        return
    W: tl.constexpr = 2 * NKV * HD
    to = half_block_offset(slot // BS, num_blocks, block_stride, BS, W, R) + (slot % BS) * W
    head, inner = tl.arange(0, HEADS), tl.arange(0, WIDE)
    inside = (head < NKV)[:, None] & (inner < HD)[None, :]
    source = head[:, None] * HD + inner[None, :]
    target = cache + to + head[:, None] * (2 * HD) + inner[None, :]
    t = tl.load(
        rotation + inner[:, None] * HD + inner[None, :], mask=(inner < HD)[:, None] & (inner < HD)[None, :], other=0.0
    )
    k = tl.load(key + token * key_stride + source, mask=inside, other=0.0)
    v = tl.load(value + token * value_stride + source, mask=inside, other=0.0)
    if WIDEN:
        k, v, t = k.to(tl.float32), v.to(tl.float32), t.to(tl.float32)
    tl.store(target, _encoded(k, t, inner), mask=inside)
    tl.store(target + HD, _encoded(v, t, inner), mask=inside)


def fp8_write(key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    """Store K and V of token t at slot t, where that slot is of the half form.

    key, value: [>= T, nkv, hd], heads of a token dense; slots: [T] int64, -1 for padding.
    """
    tokens = min(key.shape[0], slots.shape[0])
    if tokens == 0:
        return
    _, heads, head_size = key.shape
    _fp8_write_kernel[(tokens,)](
        key, key.stride(0), value, value.stride(0), turn(head_size, key.dtype, key.device), view.data, slots,
        view.num_blocks, view.block_stride, BS=view.block_tokens, NKV=heads, HD=head_size, R=view.ratio,
        HEADS=max(16, triton.next_power_of_2(heads)), WIDE=triton.next_power_of_2(head_size),
        WIDEN=interpreted() and key.dtype == torch.bfloat16,
    )  # fmt: skip


@triton.jit
def _fp8_decode_kernel(
    query, query_row, cache, table, table_stride, seq_lens, part_z, part_max, part_sum, slopes,
    num_blocks, block_stride, scale_log2, NKV: tl.constexpr, GROUP: tl.constexpr, HD: tl.constexpr, BS: tl.constexpr,
    R: tl.constexpr, QUERIES: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
    ALIBI: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kv_head, part = tl.program_id(1), tl.program_id(2)
    table_row = table + row * table_stride
    if tl.load(table_row) < num_blocks:
        return
    length, begin, end = _row_tiles(seq_lens, row, part, PARTS, TOKENS)
    W: tl.constexpr = 2 * NKV * HD
    place, inner = tl.arange(0, QUERIES), tl.arange(0, WIDE)
    real, wide = place < GROUP, inner < HD
    head = kv_head * GROUP + place
    q_at = query + row * query_row + head[None, :] * HD + inner[:, None]
    q = tl.load(q_at, mask=wide[:, None] & real[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    z = tl.zeros([WIDE, QUERIES], dtype=tl.float32)
    maximum = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    for tile in range(begin, end):
        position = tile * TOKENS + tl.arange(0, TOKENS)
        inside = position < length
        block_id = tl.load(table_row + position // BS, mask=inside, other=num_blocks)
        at = half_block_offset(block_id, num_blocks, block_stride, BS, W, R) + (position % BS) * W + kv_head * (2 * HD)
        at = cache + at[:, None] + inner[None, :]
        keep = inside[:, None] & wide[None, :]
        k = tl.load(at, mask=keep, other=0)
        scores = tl.dot(k.to(q.dtype), q, input_precision="ieee") * (_scales(k, inner) * scale_log2)[:, None]
        if ALIBI:
            slope = tl.load(slopes + head, mask=real, other=0.0)
            scores += (position - (length - 1)).to(tl.float32)[:, None] * slope[None, :]
        scores = tl.where(inside[:, None], scores, float("-inf"))
        new = tl.maximum(maximum, tl.max(scores, 0))
        weight = tl.exp2(maximum - new)
        p = tl.exp2(scores - new[None, :])
        v = tl.load(at + HD, mask=keep, other=0)
        v = (v.to(tl.float32) * _scales(v, inner)[:, None]).to(q.dtype)
        z = z * weight[None, :] + tl.dot(tl.trans(v), p.to(q.dtype), input_precision="ieee")
        total = total * weight + tl.sum(p, 0)
        maximum = new
    at = (row * PARTS + part) * (NKV * GROUP) + head
    tl.store(part_z + at[None, :] * HD + inner[:, None], z, mask=wide[:, None] & real[None, :])
    tl.store(part_max + at, maximum, mask=real)
    tl.store(part_sum + at, total, mask=real)


def fp8_decode(
    query: torch.Tensor,
    view: HalfBlockView,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    parts: int,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one token per row of the half form, turned: [B, nh, hd] fp32.

    query: [B, nh, hd] after `turned_back`, dense; block_table: [B, W] int32; seq_lens: [B] int32, the token of this
    step counted and already written; scale: on the scores; parts: programs that share a row's context; slopes: [nh]
    fp32 ALiBi slopes. Rows of the other form are left undefined, one of the half form with no token becomes 0.
    """
    rows, heads, head_size = query.shape
    kv_heads = view.width // (2 * head_size)
    device = query.device
    part_z = torch.empty(rows, parts, heads, head_size, dtype=torch.float32, device=device)
    part_max = torch.empty(rows, parts, heads, dtype=torch.float32, device=device)
    part_sum = torch.empty_like(part_max)
    group = heads // kv_heads
    _fp8_decode_kernel[(rows, kv_heads, parts)](
        query, query.stride(0), view.data, block_table, block_table.stride(0), seq_lens, part_z, part_max, part_sum,
        seq_lens if slopes is None else slopes * LOG2_E, view.num_blocks, view.block_stride, scale * LOG2_E,
        NKV=kv_heads, GROUP=group, HD=head_size, BS=view.block_tokens, R=view.ratio,
        QUERIES=max(16, triton.next_power_of_2(group)), WIDE=triton.next_power_of_2(head_size), TOKENS=TILE_TOKENS,
        PARTS=parts, ALIBI=slopes is not None, WIDEN=interpreted() and query.dtype == torch.bfloat16,
    )  # fmt: skip
    out = torch.empty(rows, heads, head_size, dtype=torch.float32, device=device)
    _combine_kernel[(rows, heads)](
        part_z, part_max, part_sum, out, out.stride(0), out.stride(1), block_table, block_table.stride(0),
        view.num_blocks, NH=heads, H=head_size, PARTS=parts, PADDED=triton.next_power_of_2(parts),
        COLUMNS=triton.next_power_of_2(head_size),
    )  # fmt: skip
    return out


@triton.jit
def _fp8_read_kernel(
    out, cache, table, table_stride, starts, num_blocks, block_stride,
    BS: tl.constexpr, NKV: tl.constexpr, HD: tl.constexpr, R: tl.constexpr, VECTORS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    start = tl.load(starts + row).to(tl.int64)
    tokens = tl.load(starts + row + 1) - start - block * BS
    if tokens <= 0:
        return
    W: tl.constexpr = 2 * NKV * HD
    block_id = tl.load(table + row * table_stride + block)
    source = half_block_offset(block_id, num_blocks, block_stride, BS, W, R)
    target = (start + block * BS) * W
    inner = tl.arange(0, WIDE)
    vectors = tl.minimum(tokens, BS) * (2 * NKV)
    for begin in range(0, BS * 2 * NKV, VECTORS):
        vector = begin + tl.arange(0, VECTORS)
        at = vector[:, None] * HD + inner[None, :]
        keep = (vector < vectors)[:, None] & (inner < HD)[None, :]
        number = tl.load(cache + source + at, mask=keep, other=0)
        number = number.to(tl.float32) * _scales(number, inner)[:, None]
        tl.store(out + target + at, number.to(out.dtype.element_ty), mask=keep)


def fp8_read(
    view: HalfBlockView,
    block_table: torch.Tensor,
    starts: torch.Tensor,
    total_tokens: int,
    max_tokens: int,
    head_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """K and V, still turned, of rows of the half form, one after the other: [total_tokens, nkv, 2*hd], K before V.

    block_table: [B, W] int32, rows of the half form only; starts: [B+1] int32, row b fills starts[b]:starts[b+1].
    """
    heads = view.width // (2 * head_size)
    out = torch.empty(total_tokens, heads, 2 * head_size, dtype=dtype, device=view.data.device)
    if total_tokens == 0:
        return out
    _fp8_read_kernel[(block_table.shape[0], triton.cdiv(max_tokens, view.block_tokens))](
        out, view.data, block_table, block_table.stride(0), starts, view.num_blocks, view.block_stride,
        BS=view.block_tokens, NKV=heads, HD=head_size, R=view.ratio, VECTORS=32,
        WIDE=triton.next_power_of_2(head_size),
    )  # fmt: skip
    return out
