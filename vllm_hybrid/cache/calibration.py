"""What each form costs in a step, measured at start on the kernels that will run: decodes of one layer, times layers.

A step's attention takes about so much per row and so much per token of context. Both forms are timed at a short and at
a long context on a cache of their own, before the real one is allocated; what is written is negligible beside what is
read. The figures travel to the scheduler in the KV cache spec.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_hybrid.cache.manager import HalfRow

ROWS = 8
SHORT, LONG = 64, 512
"""Tokens of context."""

REPEATS = 5


@dataclass(frozen=True, slots=True)
class FormSeconds:
    """Attention of all layers in a step."""

    row_s: float
    """Per decode."""

    token_s: float
    """Per token of its context."""


@dataclass(frozen=True, slots=True)
class StepCost:
    kv: FormSeconds
    half: FormSeconds

    def half_extra_s(self, rows: int, context_tokens: int) -> float:
        """Seconds that decodes over so many tokens of context take more in the half form; negative if it is faster."""
        more = self.half.row_s - self.kv.row_s, self.half.token_s - self.kv.token_s
        return rows * more[0] + context_tokens * more[1]

    def __str__(self) -> str:
        kv, half = (
            f"{1e6 * form.row_s:.3g} us per decode and {1e9 * form.token_s:.3g} ns per token of context"
            for form in (self.kv, self.half)
        )
        return f"in a step KV takes {kv}, the half form {half}"


def measured(layer: Any, name: str, layers: int, spec: Any, config: Any, device: torch.device) -> StepCost:
    """layer: an attention layer of the backend with both forms; name: its name; layers: how many are like it;
    spec: its KV cache spec; config: the `VllmConfig`."""
    bench = _Bench(layer, name, spec, config, device)
    found = {}
    for half in (False, True):
        short_s, long_s = (bench.seconds(half, context) for context in (SHORT, LONG))
        token_s = max(0.0, long_s - short_s) / (ROWS * (LONG - SHORT))
        row_s = max(0.0, short_s / ROWS - token_s * SHORT)
        found[half] = FormSeconds(layers * row_s, layers * token_s)
    return StepCost(found[False], found[True])


class _Bench:
    def __init__(self, layer: Any, name: str, spec: Any, config: Any, device: torch.device) -> None:
        self._layer, self._device, self._block = layer, device, spec.block_size
        self._blocks = 1 + ROWS * -(-LONG // spec.block_size)
        builder = layer.attn_backend.get_builder_cls()
        self._builder = builder(spec, [name], config, device)
        shape = self._blocks, spec.num_kv_heads, spec.block_size, 2 * spec.head_size
        self._cache = torch.randn(shape, device=device, dtype=torch.float32).to(spec.dtype)
        heads = layer.impl.num_heads, spec.num_kv_heads, spec.num_kv_heads
        self._qkv = [torch.randn(ROWS, n, spec.head_size, device=device).to(spec.dtype) for n in heads]

    def seconds(self, half: bool, context: int) -> float:
        """Of one layer's attention for decodes over so many tokens of context each."""
        layer, step = self._layer, getattr(self._layer.impl, "step", None)
        before, layer.kv_cache = layer.kv_cache, self._cache
        if step is not None:
            step.rows = [HalfRow(1, context)] * (ROWS if half else 0)
        try:
            metadata = self._builder.build(0, self._batch(half, context))
            output = torch.empty_like(self._qkv[0])

            def attend() -> None:
                layer.impl.forward(layer, *self._qkv, self._cache, metadata, output)

            attend()  # whatever is compiled at the first call
            return statistics.median(self._timed(attend) for _ in range(REPEATS))
        finally:
            layer.kv_cache = before
            if step is not None:
                step.rows = ()

    def _batch(self, half: bool, context: int) -> CommonAttentionMetadata:
        columns = -(-context // self._block)
        table = 1 + torch.arange(ROWS * columns, dtype=torch.int32, device=self._device).view(ROWS, columns)
        if half:
            table = table + self._blocks + self._layer.impl.view(self._cache).ratio
        starts = torch.arange(ROWS + 1, dtype=torch.int32)
        lens = torch.full((ROWS,), context, dtype=torch.int32)
        slots = table[:, (context - 1) // self._block].long() * self._block + (context - 1) % self._block
        return CommonAttentionMetadata(
            query_start_loc=starts.to(self._device), query_start_loc_cpu=starts, seq_lens=lens.to(self._device),
            num_reqs=ROWS, num_actual_tokens=ROWS, max_query_len=1, max_seq_len=context, block_table_tensor=table,
            slot_mapping=slots, seq_lens_cpu_upper_bound=lens,
        )  # fmt: skip

    def _timed(self, work: Callable[[], None]) -> float:
        self._wait()
        begin = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
