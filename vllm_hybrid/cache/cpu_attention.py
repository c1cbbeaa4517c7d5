"""vLLM's CPU attention with rows of a half form beside those of KV.

vLLM's kernel is shown the KV rows: to it, a row of the other form reads only the null block, and its result is
overwritten. Hidden states: decode rows are absorbed together, on contexts padded to the longest, and rows with more
query tokens get K and V made from x, one by one. fp8: the rows are a batch of their own, whose half blocks are read out
into blocks that vLLM's kernel attends to; K and V of the step's own tokens are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from vllm_hybrid.cache.beside_kv import BesideKv, kv_rows
from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.absorbed import absorb_query, project_output
from vllm_hybrid.cache.kernels.fp8 import turned_back
from vllm_hybrid.cache.kernels.view import HalfBlockView, fp8_view, hidden_view


@dataclass(slots=True)
class HiddenRows:
    """The rows of a batch that hold hidden states."""

    decode_tokens: torch.Tensor
    """[D] where the query token of each decode row is."""

    decode_table: torch.Tensor
    """[D, W]"""

    decode_lens: torch.Tensor
    """[D]"""

    prompts: list[tuple[int, int, int, torch.Tensor]]
    """First and last query token, cached tokens and block ids [W] of each other row."""


@dataclass(slots=True)
class Fp8Rows:
    """The rows of a batch that hold K and V in fp8, as a batch of their own on pages side by side."""

    tokens: torch.Tensor
    """[T] where their query tokens are."""

    half_ids: torch.Tensor
    """[P] of the half blocks, one row's after the other's."""

    inside: torch.Tensor
    """[P, bs] what of them belongs to a row."""

    slots: torch.Tensor
    """[T] where the query tokens are on the pages."""

    metadata: Any
    """vLLM's, for that batch."""


class HybridCpuBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[HybridCpuImpl]:
        return HybridCpuImpl

    @staticmethod
    def get_builder_cls() -> type[HybridCpuBuilder]:
        return HybridCpuBuilder


class HybridCpuBuilder(CPUAttentionMetadataBuilder):
    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        common = common_attn_metadata
        layer = self.vllm_config.compilation_config.static_forward_context[self.layer_names[0]]
        num_blocks = layer.kv_cache.shape[0]
        # The first column decides: further ones may be stale.
        half = common.block_table_tensor[:, 0] >= num_blocks
        rows = layer.impl.rows(self, common, half) if bool(half.any()) else None
        if rows is not None:
            common = kv_rows(common, half, num_blocks * self.block_size)
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.half_rows = rows
        return metadata


def _hidden_rows(common: Any, half: torch.Tensor) -> HiddenRows:
    starts, ends = common.query_start_loc[:-1], common.query_start_loc[1:]
    decode = half & (ends - starts == 1)
    table, lens = common.block_table_tensor, common.seq_lens
    prompts = [
        (int(starts[row]), int(ends[row]), int(lens[row]), table[row].clone())
        for row in (half & (ends - starts > 1)).nonzero().flatten().tolist()
    ]
    return HiddenRows(starts[decode].long(), table[decode], lens[decode].long(), prompts)


def _fp8_rows(builder: HybridCpuBuilder, common: Any, half: torch.Tensor) -> Fp8Rows:
    block = builder.block_size
    queries, lens = common.query_start_loc.diff()[half], common.seq_lens[half]
    pages = (lens + block - 1) // block
    first = pages.cumsum(0) - pages
    column = torch.arange(int(pages.max()))
    held = column < pages[:, None]
    starts = torch.nn.functional.pad(queries.cumsum(0), (1, 0))
    within = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(queries)
    position = within + (lens - queries).repeat_interleave(queries)
    slots = first.repeat_interleave(queries) * block + position
    own = common.replace(
        query_start_loc=starts.to(common.query_start_loc.dtype),
        query_start_loc_cpu=starts.to(common.query_start_loc.dtype),
        seq_lens=lens,
        num_reqs=len(lens),
        num_actual_tokens=int(starts[-1]),
        max_query_len=int(queries.max()),
        max_seq_len=int(lens.max()),
        block_table_tensor=(first[:, None] + column).where(held, 0).to(common.block_table_tensor.dtype),
        slot_mapping=slots.to(common.slot_mapping.dtype),
    )
    at = torch.arange(block) + column[:, None] * block
    inside = (at < lens[:, None, None])[held]
    tokens = common.query_start_loc[:-1][half].repeat_interleave(queries) + within
    half_ids = common.block_table_tensor[half][:, : len(column)][held]
    metadata = CPUAttentionMetadataBuilder.build(builder, 0, own)
    return Fp8Rows(tokens.long(), half_ids.long(), inside, slots.to(common.slot_mapping.dtype), metadata)


