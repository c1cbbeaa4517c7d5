"""Stage 1b: what the half forms cost beside paged KV decode of the same shapes, each as a share of what this card can
do.

One layer, bf16, a fresh region of a large pool per repetition. The two-read kernels are expected at the time of KV
decode; `variant` rows try other tiles at three points, for the one improvement after the first measurement.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.attention import KvAttention
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.kernel_checks import TOLERANCE
from benchmarks.gpu.shapes import BYTES, MODELS, Shape
from vllm_hybrid.cache.kernels import absorbed, fp8, hidden_write, project, reference
from vllm_hybrid.cache.kernels.view import HalfBlockView, fp8_view, hidden_view

# Llama-2-7B and -13B have the attention shapes of OPT-6.7B and -13B: one measurement stands for both.
SAME_SHAPE = {"opt-13b": "llama-2-13b", "opt-6.7b": "llama-2-7b"}
BLOCK_TOKENS = 16
# In the order of what they tell: a killed run has the first ones.
POINTS = [(32, 1024), (1, 2048), (128, 1024), (8, 2048), (32, 2048), (1, 8192), (8, 8192), (32, 8192), (128, 2048),
          (8, 256), (32, 256), (128, 256), (1, 256), (128, 8192)]  # fmt: skip
VARIANT_POINTS = [(32, 1024), (1, 2048), (128, 2048)]
VARIANTS = [{"tokens": 128}, {"columns": 256, "warps": 8}, {"depth": 128, "score_stages": 2}, {"value_stages": 3},
            {"value_stages": 7}, {"warps": 8}]  # fmt: skip
WRITE_TOKENS = [1, 32, 256, 2048]
PROJECT_TOKENS = [256, 1024, 4096, 16384]
ROTATE_BYTES = 600e6  # ten times the L2


class HalfDecode:
    """Absorbed decode of `rows` requests of `context` tokens, on a pool of half blocks."""

    def __init__(self, bench: Bench, shape: Shape, rows: int, context: int) -> None:
        self.shape, self.rows, self.context = shape, rows, context
        per_row = -(-context // BLOCK_TOKENS)
        need = rows * per_row
        self.calls = max(1, min(8, int(ROTATE_BYTES / (need * BLOCK_TOKENS * shape.hidden * BYTES))))
        blocks = -(-need * self.calls // 2) + 1
        sizes = blocks, shape.kv_heads, BLOCK_TOKENS, 2 * shape.head_size
        self.view = hidden_view(torch.empty(sizes, device=bench.device, dtype=torch.bfloat16).normal_(), shape.hidden)
        ids = torch.randperm(need * self.calls) + blocks + 2  # after the two halves of vLLM's null block
        self.tables = ids.int().view(self.calls, rows, per_row).to(bench.device)
        self.seq_lens = torch.full((rows,), context, dtype=torch.int32, device=bench.device)
        query = torch.randn(rows, shape.heads, shape.hidden, device=bench.device)
        self.query = (query / shape.hidden**0.5).to(torch.bfloat16)
        self.out = torch.empty_like(self.query)

    def error(self, bench: Bench, tiles: absorbed.DecodeTiles) -> float:
        """Relative error of the last row of the first region against float64."""
        self.out.fill_(float("nan"))
        self.work(bench, tiles, calls=1)()
        last = slice(self.rows - 1, self.rows)
        scale = self.shape.head_size**-0.5
        want = reference.hidden_decode(self.query[last], self.view, self.tables[0][last], self.seq_lens[last], scale)
        return ((self.out[last].double() - want).norm() / want.norm()).item()

    def work(self, bench: Bench, tiles: absorbed.DecodeTiles, calls: int | None = None):
        """One call per region. The plan of tiles is made once: it is the host's work, not the device's."""
        first, total = absorbed.tile_offsets(torch.full((self.rows,), self.context), tiles.tokens)
        first = first.to(bench.device)
        scale = self.shape.head_size**-0.5

        def run() -> None:
            for table in self.tables[:calls]:
                absorbed.hidden_decode(
                    self.query, self.view, table, self.seq_lens, first, total, scale, tiles, None, self.out
                )

        return run


def measure_decode(bench: Bench, shape: Shape, points: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """KV and hidden decode side by side, then the products that absorb the query and project the result."""
    kv = KvAttention(bench, shape)
    for rows, context in points:
        tokens = rows * context
        if tokens * shape.hidden * BYTES * 2 > bench.free_bytes() * 0.6:
            continue
        key = {"model": shape.name, "B": rows, "ctx": context, "dtype": "bfloat16"}
        attend = kv.series([(1, context)] * rows, 8)
        if attend is not None:
            query = torch.randn(rows, shape.heads * shape.head_size, device=bench.device, dtype=torch.bfloat16)
            timing = bench.clock.measure(lambda q=query, f=attend: [f(q, call) for call in range(8)], 8)
            flops = 4 * tokens * shape.heads * shape.head_size
            yield bench.row({"kernel": f"kv decode ({kv.name})", **key}, timing, tokens * shape.kv_token_bytes, flops)
        half = HalfDecode(bench, shape, rows, context)
        yield _decode_row(bench, half, absorbed.choose_tiles(rows, context, bench.multiprocessors), "default", key)
        if (rows, context) in VARIANT_POINTS:
            for variant in VARIANTS:
                tiles = absorbed.choose_tiles(rows, context, bench.multiprocessors)
                yield _decode_row(bench, half, dataclasses.replace(tiles, **variant), "variant", key)
        del half
    for rows in sorted({rows for rows, _ in points}):
        yield _absorb_row(bench, shape, rows)


def _decode_row(bench: Bench, half: HalfDecode, tiles: absorbed.DecodeTiles, kind: str, key: dict[str, Any]):
    tokens, shape = half.rows * half.context, half.shape
    nbytes, flops = tokens * shape.hidden * BYTES, 4 * tokens * shape.hidden * shape.heads
    row_key = {"kernel": "hidden decode", **key, "kind": kind, "variant": dataclasses.asdict(tiles)}
    try:
        row_key["rel_err"] = half.error(bench, tiles)
        if not row_key["rel_err"] <= TOLERANCE[torch.bfloat16]:
            return {**row_key, "refused": "wrong result"}
        timing = bench.clock.measure(half.work(bench, tiles), half.calls)
    except Exception as problem:
        # Only a variant may be refused (too much shared memory for this card); the reason is the result.
        if kind != "variant" or "resource" not in str(problem):
            raise
        return {**row_key, "refused": str(problem)[:200]}
    predicted_ms = None
    if bench.ceilings:
        predicted_ms = 2 * nbytes / bench.ceilings["copy_gbs"] / 1e6  # x is read twice
    return bench.row(row_key, timing, nbytes, flops, predicted_ms)


def _absorb_row(bench: Bench, shape: Shape, rows: int) -> dict[str, Any]:
    """Absorbing the query and projecting z: the fixed price of any step with a hidden row."""
    sizes = shape.heads, shape.head_size, shape.hidden
    w_key, w_value = (torch.randn(sizes, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(rows, shape.heads, shape.head_size, device=bench.device, dtype=torch.bfloat16)

    def work() -> None:
        absorbed.project_output(absorbed.absorb_query(query, w_key), w_value, None)

    nbytes = 2 * w_key.numel() * BYTES
    key = {"kernel": "absorb query, project z", "model": shape.name, "B": rows, "dtype": "bfloat16"}
    return bench.row(key, bench.clock.measure(work), nbytes, 4 * rows * w_key.numel())


def measure_moves(bench: Bench, shape: Shape, writes: list[int], projects: list[int]) -> Iterator[dict[str, Any]]:
    """Writes of a step's tokens, gather and projection of a context, both fp8 directions."""
    blocks = 1 + max(*writes, *projects) // BLOCK_TOKENS
    sizes = blocks, shape.kv_heads, BLOCK_TOKENS, 2 * shape.head_size
    cache = torch.empty(sizes, device=bench.device, dtype=torch.bfloat16).normal_()
    hidden, eighth = hidden_view(cache, shape.hidden), fp8_view(cache)
    weight = torch.randn(2 * shape.kv_heads * shape.head_size, shape.hidden, device=bench.device, dtype=torch.bfloat16)
    for tokens in writes:
        key = {"model": shape.name, "T": tokens, "dtype": "bfloat16"}
        slots = (_first_slot(hidden) + torch.randperm(tokens)).to(bench.device)
        x = torch.randn(tokens, shape.hidden, device=bench.device, dtype=torch.bfloat16)
        timing = bench.clock.measure(lambda x=x, slots=slots: hidden_write.hidden_write(x, hidden, slots))
        yield bench.row({"kernel": "hidden write", **key}, timing, 4 * tokens * shape.hidden, 0)
        kv = torch.randn(tokens, 2, shape.kv_heads, shape.head_size, device=bench.device, dtype=torch.bfloat16)
        timing = bench.clock.measure(lambda kv=kv, slots=slots: fp8.fp8_write(kv[:, 0], kv[:, 1], eighth, slots))
        yield bench.row({"kernel": "fp8 write", **key}, timing, tokens * (shape.kv_token_bytes * 3 // 2), 0)
    for tokens in projects:
        key = {"model": shape.name, "S": tokens, "dtype": "bfloat16"}
        table = (torch.randperm(tokens // BLOCK_TOKENS) + blocks + 2).int()[None].to(bench.device)
        starts = torch.tensor([0, tokens], dtype=torch.int32, device=bench.device)
        where = table, starts, tokens, tokens
        timing = bench.clock.measure(lambda where=where: project.gather_project(hidden, *where, weight, None))
        nbytes = 2 * tokens * (shape.hidden + weight.shape[0]) + 2 * weight.numel()
        yield bench.row({"kernel": "gather + project", **key}, timing, nbytes, 2 * tokens * weight.numel())
        timing = bench.clock.measure(lambda where=where: fp8.fp8_read(eighth, *where, shape.head_size, torch.bfloat16))
        yield bench.row({"kernel": "fp8 read", **key}, timing, tokens * (shape.kv_token_bytes * 3 // 2), 0)


def _first_slot(view: HalfBlockView) -> int:
    """The first slot after the halves of vLLM's null block."""
    return (view.num_blocks + view.ratio) * BLOCK_TOKENS


def run(bench: Bench) -> None:
    """All rows of all shapes; the file is written anew every few seconds and at the end of a shape."""
    names = ["tiny"] if bench.rehearsal else list(SAME_SHAPE)
    points = [(2, 40), (1, 33)] if bench.rehearsal else POINTS
    writes, projects = ([1, 5], [32]) if bench.rehearsal else (WRITE_TOKENS, PROJECT_TOKENS)
    rows: list[dict[str, Any]] = []
    complete, written_s = True, time.monotonic()
    for name in names:
        shape = MODELS[name]
        for measure in (measure_decode(bench, shape, points), measure_moves(bench, shape, writes, projects)):
            for row in measure:
                rows.append(row)
                if time.monotonic() - written_s > 5:
                    bench.write("kernel_times", rows=rows, complete=False, same_shape=SAME_SHAPE)
                    written_s = time.monotonic()
                if bench.time_left_s() < 0:
                    complete = False
                    break
        bench.write("kernel_times", rows=rows, complete=complete, same_shape=SAME_SHAPE)
    print(comparison(rows))
    if wrong := [row for row in rows if row.get("refused") == "wrong result"]:
        raise AssertionError(
            f"wrong results at {[(row['model'], row['B'], row['ctx'], row['variant']) for row in wrong]}"
        )


def comparison(rows: list[dict[str, Any]]) -> str:
    """One line per point: hidden decode beside KV decode."""
    kv = {(r["model"], r["B"], r["ctx"]): r for r in rows if r["kernel"].startswith("kv decode")}
    lines = [f"  {'model':10s} {'B':>4s} {'ctx':>5s} {'KV ms':>9s} {'hidden ms':>9s} {'ratio':>6s} {'share':>6s}"]
    for row in rows:
        other = kv.get((row["model"], row.get("B"), row.get("ctx")))
        if other and row.get("kind") == "default":
            lines.append(
                f"  {row['model']:10s} {row['B']:4d} {row['ctx']:5d} {other['ms']:9.4f} {row['ms']:9.4f}"
                f" {row['ms'] / other['ms']:6.2f} {row.get('share', 0):6.2f}"
            )
    return "\n".join(lines)
