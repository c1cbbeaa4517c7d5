"""The attention backend for GPUs, under the interpreter: a batch of rows of all kinds through builder and forward.

Beside KV rows (a decode, a chunk), rows of the half form that decode, that compute a few tokens and many, and padding,
on a block table with garbage behind every row, held against plain attention in float64 over what each row was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec

from tests.interpreted import vllm_kernels_interpreted
from tests.kernels.batch import GARBAGE, make_cache
from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.cost import SHAPES
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.manager import HalfRow

HEADS, HEAD_SIZE, BLOCK_TOKENS, HIDDEN = 4, 32, 16, 128
NAME = "layers.0.attn"
# Of each row: its form, query tokens, cached tokens with them.
ROWS = [
    ("half", 1, 40),
    ("kv", 1, 27),
    ("half", 3, 20),
    ("half", 14, 30),
    ("kv", 5, 16),
    ("half", 1, 1),
    ("half", 9, 9),
    ("half", 1, 10),
]
PADDING = 2
NEARLY = {torch.float32: 2e-6, torch.float16: 4e-3}


@pytest.fixture(scope="module")
def gpu_attention() -> Iterator[Any]:
    with vllm_kernels_interpreted() as module:
        yield module


@dataclass
class Fed:
    """What every row was given: x [S, H], and K and V [S, nkv, hd] of it."""

    x: list[torch.Tensor]
    key: list[torch.Tensor]
    value: list[torch.Tensor]


class Bench:
    """One layer with its cache, in a batch of `ROWS`."""

    def __init__(self, layout: str, kv_heads: int, dtype: torch.dtype, alibi: bool, fp8: bool, module: Any) -> None:
        torch.manual_seed(1)
        self.dtype, self.kv_heads = dtype, kv_heads
        self.cache = make_cache(layout, kv_heads, BLOCK_TOKENS, HEAD_SIZE, dtype)
        self.slopes = [0.05 * (head + 1) for head in range(HEADS)] if alibi else None
        width = kv_heads * HEAD_SIZE
        weight = (torch.randn(2 * width, HIDDEN) / HIDDEN**0.5).to(dtype)
        self.projection = Projection(weight, torch.randn(2 * width).to(dtype))
        from vllm_hybrid.cache.gpu_rows import HalfStep

        self.step = HalfStep(len(ROWS))
        stock = module.TritonAttentionImpl(
            HEADS, HEAD_SIZE, HEAD_SIZE**-0.5, kv_heads, self.slopes, None, "auto", attn_type="decoder"
        )
        if fp8:
            self.impl = module.Fp8TritonImpl.taking_over(stock, step=self.step, block_tokens=BLOCK_TOKENS)
        else:
            more = {"projection": self.projection}
            self.impl = module.HiddenTritonImpl.taking_over(stock, step=self.step, block_tokens=BLOCK_TOKENS, **more)
        one = torch.ones(())
        scales = {"_k_scale": one, "_v_scale": one, "_q_scale": one, "_k_scale_float": 1.0, "_v_scale_float": 1.0}
        self.layer = SimpleNamespace(impl=self.impl, kv_cache=self.cache, **scales)
        self.builder = self._builder(module)
        self.fed = self._fed()
        self.table = self._table()

    def _builder(self, module: Any) -> Any:
        compilation = SimpleNamespace(
            static_forward_context={NAME: self.layer}, cudagraph_mode=None, cudagraph_capture_sizes=[]
        )
        model = SimpleNamespace(
            get_num_attention_heads=lambda parallel: HEADS,
            get_num_kv_heads=lambda parallel: self.kv_heads,
            get_head_size=lambda: HEAD_SIZE,
            rswa_window=None,
        )
        config = SimpleNamespace(compilation_config=compilation, model_config=model, parallel_config=None)
        spec = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=self.kv_heads, head_size=HEAD_SIZE, dtype=self.dtype
        )
        return module.HybridTritonBuilder(spec, [NAME], config, torch.device("cpu"))

    def _fed(self) -> Fed:
        x = [torch.randn(context, HIDDEN).to(self.dtype) for _, _, context in ROWS]
        weights = self.projection
        both = [torch.nn.functional.linear(part, weights.weight, weights.bias) for part in x]
        parts = [part.view(len(part), 2, self.kv_heads, HEAD_SIZE).unbind(1) for part in both]
        return Fed(x, [key for key, _ in parts], [value for _, value in parts])

    def _table(self) -> torch.Tensor:
        """Halves from the end of the pool, whole blocks from its start, garbage behind."""
        blocks, ratio = len(self.cache), self.impl.view(self.cache).ratio
        table = torch.full((len(ROWS) + PADDING, 6), GARBAGE, dtype=torch.int32)
        whole, half = iter(range(1, blocks)), iter(reversed(range(blocks, blocks + ratio * blocks)))
        for row, (form, _, context) in enumerate(ROWS):
            for column in range(-(-context // BLOCK_TOKENS)):
                table[row, column] = next(half if form == "half" else whole)
        table[len(ROWS) :] = 0
        used = [int(block) for block in table[table < GARBAGE].unique() if block]
        physical = [block if block < blocks else (block - blocks) // ratio for block in used]
        assert len(set(physical[:3])) == 3 and not {*physical[:3]} & {*physical[3:]}
        return table

    def slots(self, row: int, begin: int, end: int) -> torch.Tensor:
        at = torch.arange(begin, end)
        return self.table[row].long()[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS

    def write(self, row: int, begin: int, end: int) -> torch.Tensor:
        """Through the layer's own writes, as a step would; the slots."""
        slots = self.slots(row, begin, end)
        key, value = (part[row][begin:end].contiguous() for part in (self.fed.key, self.fed.value))
        self.impl.do_kv_cache_update(self.layer, key, value, self.cache, slots)
        if hasattr(self.impl, "write_hidden"):
            self.impl.write_hidden(self.fed.x[row][begin:end], self.impl.view(self.cache), slots)
        return slots

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's queries and results [T, nh, hd]."""
        for row, (_, query, context) in enumerate(ROWS):
            self.write(row, 0, context - query)
        slots = torch.cat([self.write(row, context - query, context) for row, (_, query, context) in enumerate(ROWS)])
        self.step.rows = [HalfRow(query, context) for form, query, context in ROWS if form == "half"]
        queries = [query for _, query, _ in ROWS]
        starts = torch.tensor([0, *queries, *[0] * PADDING]).cumsum(0).int()
        lens = torch.tensor([*(context for _, _, context in ROWS), *[0] * PADDING]).int()
        common = CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=lens, num_reqs=len(lens),
            num_actual_tokens=sum(queries), max_query_len=max(queries), max_seq_len=int(lens.max()),
            block_table_tensor=self.table, slot_mapping=slots,
        )  # fmt: skip
        metadata = self.builder.build(0, common)
        query = torch.randn(sum(queries), HEADS, HEAD_SIZE).to(self.dtype)
        output = torch.full_like(query, float("nan"))
        own = [range(context - tokens, context) for _, tokens, context in ROWS]
        fed = [torch.cat([part[at] for part, at in zip(parts, own)]) for parts in (self.fed.key, self.fed.value)]
        self.impl.forward(self.layer, query, *fed, self.cache, metadata, output)
        return query, output

    def expected(self, query: torch.Tensor, row: int) -> torch.Tensor:
        """Attention of a row's query tokens as plainly as possible."""
        before = sum(tokens for _, tokens, _ in ROWS[:row])
        _, tokens, context = ROWS[row]
        slopes = None if self.slopes is None else torch.tensor(self.slopes)
        return torch.stack(
            [
                reference.kv_decode(
                    query[before + i],
                    self.fed.key[row][: context - tokens + i + 1],
                    self.fed.value[row][: context - tokens + i + 1],
                    HEAD_SIZE**-0.5,
                    slopes,
                )
                for i in range(tokens)
            ]
        )

    def errors(self, query: torch.Tensor, output: torch.Tensor) -> dict[str, float]:
        """The largest error of any row of each form."""
        found = {"kv": 0.0, "half": 0.0}
        for row, (form, tokens, _) in enumerate(ROWS):
            before = sum(queries for _, queries, _ in ROWS[:row])
            error = (output[before : before + tokens].double() - self.expected(query, row)).abs().max()
            found[form] = max(found[form], float(error.nan_to_num(1e9)))
        return found


