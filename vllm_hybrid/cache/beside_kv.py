"""What attention with a half form does on every device: vLLM's own attention is shown the rows of KV only.

To it, a row of the half form has no context but the null block, and nothing of its is written; what it gets for such a
row is overwritten afterwards.
"""

from __future__ import annotations

from typing import Any, Self

import torch


def kv_rows(common: Any, half: torch.Tensor, first_half_slot: int) -> Any:
    """vLLM's `CommonAttentionMetadata` as its own attention sees it. half: [B] bool, the rows of the half form."""
    query_lens = common.query_start_loc.diff().to(common.seq_lens.dtype)
    return common.replace(
        block_table_tensor=common.block_table_tensor.masked_fill(half[:, None], 0),
        seq_lens=torch.where(half, query_lens, common.seq_lens),
        slot_mapping=_kv_slots(common.slot_mapping, first_half_slot),
    )


def _kv_slots(slots: torch.Tensor, first_half_slot: int) -> torch.Tensor:
    return slots.masked_fill(slots >= first_half_slot, -1)


class BesideKv:
    """Stands before an attention implementation of vLLM's in the MRO."""

    @classmethod
    def taking_over(cls, stock: Any, **more: Any) -> Self:
        """The same attention, with the half form."""
        impl = cls.__new__(cls)
        impl.__dict__.update(stock.__dict__, **more)
        return impl

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """vLLM's write of K and V, without the slots of half blocks. kv_cache: [N, nkv, bs, 2 * hd]."""
        num_blocks, _, block_tokens, _ = kv_cache.shape
        slots = _kv_slots(slot_mapping, num_blocks * block_tokens)
        super().do_kv_cache_update(layer, key, value, kv_cache, slots)  # type: ignore[misc]
