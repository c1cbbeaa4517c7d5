"""vLLM's Triton attention with rows of a half form beside those of KV. No GPU has run it: docs/gpu.md.

vLLM's kernel is shown the KV rows: to it, a row of the other form reads only the null block, and its result is
overwritten. Decodes and short chunks read half blocks in place, by the kernels here. A row with a longer chunk is read
out first (K and V made from x, or floats again), and vLLM's kernel attends to that. Nothing here asks the device
anything.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.attention.ops.triton_unified_attention import unified_attention

from vllm_hybrid.cache.beside_kv import BesideKv, kv_rows
from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.cost import AttentionShape
from vllm_hybrid.cache.gpu_rows import HalfRows, HalfStep, InPlaceTokens, Row, plan_rows, zero_to
from vllm_hybrid.cache.kernels.absorbed import TILE_TOKENS, absorb_query, choose_tiles, hidden_decode, project_output
from vllm_hybrid.cache.kernels.fp8 import fp8_decode, fp8_read, fp8_write, turned, turned_back
from vllm_hybrid.cache.kernels.hidden_write import hidden_write
from vllm_hybrid.cache.kernels.project import gather_project
from vllm_hybrid.cache.kernels.view import HalfBlockView, fp8_view, hidden_view

MOST_PARTS = 16
"""Programs that share a row's context in fp8."""
PLAIN = {"causal": True, "window_size": (-1, -1), "softcap": 0, "q_descale": None}


