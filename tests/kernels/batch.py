"""A small cache of some layout and a batch with rows of both forms, for the tests of all kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_hybrid.cache.kernels.view import HalfBlockView

NUM_BLOCKS, NUM_LAYERS, LAYER = 9, 3, 1
GARBAGE = 10**6
# A ragged row, a KV row, one token, padding, whole blocks only, and a row of the half form that has no token.
LENGTHS = {0: 37, 2: 1, 4: 32, 5: 0}
KV_ROW, PADDING_ROW = 1, 3
ROWS = 6


def make_cache(layout: str, heads: int, block_tokens: int, head_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Layer 1 of 3 as [N, nkv, bs, 2*hd], full of noise."""
    sizes = {"L": NUM_LAYERS, "B": NUM_BLOCKS, "N": block_tokens, "H": heads, "C": 2 * head_size}
    whole = torch.randn([sizes[axis] for axis in layout]).to(dtype)
    order = [layout.index(axis) for axis in "LBHNC"]
    return whole.permute(order)[LAYER]


@dataclass(slots=True)
class Batch:
    table: torch.Tensor
    """[6, W]: ids beyond a row's length are stale garbage, as vLLM leaves them."""

    seq_lens: torch.Tensor

    def half_rows(self) -> list[int]:
        return [row for row, length in LENGTHS.items() if length]

    def slots(self, view: HalfBlockView) -> torch.Tensor:
        """Where every token of the half rows lies, then a KV token and a padding token."""
        slots = [
            int(self.table[row, at // view.block_tokens]) * view.block_tokens + at % view.block_tokens
            for row in self.half_rows()
            for at in range(LENGTHS[row])
        ]
        return torch.tensor([*slots, 5 * view.block_tokens + 3, -1])

    def half_table(self) -> torch.Tensor:
        return self.table[self.half_rows()]

    def starts(self) -> torch.Tensor:
        lengths = torch.tensor([0, *(LENGTHS[row] for row in self.half_rows())])
        return lengths.cumsum(0).int()


def make_batch(view: HalfBlockView) -> Batch:
    """Half blocks in random order, never those of block 0, which is vLLM's null block."""
    table = torch.full((ROWS, 12), GARBAGE, dtype=torch.int32)
    free = (torch.randperm(view.ratio * (NUM_BLOCKS - 1)) + view.ratio + NUM_BLOCKS).int()
    used = 0
    for row, length in LENGTHS.items():
        count = max(1, -(-length // view.block_tokens))
        table[row, :count] = free[used : used + count]
        used += count
    table[KV_ROW, 0] = 5
    table[PADDING_ROW] = 0
    seq_lens = torch.zeros(ROWS, dtype=torch.int32)
    for row, length in LENGTHS.items():
        seq_lens[row] = length
    seq_lens[KV_ROW] = 7
    return Batch(table, seq_lens)


def raw_bytes(cache: torch.Tensor) -> torch.Tensor:
    """Every byte of the storage, the other layers' too."""
    return torch.tensor(cache.untyped_storage(), dtype=torch.uint8)
