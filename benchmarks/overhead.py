"""What our decisions cost: `schedule()` + `update_from_output()` against stock vLLM, real scheduler, no model.

    python -m benchmarks.overhead [--quick] [--check] [--out FILE]

All schedulers of a row live in one process and take their steps in turn, so that the machine's drift hits all alike;
figures are medians of CPU time per step, the claim is the ratio to stock. Every running request decodes, half of them
offline, 50 clients; the waiting ones are offline and find no slot. "reuse": the scheduler as it is. "replan": a new
plan is forced on every step. Adding and aborting are timed on the same queues, memory is what the queue itself holds
per waiting request.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_hybrid.engine.scheduler import HybridScheduler, HybridSyncScheduler
from vllm_hybrid.sim.modelfree import STOCK, Classes, World, build, engine_config, make_request

CLIENTS = 50
PROMPT_TOKENS = 256
TOLERANCES = {
    "reuse_ratio": 1.10,  # median step of ours / stock, plans reused
    "replan_ratio": 1.15,  # the same, every step planned anew
    "flat": 0.10,  # a step with the most waiting requests against one with none, ours
    "add_growth": 4.0,  # adding to 100,000 waiting against adding to 1,000
}


class _Replanning(HybridSyncScheduler):
    def _can_reuse(self) -> bool:
        return False


class _ReplanningAsync(HybridScheduler):
    def _can_reuse(self) -> bool:
        return False


KINDS = {
    "stock": STOCK,
    "reuse": Classes(HybridSyncScheduler, HybridScheduler),
    "replan": Classes(_Replanning, _ReplanningAsync),
}


@dataclass
class Bench:
    """One scheduler with its running and waiting requests."""

    scheduler: Scheduler
    step_s: list[float] = field(default_factory=list)
    add_s: float = 0.0
    waiting: list[Request] = field(default_factory=list)

    def step(self, timed: bool = True) -> None:
        s = self.scheduler
        begin = time.thread_time()
        step = s.schedule()
        middle = time.thread_time()
        ids = list(step.num_scheduled_tokens)
        sampled = [[] if s.requests[i].is_prefill_chunk else [7] for i in ids]
        output = ModelRunnerOutput(
            req_ids=ids, req_id_to_index={i: n for n, i in enumerate(ids)}, sampled_token_ids=sampled
        )
        resume = time.thread_time()
        s.update_from_output(step, output)
        if timed:
            self.step_s.append(time.thread_time() - resume + middle - begin)


def _request(name: str, prompt: list[int], max_tokens: int, number: int, offline: bool) -> Request:
    identity = {"client": f"c{number % CLIENTS}", "lane": "offline" if offline else "online"}
    return make_request(name, prompt, max_tokens, arrival_s=number * 1e-3, extra_args=identity)


def make_bench(kind: str, running: int, waiting: int, seed: int) -> Bench:
    """A scheduler with `running` requests in decode and `waiting` ones that find no slot."""
    blocks = running * (PROMPT_TOKENS // 16 + 70) + 1000
    world = World(num_blocks=blocks, max_seqs=running, step_tokens=8192, hybrid=(("strict", True),))
    bench = Bench(build(KINDS[kind], world, engine_config(world)))
    rnd = random.Random(seed)
    for i in range(running):
        prompt = [rnd.randrange(1000) for _ in range(PROMPT_TOKENS)]
        bench.scheduler.add_request(_request(f"r{i}", prompt, 1000, i, offline=i % 2 == 0))
    while any(r.is_prefill_chunk for r in bench.scheduler.running) or len(bench.scheduler.running) < running:
        bench.step(timed=False)
    prompt = [rnd.randrange(1000) for _ in range(16)]
    bench.waiting = [_request(f"w{i}", prompt, 16, i, offline=True) for i in range(waiting)]
    begin = time.thread_time()
    for request in bench.waiting:
        bench.scheduler.add_request(request)
    bench.add_s = (time.thread_time() - begin) / max(1, waiting)
    return bench


def abort_us(bench: Bench, count: int = 5) -> float:
    """Microseconds to abort one waiting request from the middle of the queue."""
    middle = len(bench.waiting) // 2
    begin = time.thread_time()
    for request in bench.waiting[middle : middle + count]:
        bench.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
    return 1e6 * (time.thread_time() - begin) / count


def measure(running: int, most_waiting: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Rows for one number of running requests: every kind with an empty and with a long queue, in turn."""
    benches = {(kind, w): make_bench(kind, running, w, seed) for kind in KINDS for w in (0, most_waiting)}
    order = list(benches)
    gc.collect()
    gc.freeze()
    gc.disable()
    for bench in benches.values():
        for _ in range(6):
            bench.step(timed=False)
    for turn in range(steps):
        for name in order if turn % 2 else reversed(order):
            benches[name].step()
    gc.enable()
    gc.unfreeze()
    rows = []
    for (kind, waiting), bench in benches.items():
        median_s = statistics.median(bench.step_s)
        stock_s = statistics.median(benches["stock", waiting].step_s)
        empty_s = statistics.median(benches[kind, 0].step_s)
        row = {"running": running, "waiting": waiting, "kind": kind, "step_us": 1e6 * median_s}
        row |= {"ratio": median_s / stock_s, "to_empty_queue": median_s / empty_s}
        if waiting:
            row |= {"add_us": 1e6 * bench.add_s, "abort_us": abort_us(bench)}
        rows.append(row)
    return rows


