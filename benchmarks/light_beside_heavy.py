"""A light client's wait behind a heavy one, on the real engine: stock `fcfs` and ours, one after the other.

    python -m benchmarks.light_beside_heavy [--model tiny|smollm2] [--quick] [--check] [--out FILE]

At the start 40 requests of a heavy client arrive, outputs uniform in 64 to 128 tokens, and right after them 4 of a
light one, 16 tokens each; eight run at a time. The same requests for both, no setting but the scheduler. The order of
the two runs is turned around in every other round; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import live_engine
from benchmarks.demo import machine, model
from benchmarks.papers.common import Check, check_lines, table
from vllm_hybrid.sim.records import Contender, EngineSettings, RunRecord, SimRequest
from vllm_hybrid.sim.results import text_of

SETTINGS = EngineSettings(max_seqs=8, step_tokens=256, pool_tokens=16_384, block_size=32, max_model_len=1024)
CONTENDERS = (Contender("fcfs", stock="fcfs"), Contender("hybrid", hybrid={}))
HEAVY, LIGHT, PROMPT_TOKENS = 40, 4, 32
LEAST_GAIN = 10.0  # of the light client's mean TTFT
SAME_THROUGHPUT = 0.05


def requests(seed: int) -> list[SimRequest]:
    """The heavy client's requests, then the light one's."""
    lengths = random.Random(seed)
    heavy = [SimRequest(f"h{i}", 0.0, PROMPT_TOKENS, lengths.randint(64, 128), client="heavy") for i in range(HEAVY)]
    return heavy + [SimRequest(f"l{i}", 0.0, PROMPT_TOKENS, 16, client="light") for i in range(LIGHT)]


WARM_UP = requests(1_000)[::5]


def figures(run: RunRecord) -> dict[str, float]:
    """Mean TTFT of each client, tokens generated per second."""
    ttft: dict[str, list[float]] = {"heavy": [], "light": []}
    for record in run.requests:
        ttft[record.request.client].append(record.token_s[0] - record.request.arrival_s)
    means = {f"{client}_mean_ttft_s": statistics.fmean(times) for client, times in ttft.items()}
    return means | {"output_tokens_per_s": sum(len(r.token_s) for r in run.requests) / run.end_s}


def rounds(folder: str, count: int, clock: str) -> dict[str, dict[str, float]]:
    """Both schedulers, `count` times; medians."""
    seen: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in CONTENDERS}
    for number in range(count):
        for contender in CONTENDERS[:: 1 if number % 2 == 0 else -1]:
            with live_engine.engine_of(folder, machine.fast_dtype(), contender, SETTINGS) as engine:
                live_engine.serve(engine, contender, SETTINGS, WARM_UP, live_engine.Clock(clock))
                served = live_engine.serve(engine, contender, SETTINGS, requests(number), live_engine.Clock(clock))
                seen[contender.name].append(figures(served.run))
    return {name: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for name, runs in seen.items()}


def checks(found: Mapping[str, Mapping[str, float]]) -> list[Check]:
    stock, ours = found["fcfs"], found["hybrid"]
    gain = stock["light_mean_ttft_s"] / ours["light_mean_ttft_s"]
    off = ours["output_tokens_per_s"] / stock["output_tokens_per_s"] - 1
    return [
        Check("light client's mean TTFT, stock / ours", f"{gain:.1f}", f"at least {LEAST_GAIN:g}", gain >= LEAST_GAIN),
        Check("throughput against stock", f"{off:+.1%}", f"±{SAME_THROUGHPUT:.0%}", abs(off) <= SAME_THROUGHPUT),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="light_beside_heavy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", choices=sorted(model.MAKERS))
    parser.add_argument("--quick", action="store_true", help="the tiny model, one round")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a tolerance fails")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: on a machine with other work")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    given = parser.parse_args()
    os.environ.update(live_engine.IN_PROCESS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    served, count = ("tiny", 1) if given.quick else (given.model, 3)
    found = rounds(str(model.prepare(served)), count, given.clock)
    print(table([{"scheduler": name} | {key: f"{x:.2f}" for key, x in row.items()} for name, row in found.items()]))
    held = checks(found)
    print("\n" + check_lines(held))
    if given.out is not None:
        document: dict[str, Any] = {"model": served, "clock": given.clock, "rounds": count, "schedulers": found}
        given.out.write_text(text_of(document))
    return int(given.check and not all(check.holds for check in held))


if __name__ == "__main__":
    sys.exit(main())
