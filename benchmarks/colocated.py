"""Online work beside an endless offline backlog on the real engine: ours and stock `priority`, beside online alone.

    python -m benchmarks.colocated [--model smollm2|tiny] [--quick] [--check] [--clock wall|cpu] [--out FILE]

How many tokens per second the engine computes of the mix is measured first; the online requests then come at random so
that they are 22 % of that. They are served alone, under stock, and what they saw there is what ours is told to keep:
the 99th percentile of their first tokens as `ttft_s`, their worst gap as `tbt_s` (strict). Then the same requests come
beside the backlog, under stock `priority` and under ours. Figures are medians over the rounds; the two take turns in
going first.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import live_engine
from benchmarks.demo import machine, model
from benchmarks.papers.common import RESULTS, Check, finish, table
from vllm_hybrid.sim.records import Contender, EngineSettings, RunRecord, SimRequest

SETTINGS = EngineSettings(max_seqs=32, step_tokens=1_024, pool_tokens=32_768, block_size=32, max_model_len=1_024)
ONLINE_SHARE = 0.22  # of the tokens that the engine computes per second
ONLINE, QUICK_ONLINE, WARM_UP_ONLINE = 120, 12, 20  # requests
PROMPT_TOKENS, OUTPUT_TOKENS = (64, 256), (16, 48)
OFFLINE_PROMPT_TOKENS, OFFLINE_OUTPUT_TOKENS = (256, 512), (16, 48)
OFFLINE = 400  # requests; more than the engine can do beside ONLINE
LEAD_S = 2.0  # of the backlog, before the first online request comes
CAPACITY_REQUESTS = 60
IDLE_STEP_S = 0.15  # longest step that offline work fills up
ROUNDS = 3
SLOWER, LEAST_TOTAL = 0.10, 3.0


def _lengths(rng: random.Random, prompt: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    return rng.randint(*prompt), rng.randint(*output)


def offline(seed: int, count: int) -> list[SimRequest]:
    """Requests that are there from the beginning; stock's `priority` sees them behind the online ones."""
    rng = random.Random(f"offline {seed}")
    draw = (_lengths(rng, OFFLINE_PROMPT_TOKENS, OFFLINE_OUTPUT_TOKENS) for _ in range(count))
    return [SimRequest(f"b{seed}.{i}", 0.0, *tokens, "batch", "offline", priority=1) for i, tokens in enumerate(draw)]


def online(seed: int, count: int, tokens_per_s: float) -> list[SimRequest]:
    """Poisson arrivals after `LEAD_S`, as many per second as make `tokens_per_s`."""
    rng = random.Random(f"online {seed}")
    lengths = [_lengths(rng, PROMPT_TOKENS, OUTPUT_TOKENS) for _ in range(count)]
    rate = tokens_per_s / statistics.fmean(map(sum, lengths))
    gaps = [rng.expovariate(rate) for _ in range(count)]
    stretch = count / rate / sum(gaps)  # exactly the rate, whatever was drawn
    arrivals = LEAD_S + np.cumsum(gaps) * stretch
    return [SimRequest(f"o{seed}.{i}", float(at_s), *lengths[i]) for i, at_s in enumerate(arrivals)]


class Bench:
    """Engines of one model, by one clock."""

    def __init__(self, folder: str, clock: str) -> None:
        self._folder = folder
        self._clock = clock

    @contextmanager
    def _engine(self, contender: Contender) -> Iterator[Any]:
        with live_engine.engine_of(self._folder, machine.fast_dtype(), contender, SETTINGS) as engine:
            yield engine

    def _serve(self, engine: Any, contender: Contender, requests: list[SimRequest], lane: str | None) -> RunRecord:
        if contender.stock is None and self._clock == "cpu":
            engine.engine_core.engine_core.scheduler.clock = time.process_time
        clock = live_engine.Clock(self._clock)
        return live_engine.serve(engine, contender, SETTINGS, requests, clock, lane).run

    def capacity(self) -> float:
        """Tokens per second of offline and online requests, all there at the beginning."""
        contender, half = Contender("fcfs", stock="fcfs"), CAPACITY_REQUESTS // 2
        requests = [
            *offline(0, half),
            *(SimRequest(f"c{r.request_id}", 0.0, r.prompt_tokens, r.output_tokens) for r in online(0, half, 1.0)),
        ]
        with self._engine(contender) as engine:
            self._serve(engine, contender, requests[::6], None)  # warm-up
            return _tokens_per_s(self._serve(engine, contender, requests, None))

    def beside(
        self, contender: Contender, seed: int, count: int, tokens_per_s: float, backlog: int
    ) -> dict[str, float]:
        """What `count` online requests see beside `backlog` offline ones, after a warm-up of the same kind."""
        with self._engine(contender) as engine:
            before = online(seed + 1_000, WARM_UP_ONLINE, tokens_per_s) + offline(seed + 1_000, backlog)
            self._serve(engine, contender, before, "online")
            run = self._serve(engine, contender, online(seed, count, tokens_per_s) + offline(seed, backlog), "online")
        return figures(run)


