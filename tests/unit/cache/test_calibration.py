"""Figures of a form come out of the times of its attention, whatever runs it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_hybrid.cache import calibration
from vllm_hybrid.cache.calibration import LONG, ROWS, SHORT, FormSeconds, StepCost, measured


class Builder:
    def __init__(self, spec, names, config, device) -> None:
        self.names = names

    def build(self, common_prefix_len, common):
        return common


class Impl:
    """Takes 2 us per row and 3 ns per token in KV, 5 us and 4 ns in the half form, on a clock of its own."""

    num_heads = 2

    def __init__(self) -> None:
        self.now_s, self.calls = 0.0, 0

    def view(self, cache):
        return SimpleNamespace(ratio=2)

    def forward(self, layer, query, key, value, cache, common, output) -> None:
        half = common.block_table_tensor[:, 0] >= len(cache)
        assert bool(half.all()) or not bool(half.any())
        row_s, token_s = (5e-6, 4e-9) if bool(half.all()) else (2e-6, 3e-9)
        assert int(common.block_table_tensor.max()) < len(cache) * 3 and layer.kv_cache is cache
        self.now_s += row_s * len(query) + token_s * int(common.seq_lens.sum())
        self.calls += 1


def test_a_row_and_a_token_of_each_form(monkeypatch) -> None:
    impl = Impl()
    backend = SimpleNamespace(get_builder_cls=lambda: Builder)
    layer = SimpleNamespace(impl=impl, attn_backend=backend, kv_cache="none yet")
    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.float32)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: impl.now_s)
    cost = measured(layer, "l", 10, spec, None, torch.device("cpu"))
    assert cost.kv.row_s == pytest.approx(20e-6) and cost.kv.token_s == pytest.approx(30e-9)
    assert cost.half.row_s == pytest.approx(50e-6) and cost.half.token_s == pytest.approx(40e-9)
    assert layer.kv_cache == "none yet" and impl.calls > 4 and SHORT < LONG and ROWS > 1
    assert cost.half_extra_s(2, 1000) == pytest.approx(2 * 30e-6 + 1000 * 10e-9)
    assert "50 us per decode and 40 ns per token" in str(cost)


def test_a_faster_half_form_saves_time() -> None:
    cost = StepCost(FormSeconds(1e-6, 2e-9), FormSeconds(1e-6, 1e-9))
    assert cost.half_extra_s(1, 100) == pytest.approx(-1e-7)
