"""Stage 1a: is every kernel right on this card? Fresh random inputs, poisoned outputs, float64 references.

Each batch mixes rows of the half form, a KV row, a padding row and stale table tails. A kernel that is wrong here is
not timed. An error that moves between two runs on the same seed is a race.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import MODELS, Shape
from vllm_hybrid.cache.kernels import absorbed, fp8, hidden_write, project, reference
from vllm_hybrid.cache.kernels.view import HalfBlockView, fp8_view, hidden_view

# Relative errors |out - reference| / |reference| that rounding of the inputs and outputs explains.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
EIGHT_BITS = 1.5e-2
"""What the fp8 form may lose of random numbers, in heads of 16 and more."""
GARBAGE = 10**6
POISON = float("nan")


@dataclass(slots=True)
class Rows:
    """A batch: lengths of the rows of the half form, 0 for a padding row, None for a KV row."""

    lengths: list[int | None]
    table: torch.Tensor
    seq_lens: torch.Tensor

    def half(self) -> list[int]:
        return [row for row, length in enumerate(self.lengths) if length]

    def host_lens(self) -> torch.Tensor:
        return torch.tensor([length or 0 for length in self.lengths])

    def starts(self) -> torch.Tensor:
        return torch.tensor([0, *(self.lengths[row] or 0 for row in self.half())]).cumsum(0).int()

    def slots(self, view: HalfBlockView) -> torch.Tensor:
        """Slots of all tokens of the half rows, then padding."""
        parts = []
        for row in self.half():
            at = torch.arange(self.lengths[row] or 0)
            parts.append(self.table[row, at // view.block_tokens].long() * view.block_tokens + at % view.block_tokens)
        return torch.cat([*parts, torch.tensor([3 * view.block_tokens, -1])])


def make_rows(view: HalfBlockView, lengths: list[int | None]) -> Rows:
    """Half blocks in random order, garbage beyond every row's end. On the host."""
    width = max(-(-(length or 1) // view.block_tokens) for length in lengths) + 3
    table = torch.full((len(lengths), width), GARBAGE, dtype=torch.int32)
    free = (torch.randperm(view.ratio * (view.num_blocks - 1)) + view.ratio + view.num_blocks).int()
    used = 0
    for row, length in enumerate(lengths):
        count = -(-(length or 0) // view.block_tokens)
        table[row, :count] = free[used : used + count]
        used += count
        if not length:
            table[row] = 0 if length == 0 else 3
    seq_lens = torch.tensor([7 if length is None else length for length in lengths], dtype=torch.int32)
    return Rows(lengths, table, seq_lens)


def new_cache(shape: Shape, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device):
    """[N, nkv, bs, 2*hd] in the order that vLLM's FlashAttention backend keeps: block, token, head."""
    sizes = num_blocks, block_tokens, shape.kv_heads, 2 * shape.head_size
    return torch.randn(sizes, device=device, dtype=torch.float32).to(dtype).permute(0, 2, 1, 3)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def check_hidden(bench: Bench, shape: Shape, dtype: torch.dtype, lengths: list[int | None]) -> dict[str, float]:
    """Relative errors of the kernels of the hidden form; the write and the gather must be exact (0)."""
    blocks = 8 + sum(-(-(length or 0) // 16) for length in lengths)
    view = hidden_view(new_cache(shape, blocks, 16, dtype, bench.device), shape.hidden)
    rows = make_rows(view, lengths)
    slots, starts = rows.slots(view), rows.starts()
    x = torch.randn(len(slots), shape.hidden, device=bench.device).to(dtype)
    hidden_write.hidden_write(x, view, slots.to(bench.device))
    table, total = rows.table.to(bench.device), int(starts[-1])
    half = table[rows.half()]
    gathered = project.hidden_gather(view, half, starts.to(bench.device), total, max(n or 0 for n in lengths))
    errors = {
        "hidden_write": relative_error(reference.gather(view, half, starts), x[:total]),
        "hidden_gather": relative_error(gathered, x[:total]),
    }
    query = (torch.randn(len(lengths), shape.heads, shape.hidden, device=bench.device) / shape.hidden**0.5).to(dtype)
    seq_lens = rows.seq_lens.to(bench.device)
    for name, slopes, tiles in _decode_variants(bench, shape):
        first, tiles_total = absorbed.tile_offsets(rows.host_lens(), tiles.tokens)
        z = absorbed.hidden_decode(
            query, view, table, seq_lens, first.to(bench.device), tiles_total, 3.0, tiles, slopes,
            torch.full_like(query, POISON),
        )  # fmt: skip
        want = reference.hidden_decode(query, view, table, seq_lens, 3.0, slopes)
        errors[name] = relative_error(z[rows.half()], want[rows.half()])
        if not bool(z[[row for row, n in enumerate(lengths) if not n]].isnan().all()):
            errors[f"{name}: rows of the other form"] = float("inf")
    return errors


def _decode_variants(bench: Bench, shape: Shape):
    slopes = torch.linspace(0.01, 0.2, shape.heads, device=bench.device)
    small = {"depth": 32, "columns": 32} if bench.rehearsal else {}
    yield "absorbed, 1 part", None, absorbed.DecodeTiles(score_parts=3, value_parts=1, **small)
    yield "absorbed, 4 parts, ALiBi", slopes, absorbed.DecodeTiles(score_parts=5, value_parts=4, **small)


def check_fp8(bench: Bench, shape: Shape, dtype: torch.dtype, lengths: list[int | None]) -> dict[str, float]:
    """Relative errors of the fp8 half form: of what is stored, which eight bits allow; of reads and decodes of that."""
    blocks = 8 + sum(-(-(length or 0) // 16) for length in lengths)
    view = fp8_view(new_cache(shape, blocks, 16, dtype, bench.device))
    rows = make_rows(view, lengths)
    slots, starts = rows.slots(view), rows.starts().to(bench.device)
    sizes = len(slots), shape.kv_heads, shape.head_size
    key, value = (torch.randn(sizes, device=bench.device).to(dtype) for _ in range(2))
    fp8.fp8_write(key, value, view, slots.to(bench.device))
    table, head_size, total = rows.table.to(bench.device), shape.head_size, int(starts[-1])
    half = table[rows.half()]
    held = reference.fp8_decoded(reference.gather(view, half, starts).unflatten(1, (-1, 2, head_size)))
    stored = fp8.turned_back(held)
    got = fp8.fp8_read(view, half, starts, total, 2048, head_size, dtype)
    errors = {
        "fp8_write": relative_error(stored, torch.stack([key, value], 2)[:total]),
        "fp8_read": relative_error(got, held.flatten(2)),
    }
    query = torch.randn(len(lengths), shape.heads, head_size, device=bench.device).to(dtype)
    asked = fp8.turned_back(query.float()).to(dtype)
    seq_lens, scale = rows.seq_lens.to(bench.device), head_size**-0.5
    slopes = torch.linspace(0.01, 0.2, shape.heads, device=bench.device)
    ends = starts.tolist()
    for name, parts, alibi in (("fp8 decode, 1 part", 1, None), ("fp8 decode, 5 parts, ALiBi", 5, slopes)):
        out = fp8.turned_back(fp8.fp8_decode(asked, view, table, seq_lens, scale, parts, alibi))
        want = torch.stack(
            [
                reference.kv_decode(query[row], *stored[ends[i] : ends[i + 1]].unbind(2), scale, alibi)
                for i, row in enumerate(rows.half())
            ]
        )
        errors[name] = relative_error(out[rows.half()], want)
    return errors


def run(bench: Bench) -> None:
    """Every kernel at every model's attention shape; writes after each case."""
    lengths: list[int | None] = [37, None, 1, 0, 32] if bench.rehearsal else [1000, None, 1, 0, 2048, 517, 16]
    names, dtypes = (["tiny"], [torch.float32]) if bench.rehearsal else (["opt-13b", "opt-6.7b"], [torch.bfloat16])
    cases: list[tuple[str, torch.dtype, Callable]] = [
        *((name, dtype, check_hidden) for name in names for dtype in dtypes),
        *((name, torch.bfloat16, check_fp8) for name in [*names, *([] if bench.rehearsal else ["llama-3-8b"])]),
        *(("tiny", dtype, check_hidden) for dtype in (torch.float32, torch.float16)),
    ]
    results: list[dict[str, Any]] = []
    for name, dtype, check in cases:
        for kernel, error in check(bench, MODELS[name], dtype, lengths).items():
            most = 0 if kernel in ("hidden_write", "hidden_gather") else TOLERANCE[dtype]
            right = error <= (EIGHT_BITS if kernel == "fp8_write" else most)
            results.append({"kernel": kernel, "model": name, "dtype": str(dtype)[6:], "rel_err": error, "right": right})
            print(f"  {'ok   ' if right else 'WRONG'} {name:10s} {str(dtype)[6:]:8s} {kernel:26s} {error:.2e}")
        bench.write("kernel_checks", rows=results)
    wrong = sorted({f"{r['kernel']} ({r['model']}, {r['dtype']})" for r in results if not r["right"]})
    if wrong:
        raise AssertionError(f"wrong results: {', '.join(wrong)}")