def _tokens_per_s(run: RunRecord, since_s: float = 0.0) -> float:
    """Tokens of prompts whose first token came, and generated ones, after `since_s`."""
    tokens = 0
    for record in run.requests:
        tokens += sum(at_s >= since_s for at_s in record.token_s)
        if len(record.token_s) and record.token_s[0] >= since_s:
            tokens += record.request.prompt_tokens
    return tokens / (run.end_s - since_s)


def figures(run: RunRecord) -> dict[str, float]:
    """The online requests' first tokens and gaps, and the tokens of everybody."""
    seen = [record for record in run.requests if record.request.lane == "online"]
    first = [record.token_s[0] - record.request.arrival_s for record in seen]
    gaps = np.concatenate([np.diff(record.token_s) for record in seen])
    return {
        "p99_ttft_s": float(np.percentile(first, 99)),
        "mean_ttft_s": statistics.fmean(first),
        "worst_gap_s": float(gaps.max()),
        "p99_gap_s": float(np.percentile(gaps, 99)),
        "mean_gap_s": float(gaps.mean()),
        "tokens_per_s": _tokens_per_s(run, LEAD_S),
        "preemptions": float(sum(record.preemptions for record in run.requests)),
        "seconds": run.end_s,
    }


def ours(alone: Mapping[str, float]) -> Contender:
    """Told what online requests saw alone."""
    target = {"ttft_s": alone["p99_ttft_s"], "tbt_s": alone["worst_gap_s"], "gap": "strict"}
    return Contender("hybrid", hybrid={"slo": {"online": target, "idle_step_s": IDLE_STEP_S}})


def rounds(bench: Bench, count: int, requests: int, tokens_per_s: float) -> dict[str, dict[str, float]]:
    """Online alone and beside the backlog under both, `count` times; medians."""
    stock = Contender("priority", stock="priority")
    seen: dict[str, list[dict[str, float]]] = {"online alone": [], "priority": [], "hybrid": []}
    for number in range(count):
        alone = bench.beside(stock, number, requests, tokens_per_s, 0)
        seen["online alone"].append(alone)
        for contender in (stock, ours(alone))[:: 1 if number % 2 == 0 else -1]:
            seen[contender.name].append(bench.beside(contender, number, requests, tokens_per_s, OFFLINE))
    return {name: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for name, runs in seen.items()}


def checks(found: Mapping[str, Mapping[str, float]]) -> list[Check]:
    alone, hybrid = found["online alone"], found["hybrid"]
    late_s = hybrid["p99_ttft_s"] - alone["p99_ttft_s"] * (1 + SLOWER)
    gap, total = hybrid["worst_gap_s"] / alone["worst_gap_s"], hybrid["tokens_per_s"] / alone["tokens_per_s"]
    said = f"{alone['p99_ttft_s']:.3f} s -> {hybrid['p99_ttft_s']:.3f} s"
    wanted = f"+{SLOWER:.0%} and an idle step of {IDLE_STEP_S:g} s"
    return [
        Check("p99 TTFT", said, wanted, late_s <= IDLE_STEP_S),
        Check("worst gap", f"{gap - 1:+.1%}", f"at most +{SLOWER:.0%}", gap <= 1 + SLOWER),
        Check("total tokens/s", f"{total:.2f}x", f"at least {LEAST_TOTAL:g}x", total >= LEAST_TOTAL),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colocated", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", choices=sorted(model.MAKERS))
    parser.add_argument("--quick", action="store_true", help="the tiny model, one short round, and no claim")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a tolerance fails")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: on a machine with other work")
    parser.add_argument("--out", type=Path, help="file of the results (benchmarks/results/; none with --quick)")
    given = parser.parse_args()
    if given.out is None and not given.quick:
        given.out = RESULTS / "colocated.json"
    os.environ.update(live_engine.IN_PROCESS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    served = "tiny" if given.quick else given.model
    count, requests = (1, QUICK_ONLINE) if given.quick else (ROUNDS, ONLINE)
    bench = Bench(str(model.prepare(served)), given.clock)
    capacity = bench.capacity()
    found = rounds(bench, count, requests, ONLINE_SHARE * capacity)
    print(f"The engine computes {capacity:.0f} tokens/s; the online requests are {ONLINE_SHARE:.0%} of that.\n")
    print(table([{"run": name} | {key: f"{value:.3f}" for key, value in row.items()} for name, row in found.items()]))
    setting = {"machine": machine.describe(), "model": served, "clock": given.clock, "rounds": count}
    setting |= {"online_requests": requests, "online_share": ONLINE_SHARE, "capacity_tokens_per_s": capacity}
    return finish(given, {"setting": setting, "runs": found}, {}, [] if given.quick else checks(found))


if __name__ == "__main__":
    sys.exit(main())
