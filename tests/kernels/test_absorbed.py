"""Decode attention from hidden states against plain attention over K and V, and against its own reference."""

import pytest
import torch

from tests.kernels.batch import KV_ROW, LENGTHS, PADDING_ROW, Batch, make_batch, make_cache
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.absorbed import (
    DecodeTiles,
    absorb_query,
    choose_tiles,
    hidden_decode,
    project_output,
    tile_offsets,
)
from vllm_hybrid.cache.kernels.hidden_write import hidden_write
from vllm_hybrid.cache.kernels.view import HalfBlockView, hidden_view

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CASES = [
    # layout, heads, bs, head size, H, dtype, tile tokens, score parts, value parts, ALiBi
    ("LBNHC", 4, 16, 32, 128, torch.float32, 16, 1, 1, False),
    ("LBNHC", 4, 16, 32, 128, torch.float32, 16, 3, 4, True),
    ("LBHNC", 5, 16, 32, 160, torch.float32, 32, 2, 2, False),
    ("BLNHC", 5, 8, 32, 160, torch.bfloat16, 16, 4, 3, True),
    ("BLHNC", 8, 16, 16, 128, torch.float16, 64, 2, 1, False),
    ("LBNHC", 4, 16, 32, 48, torch.float32, 16, 2, 2, False),  # heads * head size > H: R = 5
    ("LBNHC", 4, 32, 32, 100, torch.bfloat16, 16, 2, 8, True),  # H no multiple of anything, more parts than tiles
    ("LBNHC", 40, 16, 8, 320, torch.bfloat16, 16, 2, 2, False),
]


def filled_cache(
    layout: str, heads: int, block_tokens: int, head_size: int, hidden: int, dtype: torch.dtype
) -> tuple[HalfBlockView, Batch, torch.Tensor]:
    """A view, a batch, and the x that was written for its half rows."""
    torch.manual_seed(0)
    view = hidden_view(make_cache(layout, heads, block_tokens, head_size, dtype), hidden)
    batch = make_batch(view)
    slots = batch.slots(view)
    x = torch.randn(len(slots), hidden).to(dtype)
    hidden_write(x, view, slots)
    return view, batch, x


def decode(query: torch.Tensor, view: HalfBlockView, batch: Batch, scale: float, tiles: DecodeTiles, **options):
    half_lens = torch.tensor([LENGTHS.get(row, 0) for row in range(len(batch.seq_lens))])
    first_tile, total = tile_offsets(half_lens, tiles.tokens)
    return hidden_decode(query, view, batch.table, batch.seq_lens, first_tile, total, scale, tiles, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}heads-H{case[4]}-{str(case[5])[6:]}")
def test_decode_is_attention_over_keys_and_values(case) -> None:
    layout, heads, block_tokens, head_size, hidden, dtype, tokens, score_parts, value_parts, alibi = case
    view, batch, x = filled_cache(layout, heads, block_tokens, head_size, hidden, dtype)
    tiles = DecodeTiles(tokens, depth=32, columns=32, score_parts=score_parts, value_parts=value_parts)
    slopes = torch.rand(heads) * 0.1 if alibi else None
    scale = head_size**-0.5
    w_key, w_value = ((torch.randn(heads, head_size, hidden) / hidden**0.5).to(dtype) for _ in range(2))
    b_key, b_value = (torch.randn(heads, head_size).to(dtype) for _ in range(2))
    query = torch.randn(len(batch.seq_lens), heads, head_size).to(dtype)
    absorbed = absorb_query(query, w_key)
    z = decode(absorbed, view, batch, scale, tiles, slopes=slopes, out=torch.full_like(absorbed, float("nan")))

    own = reference.hidden_decode(absorbed, view, batch.table, batch.seq_lens, scale, slopes)
    out = project_output(z, w_value, b_value)
    starts = batch.starts().tolist()
    for place, row in enumerate(batch.half_rows()):
        assert (z[row] - own[row]).norm() <= TOLERANCE[dtype] * own[row].norm()
        tokens_x = x[starts[place] : starts[place + 1]].double()
        key = torch.einsum("sc,hdc->shd", tokens_x, w_key.double()) + b_key.double()
        value = torch.einsum("sc,hdc->shd", tokens_x, w_value.double()) + b_value.double()
        want = reference.kv_decode(query[row], key, value, scale, slopes)
        # Rounding of the absorbed query and of z comes on top: each about that of one more bf16 operation.
        assert (out[row] - want).norm() <= 2 * TOLERANCE[dtype] * want.norm()
    assert bool(z[[KV_ROW, PADDING_ROW]].isnan().all()), "rows of the other form were written"
    assert bool((z[5] == 0).all()), "a row without tokens"


def test_large_scores_neither_overflow_nor_lose_the_sum() -> None:
    view, batch, _ = filled_cache("LBNHC", 4, 16, 32, 128, torch.float32)
    query = torch.randn(len(batch.seq_lens), 4, 128) * 300
    tiles = DecodeTiles(tokens=16, depth=64, columns=64, score_parts=2, value_parts=3)
    z = decode(query, view, batch, 1.0, tiles)
    own = reference.hidden_decode(query, view, batch.table, batch.seq_lens, 1.0)
    rows = batch.half_rows()
    # One token takes nearly all the weight; a score of 10^4 leaves fp32 three digits behind the point.
    assert (z[rows] - own[rows]).norm() <= 1e-3 * own[rows].norm()


def test_a_zeroed_cache_is_noticed() -> None:
    view, batch, _ = filled_cache("LBNHC", 4, 16, 32, 128, torch.float32)
    query = torch.randn(len(batch.seq_lens), 4, 128)
    want = reference.hidden_decode(query, view, batch.table, batch.seq_lens, 0.2)
    view.data.zero_()
    z = decode(query, view, batch, 0.2, DecodeTiles(tokens=16))
    assert (z[0] - want[0]).norm() > 0.5 * want[0].norm()


def test_tiles_fill_the_device_and_split_values_for_few_rows_only() -> None:
    assert choose_tiles(rows=1, max_seq_len=8192, multiprocessors=132).score_parts == 128
    assert choose_tiles(rows=1, max_seq_len=8192, multiprocessors=132).value_parts == 4
    assert choose_tiles(rows=128, max_seq_len=8192, multiprocessors=132) == DecodeTiles(score_parts=3)
    assert choose_tiles(rows=2, max_seq_len=40, multiprocessors=132) == DecodeTiles(score_parts=1)
