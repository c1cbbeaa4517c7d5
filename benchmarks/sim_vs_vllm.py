"""The simulator against a real vLLM run: 300 ShareGPT requests at 10/s, Llama-3.1-8B on one RTX PRO 6000.

    python -m benchmarks.sim_vs_vllm [--check] [--out FILE]

The recorded run (LLMServingSim, MIT; vLLM 0.19, 128 sequences, 2048 tokens per step) is replayed request by request
through stock vLLM's scheduler on the device `rtxpro6000_llama31_8b_bf16`, whose kernel times were measured apart from
that run. Nothing is fitted to it. The recording may not be part of this repository: it is looked for in the folder
named by the environment's VLLM_HYBRID_TRACES, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, SimRequest, simulate
from vllm_hybrid.sim.suites.sources import trace_path

RECORDING = "vllm_run_rtxpro6000_llama_3_1_8b.csv.gz"
DEVICE = "rtxpro6000_llama31_8b_bf16"
SETTINGS = EngineSettings(max_seqs=128, step_tokens=2048, async_mode=True)
CONTENDERS = [Contender("stock fcfs", stock="fcfs"), Contender("ours")]
TOLERANCE = 0.08  # on each of the figures, for stock


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, as recorded or simulated."""

    arrival_s: float
    first_token_s: float
    last_token_s: float
    output_tokens: int


def read_recording(path: Path) -> tuple[list[SimRequest], list[Timing]]:
    """The requests of the recorded run, and what became of them."""
    requests, timings = [], []
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            arrival_s, output_tokens = float(row["arrival_s"]), int(row["output_tokens"])
            requests.append(SimRequest(row["request"], arrival_s, int(row["prompt_tokens"]), output_tokens))
            timings.append(Timing(arrival_s, float(row["first_token_s"]), float(row["last_token_s"]), output_tokens))
    return requests, timings


def timings_of(run: RunRecord) -> list[Timing]:
    return [Timing(r.request.arrival_s, r.token_s[0], r.token_s[-1], len(r.token_s)) for r in run.requests]


def figures(timings: Sequence[Timing]) -> dict[str, float]:
    """The three figures that are compared."""
    tpot_s = [(t.last_token_s - t.first_token_s) / (t.output_tokens - 1) for t in timings if t.output_tokens > 1]
    return {
        "mean_ttft_ms": 1e3 * fmean(t.first_token_s - t.arrival_s for t in timings),
        "mean_tpot_ms": 1e3 * fmean(tpot_s),
        "duration": max(t.last_token_s for t in timings),
    }


def compare(path: Path) -> list[dict[str, Any]]:
    """One row per contender; the first row is the recorded run."""
    requests, recorded = read_recording(path)
    real = figures(recorded)
    rows: list[dict[str, Any]] = [{"name": "vLLM 0.19, recorded", **real}]
    for contender in CONTENDERS:
        found = figures(timings_of(simulate(requests, contender, load_device(DEVICE), SETTINGS)))
        errors = {f"{key}_error": found[key] / real[key] - 1 for key in real}
        rows.append({"name": f"simulated, {contender.name}", **found, **errors})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<24}{'mean TTFT ms':>14}{'':8}{'mean TPOT ms':>14}{'':8}{'total s':>10}")
    for row in rows:
        line = f"{row['name']:<24}"
        for key, width in (("mean_ttft_ms", 14), ("mean_tpot_ms", 14), ("duration", 10)):
            error = row.get(f"{key}_error")
            line += f"{row[key]:>{width}.1f}" + (f" {error:+6.1%} " if error is not None else " " * 8)
        print(line)


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Figures of simulated stock that are off by more than the tolerance."""
    stock = rows[1]
    return [
        f"{key.removesuffix('_error')}: off by {value:+.1%}, allowed {TOLERANCE:.0%}"
        for key, value in stock.items()
        if key.endswith("_error") and abs(value) > TOLERANCE
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when a tolerance fails")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    path = trace_path(RECORDING)
    if not path.exists():
        print(f"skipped: the recording {RECORDING} is not there; VLLM_HYBRID_TRACES names the folder it lies in")
        return 0
    rows = compare(path)
    show(rows)
    failed = failures(rows)
    for line in failed:
        print("FAILED:", line)
    if args.out:
        record = {"benchmark": "sim_vs_vllm", "device": DEVICE, "requests": 300, "tolerance": TOLERANCE}
        args.out.write_text(json.dumps({**record, "rows": rows, "failed": failed}, indent=1) + "\n")
    return 1 if failed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
