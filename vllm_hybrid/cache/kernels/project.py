"""Hidden states back out of the half blocks, dense, and K and V from them by one matrix product.

For long prompt chunks, where reading x absorbed costs more FLOP than making K and V anew (from 132 query tokens on for
OPT-13B), and for moving a request from the hidden form to KV. The product is the vendor's GEMM; only the gather is
ours. Rows are taken whole, so a caller bounds the temporary memory by the rows it passes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_hybrid.cache.kernels.view import HalfBlockView, half_block_offset


@triton.jit
def _hidden_gather_kernel(
    out, cache, table, table_stride, starts, num_blocks, block_stride,
    BS: tl.constexpr, H: tl.constexpr, R: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    start = tl.load(starts + row).to(tl.int64)
    tokens = tl.load(starts + row + 1) - start - block * BS
    if tokens <= 0:
        return
    block_id = tl.load(table + row * table_stride + block)
    source = half_block_offset(block_id, num_blocks, block_stride, BS, H, R)
    target = (start + block * BS) * H
    # A half block is one run of memory, and so is its place in `out`: no need to know where a token begins.
    elements = tl.minimum(tokens, BS) * H
    for begin in range(0, BS * H, ELEMENTS):
        at = begin + tl.arange(0, ELEMENTS)
        tl.store(out + target + at, tl.load(cache + source + at, mask=at < elements), mask=at < elements)


def hidden_gather(
    view: HalfBlockView, block_table: torch.Tensor, starts: torch.Tensor, total_tokens: int, max_tokens: int
) -> torch.Tensor:
    """The hidden states of rows of the half form, one after the other: [total_tokens, H].

    block_table: [B, W] int32, rows of the half form only; starts: [B+1] int32, row b fills starts[b]:starts[b+1];
    total_tokens = starts[B] and max_tokens >= the longest row are given so that the device need not be asked.
    """
    out = torch.empty(total_tokens, view.width, dtype=view.data.dtype, device=view.data.device)
    if total_tokens == 0:
        return out
    _hidden_gather_kernel[(block_table.shape[0], triton.cdiv(max_tokens, view.block_tokens))](
        out, view.data, block_table, block_table.stride(0), starts, view.num_blocks, view.block_stride,
        BS=view.block_tokens, H=view.width, R=view.ratio, ELEMENTS=2048,
    )  # fmt: skip
    return out


def gather_project(
    view: HalfBlockView,
    block_table: torch.Tensor,
    starts: torch.Tensor,
    total_tokens: int,
    max_tokens: int,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """K and V of rows of the half form, side by side: [total_tokens, 2*nkv*hd].

    weight: [2*nkv*hd, H] and bias: [2*nkv*hd], the K and V rows of the layer's QKV projection; the rest as in
    `hidden_gather`.
    """
    x = hidden_gather(view, block_table, starts, total_tokens, max_tokens)
    return torch.nn.functional.linear(x, weight, bias)