@pytest.mark.parametrize(
    ("layout", "dtype", "alibi"),
    [("LBNHC", torch.float32, False), ("LBHNC", torch.float32, True), ("BLNHC", torch.float16, True)],
)
def test_rows_of_hidden_states_get_what_those_of_kv_get(gpu_attention, layout, dtype, alibi) -> None:
    bench = Bench(layout, HEADS, dtype, alibi, fp8=False, module=gpu_attention)
    bench.impl.in_place_up_to = 4  # rows of 1 and 3 tokens are absorbed, those of 14 and 9 projected
    errors = bench.errors(*bench.run())
    assert errors["kv"] <= NEARLY[dtype] and errors["half"] <= 3 * NEARLY[dtype], errors


@pytest.mark.parametrize(("layout", "kv_heads", "dtype"), [("LBNHC", 2, torch.float32), ("BLHNC", 4, torch.float16)])
def test_rows_in_fp8_get_nearly_that(gpu_attention, layout, kv_heads, dtype) -> None:
    bench = Bench(layout, kv_heads, dtype, False, fp8=True, module=gpu_attention)
    assert bench.impl.in_place_up_to == 5
    errors = bench.errors(*bench.run())
    assert errors["kv"] <= NEARLY[dtype] and NEARLY[dtype] < errors["half"] <= 0.1, errors
    # In place and read out, where the step's own tokens are exact: nearly the same.
    in_place_up_to, results = bench.impl.in_place_up_to, []
    for bench.impl.in_place_up_to in (in_place_up_to, 1, 20):
        torch.manual_seed(2)
        results.append(bench.run()[1])
    assert all(0 < float((results[0] - other).abs().max()) <= 0.1 for other in results[1:])


