"""The Triton kernels in the place of their references, in a real engine, under the interpreter: stock's tokens."""

from __future__ import annotations

import pytest

from tests.engine.engines import Call, running_engine, scheduler_of
from tests.engine.half_blocks import answers, check_books, half_cache
from vllm_hybrid.cache.cpu_attention import HiddenCpuImpl
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.absorbed import absorb_query, choose_tiles, hidden_decode, project_output, tile_offsets
from vllm_hybrid.cache.kernels.hidden_write import hidden_write

pytestmark = pytest.mark.e2e

LOAD = [Call(i, f"r{i}", tuple((13 * i + 7 * j) % 900 + 50 for j in range(30 + 20 * i)), 6) for i in range(4)]


def decode_by_kernels(self, layer, query, view, rows):
    weights, heads = self.projection, (self.num_heads, self.head_size)
    tiles = choose_tiles(len(query), int(rows.decode_lens.max()), multiprocessors=2)
    first_tile, total = tile_offsets(rows.decode_lens, tiles.tokens)
    weights = weights.to(query.dtype)
    absorbed = absorb_query(query, weights.key_weight.unflatten(0, heads))
    where = rows.decode_table.int(), rows.decode_lens.int(), first_tile, total
    z = hidden_decode(absorbed, view, *where, self.scale, tiles, self.alibi_slopes)
    bias = None if weights.value_bias is None else weights.value_bias.view(heads)
    return project_output(z, weights.value_weight.unflatten(0, heads), bias)


def test_written_and_read_by_the_kernels(tiny_opt, monkeypatch) -> None:
    with running_engine(tiny_opt) as engine:
        stock = answers(engine, LOAD)
    monkeypatch.setattr(reference, "hidden_write", hidden_write)
    monkeypatch.setattr(HiddenCpuImpl, "decode_rows", decode_by_kernels)
    with running_engine(tiny_opt, half_cache()) as engine:
        scheduler_of(engine).begin("odd")
        got = answers(engine, LOAD)
        check_books(engine)
        assert scheduler_of(engine).mixed_steps > 0
    worst = max(got.differences(stock))
    print(f"kernels: log probabilities differ by {worst:.1e} at most")
    assert got.tokens == stock.tokens and worst <= 1e-5
