"""What the quantum of locality buys and costs: clients whose requests share long prefixes, more than the pool can hold.

Four clients, each with four system prompts of 1,024 tokens, send requests that begin with one of them and go on with 64
tokens of their own; answers have 32 tokens. Everything arrives in the first seconds, so all clients wait until the end.
Plain VTC alternates between clients; with `fairness.quantum` a client may be ahead by so much to use what is cached.
The drift is the worst difference in charged service between two clients over any interval in which both waited.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.records import RunRecord, SimRequest
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate

DEVICE = "a10g_llama2_7b"
SETTINGS = EngineSettings(max_model_len=2048, prefix_caching=True)
QUANTA = (0, 1_000, 4_000, 16_000, 64_000)
CLIENTS, PREFIXES, PREFIX_BLOCKS, BLOCK_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 4, 4, 2, 512, 64, 32
SEED = 0
LEAST_GAIN = 1.1  # of the throughput, at the largest quantum


@dataclass(frozen=True)
class Run:
    """One preset with one quantum."""

    preset: str
    quantum: int
    requests: int = 1600

    @property
    def name(self) -> str:
        return f"{self.preset}/{self.quantum}"


def load(count: int) -> list[SimRequest]:
    """`count` requests, of every client in turn, with a prefix drawn from its client's."""
    rng = random.Random(SEED)
    return [
        SimRequest(
            f"r{number:05d}",
            number * 1e-3,
            PREFIX_BLOCKS * BLOCK_TOKENS + OWN_TOKENS,
            OUTPUT_TOKENS,
            client=f"client{number % CLIENTS}",
            hash_ids=tuple(100 * (PREFIXES * (number % CLIENTS) + prefix) + block for block in range(PREFIX_BLOCKS)),
            hash_block_tokens=BLOCK_TOKENS,
        )
        for number in range(count)
        for prefix in [rng.randrange(PREFIXES)]
    ]


def measured(run: Run) -> dict[str, Any]:
    """Throughput, hits and drift of a run."""
    settings = {"preset": run.preset, "memory": {"gate": "max_tokens"}, "fairness": {"quantum": run.quantum}}
    record = simulate(load(run.requests), Contender(run.name, hybrid=settings), load_device(DEVICE), SETTINGS)
    prompts = sum(r.request.prompt_tokens for r in record.requests)
    return {
        "requests_per_s": len(record.requests) / record.end_s,
        "hit_rate": sum(r.cached_tokens for r in record.requests) / prompts,
        "drift": charged_drift(record),
        "policy_errors": record.policy_errors,
    }


def charged_drift(record: RunRecord) -> float:
    """The largest difference of two clients' charged service over any interval until the first of them has no more."""
    last = {}
    events = []
    for r in record.requests:
        client = r.request.client
        assert r.scheduled_s is not None
        last[client] = max(last.get(client, 0.0), r.scheduled_s)
        events.append((r.token_s[0], client, float(r.request.prompt_tokens - r.cached_tokens)))
        events += [(at_s, client, 2.0) for at_s in r.token_s]
    until_s = min(last.values())
    got = dict.fromkeys(last, 0.0)
    low: dict[tuple[str, str], float] = {}
    worst = 0.0
    for at_s, client, service in sorted(events):
        if at_s > until_s:
            break
        got[client] += service
        for other in got.keys() - {client}:
            ahead = got[client] - got[other]
            low[client, other] = min(low.get((client, other), 0.0), ahead - service)
            worst = max(worst, ahead - low[client, other])
            low[other, client] = min(low.get((other, client), 0.0), -ahead)
    return worst


def checks(results: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """A quantum buys throughput; the drift stays within what it was and twice the quantum."""
    found = []
    for preset in sorted({name.partition("/")[0] for name in results}):
        own = {int(name.partition("/")[2]): r for name, r in results.items() if name.startswith(f"{preset}/")}
        plain, most = own[0], own[max(own)]
        gain = most["requests_per_s"] / plain["requests_per_s"]
        found.append(Check(f"throughput {preset}", f"{gain:.2f}x", f"at least {LEAST_GAIN}x", gain >= LEAST_GAIN))
        for quantum, result in own.items():
            allowed = plain["drift"] + 2 * quantum
            holds = result["drift"] <= allowed
            found.append(Check(f"drift {preset}/{quantum}", f"{result['drift']:,.0f}", f"<= {allowed:,.0f}", holds))
    return found


def main() -> int:
    given = arguments("locality", __doc__ or "")
    watch = Stopwatch()
    quanta, count = ((0, 16_000), 400) if given.quick else (QUANTA, 1600)
    runs = [Run(preset, quantum, count) for preset in ("vtc", "hybrid") for quantum in quanta]
    results = dict(zip((run.name for run in runs), run_all(measured, runs, given.workers), strict=True))
    rows = [
        {
            "preset": name.partition("/")[0],
            "quantum": name.partition("/")[2],
            "requests/s": f"{result['requests_per_s']:.2f}",
            "prompt tokens cached": f"{result['hit_rate']:.0%}",
            "drift (service)": f"{result['drift']:,.0f}",
        }
        for name, result in results.items()
    ]
    print(table(rows))
    setting = {"device": DEVICE, "seed": SEED, "requests": count}
    return finish(given, {"setting": setting, "runs": results}, {"wall_s": watch.seconds}, checks(results))


if __name__ == "__main__":
    sys.exit(main())
