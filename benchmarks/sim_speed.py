"""How fast the simulator is: VTC's `overload` suite, vLLM's own scheduler class against ours, one core.

    python -m benchmarks.sim_speed [--quick] [--check] [--out FILE]

Two clients send 1.5 and 3 requests/s of 256 tokens in and out for 360 s to `a10g_llama2_7b` (10,000 tokens of KV, 2048
tokens per step); everything is served to the end. All contenders run in one process and take turns of `SLICE_S` virtual
seconds. A run repeats exactly, so each slice is measured in every round and its least CPU time counts: what other
processes of the machine add is left out. "ours" has its default settings, "vtc" the published policy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_hybrid.sim.device import Device, load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, SimRequest, effective_settings
from vllm_hybrid.sim.suites import make_workload

CONTENDERS = [Contender("stock", stock="fcfs"), Contender("ours"), Contender("vtc", hybrid={"preset": "vtc"})]
SETTINGS = EngineSettings(step_tokens=2048)
SLICE_S = 5.0
TOLERANCES = {
    "times_real": 100.0,  # simulated seconds per CPU second, ours, at least
    "cpu_ratio": 1.25,  # CPU time of ours / stock, at most
}


def run_round(requests: Sequence[SimRequest], device: Device) -> dict[str, tuple[RunRecord, list[float]]]:
    """One run of every contender, in turns; the record and the CPU seconds of each slice."""
    from vllm_hybrid.sim.loop import Simulation  # imports vLLM, which reads its log level first thing

    runs = {
        c.name: Simulation(requests, c, device, effective_settings(c, device, SETTINGS), seed=0) for c in CONTENDERS
    }
    cpu_s: dict[str, list[float]] = {name: [] for name in runs}
    ahead = list(runs)
    until_s = 0.0
    while ahead:
        until_s += SLICE_S
        for name in list(ahead):
            begin = time.process_time()
            runs[name].run(until_s)
            cpu_s[name].append(time.process_time() - begin)
            if all(r.finished_s is not None for r in runs[name].record.requests):
                ahead.remove(name)
        ahead.reverse()
    return {name: (run.record, cpu_s[name]) for name, run in runs.items()}


def measure(duration_s: float, rounds: int, seed: int) -> list[dict[str, Any]]:
    """One row per contender."""
    requests, device = make_workload("overload", seed, duration_s=duration_s), load_device("a10g_llama2_7b")
    results = [run_round(requests, device) for _ in range(rounds)]
    rows: list[dict[str, Any]] = []
    for name, (record, _) in results[0].items():
        cpu_s = sum(map(min, zip(*(result[name][1] for result in results), strict=True)))
        end_s = max(r.finished_s or 0.0 for r in record.requests)
        row = {"name": name, "simulated_s": end_s, "cpu_s": cpu_s, "times_real": end_s / cpu_s}
        row |= {"steps": len(record.steps), "steps_per_s": len(record.steps) / cpu_s}
        row["cpu_ratio"] = cpu_s / rows[0]["cpu_s"] if rows else 1.0
        row |= {"planned_steps": record.planned_steps, "reused_steps": record.reused_steps}
        rows.append(row)
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Tolerances that do not hold, in words."""
    failed = []
    for row in rows[1:]:
        if row["times_real"] < TOLERANCES["times_real"]:
            failed.append(f"{row['name']}: {row['times_real']:.0f}x real time, at least {TOLERANCES['times_real']:.0f}")
        if row["cpu_ratio"] > TOLERANCES["cpu_ratio"]:
            failed.append(f"{row['name']}: {row['cpu_ratio']:.3f}x the CPU of stock, at most {TOLERANCES['cpu_ratio']}")
    return failed


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':8}{'simulated s':>12}{'cpu s':>8}{'x real':>8}{'steps':>8}{'steps/s':>9}{'x stock':>9}")
    for r in rows:
        print(
            f"{r['name']:<8}{r['simulated_s']:>12.0f}{r['cpu_s']:>8.2f}{r['times_real']:>8.0f}"
            f"{r['steps']:>8}{r['steps_per_s']:>9.0f}{r['cpu_ratio']:>9.3f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 s of arrivals, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a tolerance fails")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    duration_s, rounds = (60.0, 3) if args.quick else (360.0, 3)
    rows = measure(duration_s, rounds, args.seed)
    show(rows)
    failed = failures(rows)
    for line in failed:
        print("FAILED:", line)
    if args.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        record = {"benchmark": "sim_speed", "seed": args.seed, "duration_s": duration_s, "rounds": rounds}
        record |= {"env": machine, "tolerances": TOLERANCES, "rows": rows, "failed": failed}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