class HybridCpuImpl(BesideKv, CPUAttentionBackendImpl):
    """What both half forms share."""

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
            self.attend(layer, query, key, value, self.view(kv_cache), rows, output)
        return output

    def move_to_kv(self, layer: Any, half_ids: torch.Tensor, block_ids: torch.Tensor, tokens: int) -> None:
        """Write K and V of what half blocks [W] hold, `tokens` of it, into whole blocks [W]."""
        cache = layer.kv_cache
        block_tokens = cache.shape[2]
        held = self.keys_and_values(layer, reference.row_tokens(self.view(cache), half_ids, tokens))
        key, value = (part.to(cache.dtype).contiguous() for part in held)
        at = torch.arange(tokens)
        slots = block_ids[at // block_tokens] * block_tokens + at % block_tokens
        CPUAttentionBackendImpl.do_kv_cache_update(self, layer, key, value, cache, slots)

    def view(self, kv_cache: torch.Tensor) -> HalfBlockView:
        """The half blocks in a layer's cache."""
        raise NotImplementedError

    def rows(self, builder: HybridCpuBuilder, common: Any, half: torch.Tensor) -> Any:
        """What `attend` needs to know of the rows where `half` [B] says that they are of the half form."""
        raise NotImplementedError

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        view: HalfBlockView,
        rows: Any,
        output: torch.Tensor,
    ) -> None:
        """Write what the rows of the half form get into output [T, nh, hd]."""
        raise NotImplementedError

    def keys_and_values(self, layer: Any, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [S, nkv, hd] of a row from what the cache holds for it [S, w]."""
        raise NotImplementedError


class HiddenCpuImpl(HybridCpuImpl):
    """Everything is computed in twice the width of the model: what is left is the rounding of x itself, and stock's."""

    projection: Projection

    @classmethod
    def of(cls, stock: CPUAttentionBackendImpl, projection: Projection) -> Self:
        """The same attention, with hidden states."""
        wide = torch.float64 if projection.key_weight.dtype == torch.float32 else torch.float32
        return cls.taking_over(stock, projection=projection.to(wide))

    def write_hidden(self, x: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
        """Row t of x [>= T, H] into slot t [T], where that is of the half form."""
        reference.hidden_write(x, view, slots)

    def rows(self, builder: HybridCpuBuilder, common: Any, half: torch.Tensor) -> HiddenRows:
        return _hidden_rows(common, half)

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        view: HalfBlockView,
        rows: HiddenRows,
        output: torch.Tensor,
    ) -> None:
        if len(rows.decode_tokens):
            out = self._decodes(query[rows.decode_tokens], view, rows)
            output[rows.decode_tokens] = out.reshape(-1, *output.shape[1:]).to(output.dtype)
        for begin, end, length, block_ids in rows.prompts:
            context = reference.row_tokens(view, block_ids, length)
            out = self._prompt(query[begin:end], *self.keys_and_values(layer, context))
            output[begin:end] = out.view_as(output[begin:end])

    def _decodes(self, query: torch.Tensor, view: HalfBlockView, rows: HiddenRows) -> torch.Tensor:
        """[D, nh, hd] of all decode rows at once, on contexts padded to the longest; query [D, nh, hd]."""
        context, inside = _padded_contexts(view, rows.decode_table, rows.decode_lens)
        bias = torch.zeros(inside.shape).masked_fill(~inside, float("-inf"))[:, None]
        if self.alibi_slopes is not None:
            distance = torch.arange(inside.shape[1]) - (rows.decode_lens[:, None] - 1)
            bias = bias + self.alibi_slopes[None, :, None] * distance[:, None]
        weights, heads = self.projection, (self.num_heads, self.head_size)
        query, context = query.to(weights.weight.dtype), context.to(weights.weight.dtype)
        absorbed = absorb_query(query, weights.key_weight.unflatten(0, heads))
        scores = torch.einsum("rhc,rsc->rhs", absorbed, context) * self.scale + bias
        z = torch.einsum("rhs,rsc->rhc", scores.softmax(-1), context)
        value_bias = None if weights.value_bias is None else weights.value_bias.view(heads)
        return project_output(z, weights.value_weight.unflatten(0, heads), value_bias)

    def _prompt(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[T, nh, hd] attention of a row's last T tokens over its K and V [S, nkv, hd]."""
        tokens, context = query.shape[0], key.shape[0]
        grouped = query.to(key.dtype).unflatten(1, (self.num_kv_heads, -1))
        distance = torch.arange(context) - torch.arange(context - tokens, context)[:, None]
        scores = torch.einsum("tkgd,skd->kgts", grouped, key).flatten(0, 1) * self.scale
        if self.alibi_slopes is not None:
            scores += self.alibi_slopes[:, None, None] * distance
        probs = scores.masked_fill(distance > 0, float("-inf")).softmax(-1)
        out = torch.einsum("kgts,skd->tkgd", probs.unflatten(0, (self.num_kv_heads, -1)), value)
        return out.flatten(1, 2).to(query.dtype)

    def view(self, kv_cache: torch.Tensor) -> HalfBlockView:
        return hidden_view(kv_cache, self.projection.key_weight.shape[1])

    def keys_and_values(self, layer: Any, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, heads = self.projection, (self.num_heads, self.head_size)
        context = context.to(weights.key_weight.dtype)
        key = torch.nn.functional.linear(context, weights.key_weight, weights.key_bias)
        value = torch.nn.functional.linear(context, weights.value_weight, weights.value_bias)
        return key.unflatten(1, heads), value.unflatten(1, heads)


class Fp8CpuImpl(HybridCpuImpl):
    def view(self, kv_cache: torch.Tensor) -> HalfBlockView:
        return fp8_view(kv_cache)

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        reference.fp8_write(key, value, self.view(kv_cache), slot_mapping)

    def rows(self, builder: HybridCpuBuilder, common: Any, half: torch.Tensor) -> Fp8Rows:
        return _fp8_rows(builder, common, half)

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        view: HalfBlockView,
        rows: Fp8Rows,
        output: torch.Tensor,
    ) -> None:
        write, (pages, block) = CPUAttentionBackendImpl.do_kv_cache_update, rows.inside.shape
        half = rows.half_ids - view.num_blocks
        held = view.blocks()[half // view.ratio, half % view.ratio].flatten(0, 1)
        # What lies behind a row's end may be anything, also no number.
        parts = (part.masked_fill(~rows.inside.view(-1, 1, 1), 0) for part in self.keys_and_values(layer, held))
        old_key, old_value = (part.to(query.dtype).contiguous() for part in parts)
        cache = torch.zeros(pages, self.num_kv_heads, block, 2 * self.head_size, dtype=query.dtype)
        write(self, layer, old_key, old_value, cache, torch.arange(pages * block, dtype=rows.slots.dtype))
        write(self, layer, key[rows.tokens], value[rows.tokens], cache, rows.slots)
        asked = query[rows.tokens]
        out = torch.empty_like(asked)
        CPUAttentionBackendImpl.forward(self, layer, asked, key, value, cache, rows.metadata, out)
        output[rows.tokens] = out.view(-1, *output.shape[1:])

    def keys_and_values(self, layer: Any, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = reference.fp8_decoded(context.unflatten(-1, (self.num_kv_heads, 2, self.head_size)))
        return turned_back(both[..., 0, :]), turned_back(both[..., 1, :])


def _padded_contexts(view: HalfBlockView, table: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cache holds for rows [D, S, w], 0 behind a row's end, and which positions [D, S] are inside."""
    blocks = -(-int(lens.max()) // view.block_tokens)
    inside = torch.arange(blocks * view.block_tokens) < lens[:, None]
    # A stale id behind a row's end may be anything: half block 0 is read in its place.
    half = table[:, :blocks].long() - view.num_blocks
    half = half.where(inside[:, :: view.block_tokens], 0)
    held = view.blocks()[half // view.ratio, half % view.ratio].flatten(1, 2)
    return held.masked_fill(~inside[..., None], 0), inside