class HybridTritonBackend(TritonAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[HybridTritonImpl]:
        return HybridTritonImpl

    @staticmethod
    def get_builder_cls() -> type[HybridTritonBuilder]:
        return HybridTritonBuilder


class HybridTritonBuilder(TritonAttentionMetadataBuilder):
    # What a step launches depends on its rows: a graph of one step's attention must never be replayed in another.
    _cudagraph_support = AttentionCGSupport.NEVER
    supports_draft_decode_metadata_update = False

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        common = common_attn_metadata
        layer = self.vllm_config.compilation_config.static_forward_context[self.layer_names[0]]
        step: HalfStep = layer.impl.step
        rows = None
        if step.rows:
            num_blocks = layer.kv_cache.shape[0]
            # The first column decides: further ones may be stale.
            half = common.block_table_tensor[:, 0] >= num_blocks
            rows = layer.impl.half_rows(common, half)
            common = kv_rows(common, half, num_blocks * self.block_size)
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.half_rows = rows
        return metadata


class HybridTritonImpl(BesideKv, TritonAttentionImpl):
    """What both half forms share. Taken over with `step` and `block_tokens`."""

    step: HalfStep
    block_tokens: int

    in_place_up_to: int
    """Query tokens of a row up to which each reads the half blocks where they are; more, and the row is read out first.
    """

    @cached_property
    def shape(self) -> AttentionShape:
        return AttentionShape(self.num_heads * self.head_size, self.num_heads, self.num_kv_heads, self.head_size)

    def view(self, cache: torch.Tensor) -> HalfBlockView:
        """The half blocks in a layer's cache."""
        raise NotImplementedError

    def in_place(self, query: torch.Tensor, view: HalfBlockView, tokens: InPlaceTokens) -> torch.Tensor:
        """[D, nh, hd] of query tokens [D, nh, hd], each a row of its own."""
        raise NotImplementedError

    def read_out(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, row: Row
    ) -> torch.Tensor:
        """[T, nh, hd] of one row's query tokens [T, nh, hd]; key, value: [T, nkv, hd], their own."""
        raise NotImplementedError

    def keys_and_values(self, view: HalfBlockView, half_ids: torch.Tensor, tokens: int) -> torch.Tensor:
        """K and V [tokens, 2, nkv, hd] of what half blocks [W] hold."""
        raise NotImplementedError

    def workspace_bytes(self, max_len: int) -> int:
        """The most that one step's half rows take beside the cache."""
        raise NotImplementedError

    def half_rows(self, common: Any, half: torch.Tensor) -> HalfRows:
        """The step's rows of the half form, where `half` [B] says they are."""
        return plan_rows(common, half, self.step, self.block_tokens, self.in_place_up_to, TILE_TOKENS)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *scales: Any,
        **more_scales: Any,
    ) -> torch.Tensor:
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **more_scales)
        rows = None if attn_metadata is None else attn_metadata.half_rows
        if rows is not None:
            heads = (-1, self.num_heads, self.head_size)
            queries, out, view = query.view(heads), output.view(heads), self.view(kv_cache)
            if rows.in_place is not None:
                at = rows.in_place.at
                out[at] = self.in_place(queries[at], view, rows.in_place).to(out.dtype)
            for row in rows.read_out:
                own = key[row.at], value[row.at]
                out[row.at] = self.read_out(queries[row.at], *own, view, row).to(out.dtype)
        return output

    def over_pages(self, query: torch.Tensor, pages: torch.Tensor, row: Row) -> torch.Tensor:
        """vLLM's kernel on K and V of one row, pages [blocks, bs, 2, nkv, hd] of any strides: [T, nh, hd]."""
        out = torch.empty_like(query)
        unified_attention(
            q=query, k=pages[:, :, 0], v=pages[:, :, 1], out=out, cu_seqlens_q=row.query_start,
            max_seqlen_q=len(query), seqused_k=row.lens, max_seqlen_k=row.tokens, block_table=row.pages,
            softmax_scale=self.scale, k_descale=None, v_descale=None, alibi_slopes=self.alibi_slopes, **PLAIN,
        )  # fmt: skip
        return out

    def move_to_kv(self, layer: Any, half_ids: torch.Tensor, block_ids: torch.Tensor, tokens: int) -> None:
        """Write K and V of what half blocks [W] hold, `tokens` of it, into whole blocks [W]."""
        cache = layer.kv_cache
        key, value = self.keys_and_values(self.view(cache), half_ids, tokens).to(cache.dtype).unbind(1)
        at = torch.arange(tokens, device=cache.device)
        slots = block_ids[at // self.block_tokens] * self.block_tokens + at % self.block_tokens
        TritonAttentionImpl.do_kv_cache_update(self, layer, key, value, cache, slots)

    @cached_property
    def multiprocessors(self) -> int:
        return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 1


class HiddenTritonImpl(HybridTritonImpl):
    """In place: absorbed. Read out: x is gathered and K and V made from it."""

    projection: Projection

    @cached_property
    def in_place_up_to(self) -> int:  # type: ignore[override]
        return self.shape.absorbed_query_tokens()

    def view(self, cache: torch.Tensor) -> HalfBlockView:
        return hidden_view(cache, self.projection.weight.shape[1])

    def write_hidden(self, x: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
        """Row t of x [>= T, H] into slot t [T], where that is of the half form."""
        hidden_write(x, view, slots)

    def in_place(self, query: torch.Tensor, view: HalfBlockView, tokens: InPlaceTokens) -> torch.Tensor:
        weights, heads = self.projection, (self.num_heads, self.head_size)
        tiles = choose_tiles(len(query), tokens.max_len, self.multiprocessors)
        absorbed = absorb_query(query, weights.key_weight.unflatten(0, heads))
        z = hidden_decode(
            absorbed, view, tokens.table, tokens.lens, tokens.first_tile, tokens.total_tiles, self.scale, tiles,
            self.alibi_slopes,
        )  # fmt: skip
        bias = None if weights.value_bias is None else weights.value_bias.view(heads)
        return project_output(z, weights.value_weight.unflatten(0, heads), bias)

    def read_out(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, row: Row
    ) -> torch.Tensor:
        both = self._projected(view, row.table, row.starts, row.blocks * row.block_tokens)
        return self.over_pages(query, both.unflatten(0, (row.blocks, row.block_tokens)), row)

    def keys_and_values(self, view: HalfBlockView, half_ids: torch.Tensor, tokens: int) -> torch.Tensor:
        return self._projected(view, half_ids[None].int(), zero_to(tokens, half_ids.device), tokens)

    def _projected(self, view: HalfBlockView, table: torch.Tensor, starts: torch.Tensor, tokens: int) -> torch.Tensor:
        weights = self.projection
        both = gather_project(view, table, starts, tokens, tokens, weights.weight, weights.bias)
        return both.view(tokens, 2, self.num_kv_heads, self.head_size)

    def workspace_bytes(self, max_len: int) -> int:
        hidden, element = self.projection.weight.shape[1], self.projection.weight.element_size()
        queries_and_results = self.step.max_rows * 2 * self.num_heads * hidden
        return element * (queries_and_results + max_len * (hidden + len(self.projection.weight)))


class Fp8TritonImpl(HybridTritonImpl):
    """On K and V as they are stored, turned. Read out: in the model's own dtype, the step's own tokens as they are."""

    @cached_property
    def in_place_up_to(self) -> int:  # type: ignore[override]
        return self.shape.fp8_query_tokens()

    def view(self, cache: torch.Tensor) -> HalfBlockView:
        return fp8_view(cache)

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        fp8_write(key, value, self.view(kv_cache), slot_mapping)

    def in_place(self, query: torch.Tensor, view: HalfBlockView, tokens: InPlaceTokens) -> torch.Tensor:
        parts = choose_tiles(len(query) * self.num_kv_heads, tokens.max_len, self.multiprocessors).score_parts
        parts = min(parts, MOST_PARTS)
        asked = turned_back(query.float()).to(query.dtype)
        return turned_back(fp8_decode(asked, view, tokens.table, tokens.lens, self.scale, parts, self.alibi_slopes))

    def read_out(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: HalfBlockView, row: Row
    ) -> torch.Tensor:
        both = self._read(view, row.table, row.starts, row.blocks * row.block_tokens, query.dtype)
        own = slice(row.tokens - len(query), row.tokens)
        for part, exact in ((0, key), (1, value)):
            both[own, part] = turned(exact.float()).to(both.dtype)
        asked = turned_back(query.float()).to(query.dtype)
        pages = both.unflatten(0, (row.blocks, row.block_tokens))
        return turned_back(self.over_pages(asked, pages, row).float())

    def keys_and_values(self, view: HalfBlockView, half_ids: torch.Tensor, tokens: int) -> torch.Tensor:
        held = self._read(view, half_ids[None].int(), zero_to(tokens, half_ids.device), tokens, torch.float32)
        return turned_back(held)

    def _read(
        self, view: HalfBlockView, table: torch.Tensor, starts: torch.Tensor, tokens: int, dtype: torch.dtype
    ) -> torch.Tensor:
        both = fp8_read(view, table, starts, tokens, tokens, self.head_size, dtype)
        return both.view(tokens, self.num_kv_heads, 2, self.head_size).transpose(1, 2)

    def workspace_bytes(self, max_len: int) -> int:
        parts = self.step.max_rows * self.num_heads * self.head_size * MOST_PARTS
        return 4 * (parts + max_len * 2 * self.num_kv_heads * self.head_size)
