"""Stage 2: step times of dense decoders over prefill tokens, decoding requests and context, without an engine.

The parts are measured alone (dense work by tokens, output head by sequences, attention of decodes and of whole
prompts), which is what a device file holds, and then whole mixed steps, which show how well the parts add up. Graphs
are on; a second, shorter pass without them shows what launching costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import device_file
from benchmarks.gpu.attention import Group, KvAttention, pairs
from benchmarks.gpu.bench import Bench, Skip
from benchmarks.gpu.decoder import Decoder
from benchmarks.gpu.shapes import BYTES, MODELS, Shape

NAMES = ["opt-13b", "llama-2-13b", "llama-3-8b", "qwen3-8b"]
TOKENS = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096]
HEAD_ROWS = [1, 8, 32, 128, 256]
DECODES = [1, 4, 16, 32, 64, 128, 256]
CONTEXTS = [128, 512, 1024, 2047, 4095, 8191]
PROMPTS = [16, 64, 128, 256, 512, 1024, 2048, 4096]
# prefill tokens, tokens before them, decodes, their context
STEPS = [
    (prompt, before, decodes, context)
    for decodes, context in [(1, 512), (8, 512), (32, 512), (32, 1536), (64, 1024), (128, 512), (128, 1536), (256, 512)]
    for prompt in (0, 64, 256, 512, 1024)
    for before in ((0, 1024) if prompt else (0,))
]
LEAST_LEFT_S = 45.0  # a model is not begun with less
CALLS = 8


class Grid:
    """The points of one model."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape = bench, shape
        self.decoder = Decoder(bench, shape)
        self.attention = KvAttention(bench, shape)

    def dense(self, tokens: list[int]) -> Iterator[dict[str, Any]]:
        """Milliseconds of all layers without attention, by tokens."""
        scale = self.shape.layers / self.decoder.measured_layers
        for count in tokens:
            x = self.decoder.tokens(count)
            timing = self.bench.clock.measure(lambda x=x: self.decoder.run(x, None), 1)
            weights = self.decoder.measured_layers * self.shape.layer_weights
            row = self.bench.row({"part": "dense", "T": count}, timing, BYTES * weights, 2 * count * weights)
            yield {**row, "model_ms": row["ms"] * scale}

    def head(self, rows: list[int]) -> Iterator[dict[str, Any]]:
        """Milliseconds of the output head, by sequences."""
        for count in rows:
            x = self.decoder.tokens(count)
            timing = self.bench.clock.measure(lambda x=x: self.decoder.logits(x))
            weights = self.shape.hidden * self.shape.vocab
            yield self.bench.row({"part": "head", "sequences": count}, timing, BYTES * weights, 2 * count * weights)

    def attend(self, part: str, key: dict[str, int], groups: list[Group]) -> Iterator[dict[str, Any]]:
        """Milliseconds of one layer's attention."""
        attention = self.attention.series(groups, CALLS)
        if attention is None:
            return
        width, queries = self.shape.heads * self.shape.head_size, sum(q for q, _ in groups)
        query = torch.randn(queries, width, device=self.bench.device, dtype=torch.bfloat16)
        timing = self.bench.clock.measure(lambda: [attention(query, call) for call in range(CALLS)], CALLS)
        nbytes = sum(context for _, context in groups) * self.shape.kv_token_bytes + 2 * queries * width * BYTES
        yield self.bench.row({"part": part, **key}, timing, nbytes, 4 * pairs(groups) * width)

    def step(self, prompt: int, before: int, decodes: int, context: int) -> Iterator[dict[str, Any]]:
        """Milliseconds of all layers of a mixed step, attention included, output head not."""
        groups = [(prompt, before + prompt)] * (prompt > 0) + [(1, context)] * decodes
        attention = self.attention.series(groups, self.decoder.measured_layers)
        if attention is None:
            return
        x = self.decoder.tokens(prompt + decodes)
        timing = self.bench.clock.measure(lambda: self.decoder.run(x, attention))
        measured = self.decoder.measured_layers
        weights = measured * self.shape.layer_weights
        tokens = sum(c for _, c in groups)
        nbytes = BYTES * weights + measured * tokens * self.shape.kv_token_bytes
        width = self.shape.heads * self.shape.head_size
        flops = 2 * len(x) * weights + 4 * measured * pairs(groups) * width
        key = {"part": "step", "P": prompt, "before": before, "B": decodes, "ctx": context}
        row = self.bench.row(key, timing, nbytes, flops)
        yield {**row, "model_ms": row["ms"] * self.shape.layers / measured}


def points(grid: Grid, rehearsal: bool) -> Iterator[Iterator[dict[str, Any]]]:
    """All points with graphs, what a device file needs first."""
    contexts = [c for c in CONTEXTS if c <= grid.shape.max_context]
    steps = STEPS
    tokens, heads, decodes, prompts = TOKENS, HEAD_ROWS, DECODES, PROMPTS
    if rehearsal:
        tokens, heads, decodes, contexts, prompts = [1, 8], [1, 2], [1, 2], [16, 64], [16, 64]
        steps = [(p, b, n, c) for p in (0, 4, 8) for b in ((0, 8) if p else (0,)) for n in (1, 2) for c in (16, 32)]
    yield grid.dense(tokens)
    yield grid.head(heads)
    yield from (grid.attend("decode", {"B": n, "ctx": c}, [(1, c)] * n) for n in decodes for c in contexts)
    yield from (grid.attend("prefill", {"P": n}, [(n, n)]) for n in prompts)
    yield from (grid.step(*step) for step in steps)


def measure(bench: Bench, shape: Shape) -> None:
    """One model: points with graphs, the device file, then twenty steps without graphs."""
    grid = Grid(bench, shape)
    rows: list[dict[str, Any]] = []
    content = {"model": shape.name, "attention": grid.attention.name, "rows": rows}
    for some in points(grid, bench.rehearsal):
        rows.extend(some)
        if bench.time_left_s() < 0:
            break
    path = bench.write(f"steps_{shape.name}", **content, eager_rows=[])
    print(f"  {shape.name}: {len(rows)} points, attention {grid.attention.name}")
    device_file.main([str(path)])
    if bench.graphs and bench.time_left_s() > LEAST_LEFT_S:
        bench.graphs = False
        try:
            eager = [row for step in STEPS[::3][:20] for row in grid.step(*step)]
        finally:
            bench.graphs = True
        bench.write(f"steps_{shape.name}", **content, eager_rows=eager)


def run(bench: Bench) -> None:
    """Every model for which there is time."""
    for name in ["tiny"] if bench.rehearsal else NAMES:
        if not bench.rehearsal and bench.time_left_s() < LEAST_LEFT_S:
            raise Skip(f"too little time is left for {name}")
        measure(bench, MODELS[name])
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