def test_with_more_short_chunks_than_rows_only_decodes_are_absorbed(gpu_attention) -> None:
    bench = Bench("LBNHC", HEADS, torch.float32, False, fp8=False, module=gpu_attention)
    bench.impl.in_place_up_to, bench.step.max_rows = 14, 8
    assert max(bench.errors(*bench.run()).values()) <= 3 * NEARLY[torch.float32]
    bench.step.rows = [HalfRow(1, 20), HalfRow(14, 30)]
    common = SimpleNamespace(
        query_start_loc=torch.tensor([0, 1, 15]).int(), seq_lens=torch.tensor([20, 30]).int(),
        block_table_tensor=bench.table[[0, 3]],
    )  # fmt: skip
    rows = bench.impl.half_rows(common, torch.tensor([True, True]))
    assert len(rows.in_place.at) == 1 and [row.tokens for row in rows.read_out] == [30]


@pytest.mark.parametrize("fp8", [False, True])
def test_the_plan_of_a_step_asks_the_device_nothing(gpu_attention, fp8: bool) -> None:
    """Fake tensors have no values: whatever would read one raises."""
    bench = Bench("LBNHC", HEADS, torch.float32, False, fp8=fp8, module=gpu_attention)
    bench.step.rows = [HalfRow(query, context) for form, query, context in ROWS if form == "half"]
    starts = torch.tensor([0, *(query for _, query, _ in ROWS)]).cumsum(0).int()
    lens = torch.tensor([context for _, _, context in ROWS]).int()
    table = bench.table[: len(ROWS)]
    with FakeTensorMode() as fake:
        on_device = [fake.from_tensor(part) for part in (starts, lens, table)]
        common = SimpleNamespace(query_start_loc=on_device[0], seq_lens=on_device[1], block_table_tensor=on_device[2])
        half = on_device[2][:, 0] >= len(bench.cache)
        rows = bench.impl.half_rows(common, half)
    parts = [rows.in_place, *rows.read_out]
    assert sum(len(part.at) for part in parts) == sum(row.query for row in bench.step.rows)


def test_a_step_without_half_rows_is_stocks(gpu_attention) -> None:
    bench = Bench("LBNHC", HEADS, torch.float32, False, fp8=False, module=gpu_attention)
    common = CommonAttentionMetadata(
        query_start_loc=torch.tensor([0, 1]).int(), query_start_loc_cpu=torch.tensor([0, 1]).int(),
        seq_lens=torch.tensor([5]).int(), num_reqs=1, num_actual_tokens=1, max_query_len=1, max_seq_len=5,
        block_table_tensor=bench.table[1:2], slot_mapping=torch.tensor([20]),
    )  # fmt: skip
    metadata = bench.builder.build(0, common)
    assert metadata.half_rows is None
    assert metadata.block_table is common.block_table_tensor and metadata.slot_mapping is common.slot_mapping


@pytest.mark.parametrize(("fp8", "nearly"), [(False, 1e-5), (True, 0.1)])
def test_what_half_blocks_hold_is_moved_to_kv(gpu_attention, fp8: bool, nearly: float) -> None:
    bench = Bench("LBNHC", HEADS, torch.float32, False, fp8=fp8, module=gpu_attention)
    row, tokens = 0, 37
    bench.write(row, 0, tokens)
    whole = torch.tensor([6, 2, 4])
    bench.impl.move_to_kv(bench.layer, bench.table[row, :3], whole, tokens)
    held = bench.cache[whole].transpose(1, 2).flatten(0, 1)[:tokens]
    want = torch.cat([bench.fed.key[row][:tokens], bench.fed.value[row][:tokens]], -1)
    assert torch.allclose(held, want, atol=nearly)


@pytest.mark.parametrize("fp8", [False, True])
def test_what_a_step_takes_beside_the_cache_covers_its_largest_parts(gpu_attention, fp8: bool) -> None:
    bench = Bench("LBNHC", HEADS, torch.float32, False, fp8=fp8, module=gpu_attention)
    # Absorbed queries and results of every row, or partial results; and one row, as long as can be, read out.
    in_place = len(ROWS) * HEADS * (2 * HIDDEN if not fp8 else HEAD_SIZE)
    row = 1000 * (2 * HEADS * HEAD_SIZE + (0 if fp8 else HIDDEN))
    assert bench.impl.workspace_bytes(1000) >= 4 * (in_place + row)


def test_attention_is_never_captured_in_a_graph(gpu_attention) -> None:
    assert gpu_attention.HybridTritonBuilder.get_cudagraph_support(None, None) is AttentionCGSupport.NEVER
    assert gpu_attention.HybridTritonBackend.get_builder_cls() is gpu_attention.HybridTritonBuilder
    assert gpu_attention.HybridTritonBackend.get_name() == "TRITON_ATTN"


def test_the_threshold_is_that_of_the_cost_model() -> None:
    assert {name: shape.absorbed_query_tokens() for name, shape in SHAPES.items() if "OPT" in name} == {
        "OPT-6.7B, Llama-2-7B": 22,
        "OPT-13B, Llama-2-13B": 28,
        "OPT-30B": 39,
    }
