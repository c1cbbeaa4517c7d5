"""Compile the kernels for sm_90 (H100, H200) without a GPU and show what decides their speed.

    python -m benchmarks.gpu.compile_report [--model opt-13b] [--out FILE]

Registers, spills (stack bytes, LDL/STL), shared memory, and which matrix instruction was chosen: HGMMA is Hopper's
own, HMMA the slower one of older chips. Arguments that vLLM passes as multiples of 16 are declared so, as Triton's
launcher would. Instruction counts need NVIDIA's cuobjdump, which Triton's wheels for x86 carry.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import MODELS, Shape

TARGET = ("cuda", 90, 32)
ALIGNED = re.compile(r"(stride|_row|_head)$")


@dataclass(slots=True)
class Case:
    """One kernel with the types of its pointers and its compile-time constants."""

    name: str
    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, Any]
    scalars: dict[str, str] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3


@dataclass(slots=True)
class Report:
    kernel: str
    variant: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def cases(shape: Shape, block_tokens: int = 16) -> list[Case]:
    """Every kernel of the cache at a model's shape in bf16."""
    from vllm_hybrid.cache.kernels import absorbed, fp8, hidden_write, project

    tiles = absorbed.DecodeTiles()
    half = {"BS": block_tokens, "H": shape.hidden, "R": 2}
    heads = {"NH": shape.heads, "HEADS": 1 << max(4, (shape.heads - 1).bit_length()), "WIDEN": False}
    decode = {"cache": "*bf16", "table": "*i32", "seq_lens": "*i32", "first_tile": "*i32", "probs": "*bf16",
              "tile_max": "*fp32", "tile_sum": "*fp32"}  # fmt: skip
    parts = {"part_z": "*fp32", "part_max": "*fp32", "part_sum": "*fp32", "out": "*bf16"}
    kv = {"BS": block_tokens, "NKV": shape.kv_heads, "HD": shape.head_size, "R": 2}
    wide = {"WIDE": 1 << (shape.head_size - 1).bit_length(), "WIDEN": False}
    group = shape.heads // shape.kv_heads
    queries = {"GROUP": group, "QUERIES": 1 << max(4, (group - 1).bit_length())}
    gather = {"out": "*bf16", "table": "*i32", "starts": "*i32"}
    return [
        Case("hidden_write", hidden_write._hidden_write_kernel, {"x": "*bf16", "cache": "*bf16", "slots": "*i64"},
             {**half, "COLUMNS": 2048}),
        Case("hidden_gather", project._hidden_gather_kernel, {**gather, "cache": "*bf16"}, {**half, "ELEMENTS": 2048}),
        Case("fp8_write", fp8._fp8_write_kernel,
             {"key": "*bf16", "value": "*bf16", "rotation": "*bf16", "cache": "*i8", "slots": "*i64"},
             {**kv, **wide, "HEADS": 1 << max(4, (shape.kv_heads - 1).bit_length())}),
        Case("fp8_decode", fp8._fp8_decode_kernel,
             {"query": "*bf16", "cache": "*i8", "table": "*i32", "seq_lens": "*i32", "slopes": "*fp32",
              "part_z": "*fp32", "part_max": "*fp32", "part_sum": "*fp32"},
             {**kv, **wide, **queries, "TOKENS": absorbed.TILE_TOKENS, "PARTS": 4, "ALIBI": True},
             {"scale_log2": "fp32"}),
        Case("fp8_read", fp8._fp8_read_kernel, {**gather, "cache": "*i8"},
             {**kv, "VECTORS": 32, "WIDE": wide["WIDE"]}),
        Case("scores", absorbed._scores_kernel, {"query": "*bf16", "slopes": "*fp32", **decode},
             {**half, **heads, "TOKENS": tiles.tokens, "DEPTH": tiles.depth, "ALIBI": True},
             {"scale_log2": "fp32"}, tiles.warps, tiles.score_stages),
        *(Case(f"values, {n} parts", absorbed._values_kernel, {**decode, **parts},
               {**half, **heads, "TOKENS": tiles.tokens, "COLUMNS": tiles.columns, "PARTS": n}, {}, tiles.warps,
               tiles.value_stages) for n in (1, 4)),
        Case("combine", absorbed._combine_kernel, {"table": "*i32", **parts},
             {"NH": shape.heads, "H": shape.hidden, "PARTS": 4, "PADDED": 4, "COLUMNS": 512}),
    ]  # fmt: skip


def compile_case(case: Case) -> Report:
    """Compile for sm_90 and read the machine code. Raises what Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {**case.pointers, **case.scalars}
    signature = {name: "constexpr" if name in case.constants else types.get(name, "i32") for name in names}
    constants = {(at,): case.constants[name] for at, name in enumerate(names) if name in case.constants}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if signature[name].startswith("*") or (signature[name] == "i32" and ALIGNED.search(name))
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    compiled = triton.compile(source, target=GPUTarget(*TARGET), options=options)
    usage, code = _disassembled(compiled.asm["cubin"])
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    counts = {name: len(re.findall(rf"\b{name}", code)) for name in ("HGMMA", "QGMMA", "HMMA", "LDGSTS", "LDL", "STL")}
    variant = f"{case.warps} warps, {case.stages} stages"
    return Report(case.name, variant, registers, stack, compiled.metadata.shared, counts)


def _disassembled(cubin: bytes) -> tuple[str, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        outputs = [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        ]
    return outputs[0], outputs[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="opt-13b")
    parser.add_argument("--out", type=Path, help="write the reports as JSON, too")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: there is nothing to compile", file=sys.stderr)
        return 2
    reports = []
    for case in cases(MODELS[args.model]):
        report = compile_case(case)
        counts = "  ".join(f"{name} {count}" for name, count in report.instructions.items() if count)
        print(
            f"{report.kernel:18s} {report.variant:18s} registers {report.registers:3d}  stack {report.stack_bytes:3d} B"
            f"  shared {report.shared_bytes / 1024:5.1f} KiB  {counts}",
            flush=True,
        )
        reports.append(dataclasses.asdict(report))
    if args.out:
        args.out.write_text(json.dumps({"schema": 1, "model": args.model, "kernels": reports}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