def bytes_per_waiting(kind: str, count: int = 20_000) -> float:
    """Bytes a queue holds per waiting request, the request itself not counted."""
    world = World(num_blocks=1000, max_seqs=8, step_tokens=8192)
    scheduler = build(KINDS[kind], world, engine_config(world))
    requests = [_request(f"m{i}", [1, 2, 3], 4, i, offline=True) for i in range(count)]
    gc.collect()
    tracemalloc.start()
    for request in requests:
        scheduler.add_request(request)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / count


def add_growth(counts: tuple[int, int] = (1_000, 100_000)) -> float:
    """How much dearer adding the next 500 requests is with the larger queue."""
    cost = []
    for count in counts:
        bench = make_bench("reuse", 8, count, seed=1)
        late = [_request(f"late{i}", [1, 2, 3], 4, i, offline=True) for i in range(500)]
        begin = time.thread_time()
        for request in late:
            bench.scheduler.add_request(request)
        cost.append(time.thread_time() - begin)
    return cost[1] / cost[0]


def failures(rows: list[dict[str, Any]], growth: float) -> list[str]:
    """Tolerances that do not hold, in words."""
    failed = []
    for row in rows:
        name = f"{row['kind']}, {row['running']} running, {row['waiting']} waiting"
        limit = TOLERANCES.get(f"{row['kind']}_ratio")
        if limit and row["ratio"] > limit:
            failed.append(f"{name}: {row['ratio']:.3f}x stock, allowed {limit}")
        if limit and abs(row["to_empty_queue"] - 1) > TOLERANCES["flat"]:
            failed.append(f"{name}: {row['to_empty_queue']:.3f}x of an empty queue, allowed 1 +- {TOLERANCES['flat']}")
    if growth > TOLERANCES["add_growth"]:
        failed.append(f"adding grows {growth:.1f}x with the queue, allowed {TOLERANCES['add_growth']}")
    return failed


def show(rows: list[dict[str, Any]], memory: dict[str, float], growth: float) -> None:
    """Print the one table."""
    heads = {"running": 8, "waiting": 9, "  kind    ": 0, "step us": 10, "x stock": 9, "x empty": 9, "add us": 9}
    print("".join(f"{head:>{width}}" for head, width in heads.items()) + f"{'abort us':>10}")
    for r in rows:
        extra = f"{r['add_us']:>9.1f}{r['abort_us']:>10.1f}" if "add_us" in r else ""
        print(
            f"{r['running']:>8}{r['waiting']:>9}  {r['kind']:<8}{r['step_us']:>10.0f}{r['ratio']:>9.3f}"
            f"{r['to_empty_queue']:>9.3f}{extra}"
        )
    print(f"bytes held per waiting request: {', '.join(f'{k} {v:.0f}' for k, v in memory.items())}")
    print(f"adding a request to 100,000 waiting costs {growth:.2f}x of adding it to 1,000")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and steps, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a tolerance fails")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes, waiting, steps = ((64, 256), 10_000, 40) if args.quick else ((64, 256, 1024), 100_000, 60)
    rows = [row for running in sizes for row in measure(running, waiting, steps, args.seed)]
    memory = {kind: bytes_per_waiting(kind) for kind in ("stock", "reuse")}
    growth = add_growth((1_000, 20_000) if args.quick else (1_000, 100_000))
    show(rows, memory, growth)
    failed = failures(rows, growth)
    for line in failed:
        print("FAILED:", line)
    if args.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        record = {"benchmark": "overhead", "seed": args.seed, "env": machine, "tolerances": TOLERANCES, "rows": rows}
        record |= {"bytes_per_waiting": memory, "add_growth": growth, "failed": failed}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
