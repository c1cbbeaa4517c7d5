"""The arithmetic of the forms, and that the design note shows it."""

from pathlib import Path

import pytest

from vllm_hybrid.cache.cost import SHAPES, AttentionShape, cost_table

OPT_13B = SHAPES["OPT-13B, Llama-2-13B"]
COPY, MATMUL = 4.3e12, 790e12  # an H200's, bytes/s and FLOP/s


def test_hidden_keeps_half_and_reads_as_much_as_kv() -> None:
    kv, hidden = OPT_13B.kv(), OPT_13B.absorbed()
    assert (kv.kept_bytes, hidden.kept_bytes) == (20480, 10240)
    assert hidden.read_bytes == pytest.approx(kv.read_bytes, rel=0.01)


def test_projecting_the_context_in_every_step_costs_an_order_of_magnitude_more() -> None:
    kv_s, absorbed_s, projected_s = (
        cost.step_seconds(rows=64, context_tokens=64_000, bytes_per_s=COPY, flops_per_s=MATMUL)
        for cost in (OPT_13B.kv(), OPT_13B.absorbed(), OPT_13B.projected())
    )
    assert absorbed_s < 1.1 * kv_s
    assert projected_s > 25 * kv_s


def test_the_fixed_price_is_the_weights_once() -> None:
    one, many = (
        OPT_13B.absorbed().step_seconds(rows, context_tokens=0, bytes_per_s=COPY, flops_per_s=MATMUL)
        for rows in (1, 100)
    )
    assert one == many == pytest.approx(2 * 5120 * 5120 * 2 / COPY)


def test_break_even_is_where_both_ways_cost_the_same_flops() -> None:
    for shape in SHAPES.values():
        tokens = shape.break_even_query_tokens()
        assert _absorbed_flops(shape, tokens - 1) <= _projected_flops(shape, tokens - 1)
        assert _absorbed_flops(shape, tokens) >= _projected_flops(shape, tokens)
    assert OPT_13B.break_even_query_tokens() == 132


def _absorbed_flops(shape: AttentionShape, query_tokens: int) -> int:
    return 4 * shape.heads * shape.hidden * query_tokens


def _projected_flops(shape: AttentionShape, query_tokens: int) -> int:
    return 4 * shape.hidden * shape.kv_width + 4 * shape.heads * shape.head_size * query_tokens


def test_the_design_note_shows_this_table() -> None:
    note = Path(__file__).resolve().parents[3] / "docs" / "design" / "hybrid_cache.md"
    assert cost_table() in note.read_text()
