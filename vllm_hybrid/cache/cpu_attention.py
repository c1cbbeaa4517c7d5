"""vLLM's CPU attention with rows of the hidden form beside those of KV.

vLLM's kernel is shown the KV rows: to it, a row of the other form reads only the null block, and its result is
overwritten. Decode rows of the hidden form are computed together, absorbed; rows with more query tokens one by one, K
and V made from x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.absorbed import absorb_query, project_output
from vllm_hybrid.cache.kernels.view import HalfBlockView, hidden_view


@dataclass(slots=True)
class HiddenRows:
    """The rows of a batch that are of the hidden form."""

    decode_tokens: torch.Tensor
    """[D] where the query token of each decode row is."""

    decode_table: torch.Tensor
    """[D, W]"""

    decode_lens: torch.Tensor
    """[D]"""

    prompts: list[tuple[int, int, int, torch.Tensor]]
    """First and last query token, cached tokens and block ids [W] of each other row."""


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
        rows = _hidden_rows(common, half) if bool(half.any()) else None
        if rows is not None:
            first_half_slot = num_blocks * self.block_size
            query_lens = common.query_start_loc.diff().to(common.seq_lens.dtype)
            common = common.replace(
                block_table_tensor=common.block_table_tensor.masked_fill(half[:, None], 0),
                seq_lens=torch.where(half, query_lens, common.seq_lens),
                slot_mapping=_kv_slots(common.slot_mapping, first_half_slot),
            )
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.hidden_rows = rows
        return metadata


def _kv_slots(slots: torch.Tensor, first_half_slot: int) -> torch.Tensor:
    return slots.masked_fill(slots >= first_half_slot, -1)


def _hidden_rows(common: Any, half: torch.Tensor) -> HiddenRows:
    starts, ends = common.query_start_loc[:-1], common.query_start_loc[1:]
    decode = half & (ends - starts == 1)
    table, lens = common.block_table_tensor, common.seq_lens
    prompts = [
        (int(starts[row]), int(ends[row]), int(lens[row]), table[row].clone())
        for row in (half & (ends - starts > 1)).nonzero().flatten().tolist()
    ]
    return HiddenRows(starts[decode].long(), table[decode], lens[decode].long(), prompts)


class HybridCpuImpl(CPUAttentionBackendImpl):
    projection: Projection

    @classmethod
    def taking_over(cls, stock: CPUAttentionBackendImpl, projection: Projection) -> HybridCpuImpl:
        """The same attention, with the hidden form."""
        impl = cls.__new__(cls)
        impl.__dict__.update(stock.__dict__, projection=projection)
        return impl

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        num_blocks, _, block_tokens, _ = kv_cache.shape
        super().do_kv_cache_update(layer, key, value, kv_cache, _kv_slots(slot_mapping, num_blocks * block_tokens))

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
        rows = None if attn_metadata is None else attn_metadata.hidden_rows
        if rows is not None:
            view = hidden_view(kv_cache, self.projection.key_weight.shape[1])
            if len(rows.decode_tokens):
                self._decode(query, view, rows, output)
            for begin, end, length, block_ids in rows.prompts:
                x = reference.row_tokens(view, block_ids, length)
                output[begin:end] = self._prompt(query[begin:end], x).view_as(output[begin:end])
        return output

    def _decode(self, query: torch.Tensor, view: HalfBlockView, rows: HiddenRows, output: torch.Tensor) -> None:
        """All decode rows at once, on contexts padded to the longest."""
        weights = self.projection
        heads = (self.num_heads, self.head_size)
        x, inside = _padded_contexts(view, rows)
        absorbed = absorb_query(query[rows.decode_tokens], weights.key_weight.unflatten(0, heads))
        scores = torch.einsum("rhc,rsc->rhs", absorbed, x).float() * self.scale
        if self.alibi_slopes is not None:
            distance = torch.arange(x.shape[1]) - (rows.decode_lens[:, None] - 1)
            scores += self.alibi_slopes[None, :, None] * distance[:, None]
        probs = scores.masked_fill(~inside[:, None], float("-inf")).softmax(-1).to(x.dtype)
        z = torch.einsum("rhs,rsc->rhc", probs, x)
        bias = None if weights.value_bias is None else weights.value_bias.view(heads)
        out = project_output(z, weights.value_weight.unflatten(0, heads), bias)
        output[rows.decode_tokens] = out.reshape(-1, *output.shape[1:]).to(output.dtype)

    def _prompt(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[T, nh, hd] attention of a row's last T tokens over K and V made from all of its x."""
        weights, tokens, context = self.projection, query.shape[0], x.shape[0]
        key = torch.nn.functional.linear(x, weights.key_weight, weights.key_bias).view(context, self.num_heads, -1)
        value = torch.nn.functional.linear(x, weights.value_weight, weights.value_bias).view_as(key)
        distance = torch.arange(context) - torch.arange(context - tokens, context)[:, None]
        scores = torch.einsum("thd,shd->hts", query.float(), key.float()) * self.scale
        if self.alibi_slopes is not None:
            scores += self.alibi_slopes[:, None, None] * distance
        probs = scores.masked_fill(distance > 0, float("-inf")).softmax(-1)
        return torch.einsum("hts,shd->thd", probs, value.float()).to(query.dtype)


def _padded_contexts(view: HalfBlockView, rows: HiddenRows) -> tuple[torch.Tensor, torch.Tensor]:
    """x [D, S, H] of the decode rows, 0 behind a row's end, and which positions [D, S] are inside."""
    blocks = -(-int(rows.decode_lens.max()) // view.block_tokens)
    inside = torch.arange(blocks * view.block_tokens) < rows.decode_lens[:, None]
    # A stale id behind a row's end may be anything: half block 0 is read in its place.
    half = rows.decode_table[:, :blocks].long() - view.num_blocks
    half = half.where(inside[:, :: view.block_tokens], 0)
    x = view.blocks()[half // view.ratio, half % view.ratio].flatten(1, 2)
    return x.masked_fill(~inside[..., None], 0), inside
