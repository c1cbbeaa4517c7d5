"""K and V as e4m3 in half blocks: write this step's tokens, read whole requests back.

One token is [nkv, K | V] in bytes, so that the layer, seen as [R*N, bs, nkv, 2*hd] with ids less N, is what an
attention kernel with fp8 KV takes as it is; the read below is for prompt chunks and for moving a request back to KV.
Values are divided by one scale per layer and clipped to the largest e4m3 number, since the plain cast makes NaN of
what is larger.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_hybrid.cache.kernels.view import HalfBlockView, half_block_offset

FP8_MAX = tl.constexpr(448.0)


@triton.jit
def _rounded_to_e4m3(number):
    """fp32 numbers of at most 448 rounded to the nearest that e4m3 has, ties to even, still as fp32.

    The cast after it is then exact: where it runs it may round in another way, and Triton's interpreter does.
    """
    exponent = (number.to(tl.int32, bitcast=True) >> 23) & 0xFF
    # Below 2^-6 the numbers of e4m3 are evenly spaced. 1.5 * 2^23 spacings: beside it fp32 has room for whole ones
    # only.
    exponent = tl.maximum(exponent, 127 - 6)
    anchor = (((exponent - 3 + 23) << 23) | 0x400000).to(tl.float32, bitcast=True)
    return (number + anchor) - anchor


@triton.jit
def _fp8_write_kernel(
    key, key_stride, value, value_stride, cache, slots, num_blocks, block_stride, k_scale, v_scale,
    BS: tl.constexpr, NKV: tl.constexpr, HD: tl.constexpr, R: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < num_blocks * BS:
        return
    W: tl.constexpr = 2 * NKV * HD
    to = half_block_offset(slot // BS, num_blocks, block_stride, BS, W, R) + (slot % BS) * W
    for begin in range(0, W, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        head, inner = column // (2 * HD), column % (2 * HD)
        is_key = inner < HD
        inside = column < W
        k = tl.load(key + token * key_stride + head * HD + inner, mask=inside & is_key, other=0.0)
        v = tl.load(value + token * value_stride + head * HD + inner - HD, mask=inside & (inner >= HD), other=0.0)
        number = tl.where(is_key, k.to(tl.float32) / k_scale, v.to(tl.float32) / v_scale)
        number = _rounded_to_e4m3(tl.minimum(tl.maximum(number, -FP8_MAX), FP8_MAX))
        tl.store(cache + to + column, number.to(cache.dtype.element_ty), mask=inside)


def fp8_write(
    key: torch.Tensor,
    value: torch.Tensor,
    view: HalfBlockView,
    slots: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Store K and V of token t at slot t, where that slot is of the half form.

    key, value: [>= T, nkv, hd], heads of a token dense; slots: [T] int64, -1 for padding.
    """
    tokens = min(key.shape[0], slots.shape[0])
    if tokens == 0:
        return
    _, heads, head_size = key.shape
    _fp8_write_kernel[(tokens,)](
        key, key.stride(0), value, value.stride(0), view.data, slots, view.num_blocks, view.block_stride,
        k_scale, v_scale, BS=view.block_tokens, NKV=heads, HD=head_size, R=view.ratio,
        COLUMNS=min(1024, triton.next_power_of_2(view.width)),
    )  # fmt: skip


@triton.jit
def _fp8_read_kernel(
    out, cache, table, table_stride, starts, num_blocks, block_stride, k_scale, v_scale,
    BS: tl.constexpr, NKV: tl.constexpr, HD: tl.constexpr, R: tl.constexpr, ELEMENTS: tl.constexpr,
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
    elements = tl.minimum(tokens, BS) * W
    for begin in range(0, BS * W, ELEMENTS):
        at = begin + tl.arange(0, ELEMENTS)
        number = tl.load(cache + source + at, mask=at < elements, other=0.0).to(tl.float32)
        number = number * tl.where(at % (2 * HD) < HD, k_scale, v_scale)
        tl.store(out + target + at, number.to(out.dtype.element_ty), mask=at < elements)


def fp8_read(
    view: HalfBlockView,
    block_table: torch.Tensor,
    starts: torch.Tensor,
    total_tokens: int,
    max_tokens: int,
    head_size: int,
    dtype: torch.dtype,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """K and V of rows of the half form, one after the other: [total_tokens, nkv, 2*hd] in `dtype`, K before V.

    block_table: [B, W] int32, rows of the half form only; starts: [B+1] int32, row b fills starts[b]:starts[b+1].
    """
    heads = view.width // (2 * head_size)
    out = torch.empty(total_tokens, heads, 2 * head_size, dtype=dtype, device=view.data.device)
    if total_tokens == 0:
        return out
    _fp8_read_kernel[(block_table.shape[0], triton.cdiv(max_tokens, view.block_tokens))](
        out, view.data, block_table, block_table.stride(0), starts, view.num_blocks, view.block_stride,
        k_scale, v_scale, BS=view.block_tokens, NKV=heads, HD=head_size, R=view.ratio, ELEMENTS=2048,
    )  # fmt: skip
    return out
