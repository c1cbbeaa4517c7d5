"""Attention over K and V as stock vLLM does it: the yardstick, and a part of every step.

FlashAttention 3 out of vLLM on its own paged cache, where that imports. Else torch's attention over contiguous K and V:
no paging, so that it flatters KV, and `name` says so in every result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import Shape

BLOCK_TOKENS = 16
POOL_BYTES = 24e9
Group = tuple[int, int]
"""Query tokens of a row, its context with them."""

Attention = Callable[[torch.Tensor, int], torch.Tensor]
"""(query [T, nh*hd], which call of a series) -> output [T, nh*hd]."""


def flash_attention() -> Callable | None:
    """vLLM's FlashAttention entry point, if this machine has a vLLM with FlashAttention 3."""
    if not torch.cuda.is_available():
        return None
    try:
        from vllm.vllm_flash_attn import flash_attn_varlen_func
    except ImportError as problem:
        print(f"  no FlashAttention 3 ({problem}): torch's attention over contiguous K and V instead")
        return None
    return flash_attn_varlen_func


class KvAttention:
    """A pool of KV blocks; every call of a series reads another region, so that small cases do not sit in the L2."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.shape, self.device = shape, bench.device
        self.flash = flash_attention()
        self.name = "fa3" if self.flash else "sdpa-contiguous"
        budget = min(POOL_BYTES, bench.free_bytes() * 0.35)
        self.blocks = int(budget // (shape.kv_token_bytes * BLOCK_TOKENS))
        sizes = self.blocks, BLOCK_TOKENS, shape.kv_heads, 2 * shape.head_size
        self.cache = torch.empty(sizes, device=self.device, dtype=torch.bfloat16).normal_()

    def series(self, groups: Sequence[Group], calls: int) -> Attention | None:
        """Attention of a batch for a series of `calls`; None if the pool is too small for the batch."""
        blocks = [-(-context // BLOCK_TOKENS) for _, context in groups]
        need = sum(blocks)
        if need > self.blocks:
            return None
        regions = max(1, min(calls, self.blocks // need))
        return self._paged(groups, blocks, regions) if self.flash else self._contiguous(groups, need, regions)

    def _paged(self, groups: Sequence[Group], blocks: list[int], regions: int) -> Attention:
        queries, contexts = [q for q, _ in groups], [c for _, c in groups]
        starts = torch.tensor([0, *queries], device=self.device).cumsum(0).int()
        used = torch.tensor(contexts, device=self.device, dtype=torch.int32)
        tables = []
        for region in range(regions):
            ids = (torch.randperm(sum(blocks)) + region * sum(blocks)).int().split(blocks)
            table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
            for row, row_ids in enumerate(ids):
                table[row, : len(row_ids)] = row_ids
            tables.append(table.to(self.device))
        key, value = self.cache.split(self.shape.head_size, -1)
        heads, head_size, flash = self.shape.heads, self.shape.head_size, self.flash

        def run(query: torch.Tensor, call: int) -> torch.Tensor:
            out = flash(  # type: ignore[misc]
                query.view(-1, heads, head_size), key, value, max_seqlen_q=max(queries), cu_seqlens_q=starts,
                max_seqlen_k=max(contexts), seqused_k=used, block_table=tables[call % regions], causal=True,
                softmax_scale=head_size**-0.5, fa_version=3,
            )  # fmt: skip
            return out.view(-1, heads * head_size)

        return run

    def _contiguous(self, groups: Sequence[Group], need: int, regions: int) -> Attention:
        shape = self.shape
        flat = self.cache.view(-1, shape.kv_heads, 2 * shape.head_size).split(shape.head_size, -1)
        alike = [(group, len(list(same))) for group, same in groupby(groups)]

        def run(query: torch.Tensor, call: int) -> torch.Tensor:
            outs, row, at = [], 0, (call % regions) * need * BLOCK_TOKENS
            for (tokens, context), count in alike:
                k, v = (kv[at : at + count * context].unflatten(0, (count, context)).transpose(1, 2) for kv in flat)
                q = query[row : row + count * tokens].view(count, tokens, shape.heads, shape.head_size).transpose(1, 2)
                mask = None if tokens == 1 else causal_lower_right(tokens, context)
                grouped = shape.heads != shape.kv_heads
                out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
                outs.append(out.transpose(1, 2).reshape(count * tokens, -1))
                row, at = row + count * tokens, at + count * context
            return torch.cat(outs)

        return run


def pairs(groups: Sequence[Group]) -> float:
    """Query-key pairs of causal attention."""
    return sum(tokens * context - tokens * (tokens - 1) / 2 for tokens, context in groups)
