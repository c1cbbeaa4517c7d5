"""Which rows of a batch are of the half form, put together on the device without asking it anything.

A step's block table is on the device only, and asking which of its rows are of the half form would make the host wait
in every step. The scheduler knows how many there are and how long (`HalfRow`), the device knows where they stand. Both
sort them by length, so what the host plans fits what the device gathers; rows that are equally long are alike to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_hybrid.cache.manager import HalfRow

TILE_TOKENS_READ_AHEAD = 32
"""vLLM's attention kernel looks up the blocks of a whole tile, also where a row ends within it."""


@dataclass(slots=True)
class HalfStep:
    """What the worker knows of the step at hand; shared by the metadata builder and all layers."""

    max_rows: int
    """The most rows that a step can have."""

    rows: Sequence[HalfRow] = ()


@dataclass(slots=True)
class InPlaceTokens:
    """Query tokens that read half blocks in place, each as a row of its own."""

    at: torch.Tensor
    """[D] int64: where in the batch."""

    table: torch.Tensor
    """[D, W] int32"""

    lens: torch.Tensor
    """[D] int32: cached tokens that it sees, itself included."""

    first_tile: torch.Tensor
    """[D] int32"""

    total_tiles: int
    max_len: int


@dataclass(slots=True)
class Row:
    """One row with many query tokens, which is read out first: its blocks then lie side by side, as pages 0, 1, 2."""

    at: torch.Tensor
    """[T] int64: where in the batch its query tokens are."""

    table: torch.Tensor
    """[1, W] int32"""

    tokens: int
    """Cached tokens, this step's included."""

    block_tokens: int
    starts: torch.Tensor
    """[2] int32: 0, and the tokens of all its blocks, the last one whole."""

    query_start: torch.Tensor
    """[2] int32: 0, T"""

    lens: torch.Tensor
    """[1] int32: `tokens`"""

    pages: torch.Tensor
    """[1, W'] int32: 0, 1, 2, ..."""

    @property
    def blocks(self) -> int:
        return -(-self.tokens // self.block_tokens)


@dataclass(slots=True)
class HalfRows:
    in_place: InPlaceTokens | None = None
    read_out: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's batch on the device."""

    starts: torch.Tensor
    """[B] int32"""

    queries: torch.Tensor
    """[B] int32: query tokens of each row."""

    lens: torch.Tensor
    table: torch.Tensor
    half: torch.Tensor
    """[B] bool"""

    block_tokens: int

    def longest(self, chosen: torch.Tensor, count: int) -> torch.Tensor:
        """[count] the chosen rows, the longest first."""
        key = self.lens.long() * 2**32 + self.queries
        return key.where(chosen, -1).argsort(descending=True)[:count]

    def columns(self, rows: torch.Tensor, max_len: int) -> torch.Tensor:
        """[n, W] the block ids of rows, as far as the longest goes, and what a kernel looks up behind it."""
        most = -(-(max_len + TILE_TOKENS_READ_AHEAD) // self.block_tokens)
        return self.table[:, :most][rows]


def _sorted(rows: Sequence[HalfRow]) -> list[HalfRow]:
    return sorted(rows, key=lambda row: (row.context, row.query), reverse=True)


def _batch(common: Any, half: torch.Tensor, block_tokens: int) -> _Batch:
    starts = common.query_start_loc[:-1]
    queries = common.query_start_loc[1:] - starts
    return _Batch(starts, queries, common.seq_lens, common.block_table_tensor, half, block_tokens)


def plan_rows(
    common: Any, half: torch.Tensor, step: HalfStep, block_tokens: int, in_place_up_to: int, tile_tokens: int
) -> HalfRows:
    """Rows of up to `in_place_up_to` query tokens are read in place, others read out. If that were more tokens in place
    than the step may have rows, only decodes are, which bounds the memory that it takes.

    common: vLLM's `CommonAttentionMetadata`; half: [B] bool on the device, true for the step's rows and no others.
    """
    batch, rows = _batch(common, half, block_tokens), step.rows
    if sum(row.query for row in rows if row.query <= in_place_up_to) > step.max_rows:
        in_place_up_to = 1
    few: list[HalfRow] = []
    many: list[HalfRow] = []
    for row in _sorted(rows):
        (few if row.query <= in_place_up_to else many).append(row)
    short = half & (batch.queries <= in_place_up_to)
    found = HalfRows()
    if few:
        found.in_place = _in_place(batch, batch.longest(short, len(few)), few, tile_tokens)
    if many:
        order = batch.longest(half & ~short, len(many))
        found.read_out = [_row(batch, order[place : place + 1], row) for place, row in enumerate(many)]
    return found


def _in_place(batch: _Batch, order: torch.Tensor, rows: list[HalfRow], tile_tokens: int) -> InPlaceTokens:
    tokens = sum(row.query for row in rows)
    row_of, inside = _query_tokens(batch.queries[order], tokens)
    row_of = order[row_of]
    lens = (batch.lens[row_of] - batch.queries[row_of] + inside + 1).int()
    tiles = (lens + tile_tokens - 1) // tile_tokens
    total = sum(-(-(row.context - left) // tile_tokens) for row in rows for left in range(row.query))
    max_len = rows[0].context
    at = batch.starts[row_of].long() + inside
    return InPlaceTokens(at, batch.columns(row_of, max_len), lens, (tiles.cumsum(0) - tiles).int(), total, max_len)


def _query_tokens(queries: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `tokens` query tokens, one row's after the other's: the row [T] and the place in it [T]."""
    rows = torch.arange(len(queries), device=queries.device)
    queries = queries.long()
    row = torch.repeat_interleave(rows, queries, output_size=tokens)
    return row, torch.arange(tokens, device=queries.device) - (queries.cumsum(0) - queries)[row]


def _row(batch: _Batch, place: torch.Tensor, row: HalfRow) -> Row:
    """place: [1] where in the batch. (An index without dimensions would be asked for its value.)"""
    device, block = place.device, batch.block_tokens
    blocks = -(-row.context // block)
    pages = torch.arange(blocks + TILE_TOKENS_READ_AHEAD // block + 1, dtype=torch.int32, device=device)
    at = batch.starts[place].long() + torch.arange(row.query, device=device)
    table = batch.table[:, :blocks].index_select(0, place)
    lens = torch.full((1,), row.context, dtype=torch.int32, device=device)
    starts, query_start = zero_to(blocks * block, device), zero_to(row.query, device)
    return Row(at, table, row.context, block, starts, query_start, lens, pages[None])


def zero_to(end: int, device: torch.device) -> torch.Tensor:
    """[2] int32: 0 and `end`, made on the device."""
    return torch.arange(2, dtype=torch.int32, device=device) * end
