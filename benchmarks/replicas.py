"""Fairness over 2 to 128 replicas in simulation: our scheduler classes, the hub's books between them, no Ray.

    python -m benchmarks.replicas [--quick] [--check] [--workers N] [--out FILE]

Every replica is a simulated A10G with Llama-2-7B (10,000 tokens of KV, 4 requests at a time). Each has a client of its
own, backlogged from the start; after 3 s two clients come to all replicas at once with a backlog everywhere, so each of
the N + 2 is due the same service. Light clients send single requests to random replicas, one every two seconds and
replica in all; four of them, and one for every eight replicas where that is more, so that each asks for less than a
quarter of its due. With 128 replicas the same is run with four ("few"), which then ask for nine tenths of it. A replica
exchanges counters with the books every `staleness / 2`, so what it knows of the others is at most `staleness` old (what
was served since the other's last report, and since its own last answer). "local": no exchange.

Bound on the gap between two backlogged clients over any interval (docs/ray.md): 2 (N U + (N - 1) r D), where U is what
a replica's four slots hold (24 units a request), r the most service a replica gave in a second, D the staleness.
Goodput: light requests per second with a first token within 2 s, and tokens per second of everything.
"""

from __future__ import annotations

import heapq
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.ray.books import Books
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.records import Contender, EngineSettings, SimRequest
from vllm_hybrid.sim.run import effective_settings

DEVICE, SEED = "a10g_llama2_7b", 0
SETTINGS = EngineSettings(max_seqs=4, step_tokens=256, max_model_len=1024)
CONTENDER = Contender("hybrid", hybrid={"metrics": {"first_clients": 1000}})
SIZES, STALENESS_S = (2, 8, 32, 128), (0.05, 0.1, 0.2, 0.5, 1.0)
DURATION_S, WIDE_FROM_S, WARM_UP_S, SAMPLE_S = 16.0, 3.0, 7.0, 1.0
WIDE = ("wide0", "wide1")
LEAST_LIGHT, REPLICAS_PER_LIGHT = 4, 8
TOKENS = 8  # prompt and output of a request
OWN_RATE, WIDE_RATE, LIGHT_RATE = 18.0, 6.0, 0.5  # requests/s at a replica: own, each wide one, all light ones
BURST = 8  # requests of each backlogged client at its start
LIGHT_TTFT_S = 2.0
LEAST_GOODPUT, UP_TO_S = 0.98, 0.2
TTL_S = 10.0


@dataclass(frozen=True)
class Cell:
    """One run. staleness_s: None for local counters. few: the light clients are the least, however many replicas."""

    replicas: int
    staleness_s: float | None
    duration_s: float
    few: bool = False

    @property
    def name(self) -> str:
        known = "local" if self.staleness_s is None else f"{1000 * self.staleness_s:g} ms"
        return f"{self.replicas} replicas, {'few light, ' if self.few else ''}{known}"

    @property
    def light(self) -> list[str]:
        """The light clients."""
        count = LEAST_LIGHT if self.few else max(LEAST_LIGHT, self.replicas // REPLICAS_PER_LIGHT)
        return [f"light{i}" for i in range(count)]


def requests(cell: Cell) -> list[list[SimRequest]]:
    """The requests of every replica."""
    draw = random.Random(SEED)
    every: list[list[SimRequest]] = []
    for replica in range(cell.replicas):
        mine = []
        for client, rate, from_s in (
            (f"own{replica}", OWN_RATE, 0.0),
            *((name, WIDE_RATE, WIDE_FROM_S) for name in WIDE),
        ):
            arrivals = [from_s] * BURST
            arrivals += [from_s + (n + draw.random()) / rate for n in range(int(rate * (cell.duration_s - from_s)))]
            mine += [SimRequest("", at_s, TOKENS, TOKENS, client) for at_s in arrivals]
        count = int(LIGHT_RATE * cell.duration_s)
        mine += [
            SimRequest("", draw.uniform(0, cell.duration_s - LIGHT_TTFT_S), TOKENS, TOKENS, draw.choice(cell.light))
            for _ in range(count)
        ]
        mine.sort(key=lambda request: request.arrival_s)
        every.append([SimRequest(f"{replica}-{i}", *_fields(request)) for i, request in enumerate(mine)])
    return every


def _fields(request: SimRequest) -> tuple[float, int, int, str]:
    return request.arrival_s, request.prompt_tokens, request.output_tokens, request.client


def run(cell: Cell) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of a cell, and what it cost."""
    from vllm_hybrid.sim.loop import Simulation

    begin_s = time.process_time()
    device = load_device(DEVICE)
    settings = effective_settings(CONTENDER, device, SETTINGS)
    replicas = [Simulation(mine, CONTENDER, device, settings, SEED) for mine in requests(cell)]
    samples = _play(cell, replicas)
    figures = _figures(cell, replicas, samples)
    return figures, {"cpu_s": time.process_time() - begin_s}


def _play(cell: Cell, replicas: Sequence[Any]) -> np.ndarray:
    """Run everything; the service [time, replica, client] at every sample, clients in the order of `_clients`."""
    books = Books("sim", TTL_S)
    clients = _clients(cell)
    events: list[tuple[float, int]] = []
    if cell.staleness_s is not None:
        period_s = cell.staleness_s / 2
        events = [(period_s * i / len(replicas), i) for i in range(len(replicas))]
        heapq.heapify(events)
    samples = []
    for tick in range(1, int(cell.duration_s / SAMPLE_S) + 1):
        until_s = tick * SAMPLE_S
        while events and events[0][0] < until_s:
            at_s, i = events[0]
            replicas[i].run(at_s)
            _exchange(books, f"r{i}", replicas[i].scheduler.sharing, at_s)
            heapq.heapreplace(events, (at_s + period_s, i))
        for replica in replicas:
            replica.run(until_s)
        samples.append([_service(replica.scheduler, clients) for replica in replicas])
    return np.array(samples)


def _exchange(books: Books, name: str, sharing: Any, now_s: float) -> None:
    sharing.apply(books.report(name, sharing.report(), now_s))


def _clients(cell: Cell) -> list[str]:
    """Those that are backlogged."""
    return [f"own{i}" for i in range(cell.replicas)] + list(WIDE)


def _service(scheduler: Any, clients: Sequence[str]) -> list[float]:
    scheduler.ledger.settle()
    got = {client: cell.service for _, client, cell in scheduler.clients.named() if client is not None}
    return [got.get(client, 0.0) for client in clients]


def _figures(cell: Cell, replicas: Sequence[Any], samples: np.ndarray) -> dict[str, Any]:
    warm = int(WARM_UP_S / SAMPLE_S)
    total = samples.sum(axis=1)  # [time, client]
    both = total[int(WIDE_FROM_S / SAMPLE_S) - 1 :]  # since all are backlogged
    gap = max(np.ptp(both - both[:, [i]], axis=0).max() for i in range(both.shape[1]))
    per_second = np.diff(samples.sum(axis=2), axis=0, prepend=0) / SAMPLE_S
    got = total[-1] - total[warm - 1]
    shares = got / got.sum()
    counters = replicas[0].scheduler.counters
    bound = 2 * cell.replicas * SETTINGS.max_seqs * counters.cost((Lane.ONLINE, ""), TOKENS, TOKENS)
    stale = 2 * (cell.replicas - 1) * per_second.max() * (cell.staleness_s or 0.0)
    records = [record for replica in replicas for record in replica.record.requests]
    light = [r for r in records if r.request.client.startswith("light")]
    due_rate = sum(bool(r.token_s) for r in records) / cell.duration_s / len(shares)  # requests/s of a client
    kept = [r for r in light if r.token_s and r.token_s[0] - r.request.arrival_s <= LIGHT_TTFT_S]
    return {
        "replicas": cell.replicas,
        "staleness_s": cell.staleness_s,
        "few": cell.few,
        "light_share_of_due": LIGHT_RATE * cell.replicas / len(cell.light) / due_rate,
        "service_gap": float(gap),
        "bound": float(bound + stale),
        "bound_of_staleness": float(stale),
        "worst_share_of_due": float(np.abs(shares * len(shares) - 1).max()),
        "wide_share_of_due": float(shares[-len(WIDE) :].mean() * len(shares)),
        "own_share_of_due": float(shares[: -len(WIDE)].mean() * len(shares)),
        "light_goodput": len(kept) / cell.duration_s,
        "light_in_time": len(kept) / len(light),
        "tokens_per_s": sum(len(r.token_s) for r in records) / cell.duration_s,
        "policy_errors": sum(replica.record.policy_errors for replica in replicas),
    }


def checks(results: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    found = []
    for name, row in results.items():
        if row["staleness_s"] is None:
            continue
        local = results[Cell(row["replicas"], None, 0, row["few"]).name]
        gap = row["service_gap"] / row["bound"]
        found.append(Check(f"{name}: service gap / bound", f"{gap:.2f}", "at most 1", gap <= 1))
        if row["staleness_s"] <= UP_TO_S:
            for key in ("light_goodput", "tokens_per_s"):
                ratio = row[key] / local[key]
                wanted = f"at least {LEAST_GOODPUT:g}"
                found.append(Check(f"{name}: {key} / local", f"{ratio:.3f}", wanted, ratio >= LEAST_GOODPUT))
    return found


def _row(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "run": name,
        "gap": f"{row['service_gap']:,.0f}",
        "bound": "-" if row["staleness_s"] is None else f"{row['bound']:,.0f}",
        "of staleness": f"{row['bound_of_staleness']:,.0f}",
        "worst share off": f"{row['worst_share_of_due']:.1%}",
        "wide / due": f"{row['wide_share_of_due']:.2f}",
        "own / due": f"{row['own_share_of_due']:.2f}",
        "light asks / due": f"{row['light_share_of_due']:.2f}",
        "light in time": f"{row['light_in_time']:.1%}",
        "tokens/s": f"{row['tokens_per_s']:,.0f}",
    }


def _place(item: tuple[str, Mapping[str, Any]]) -> tuple[float, ...]:
    """Of a cell in the table."""
    return item[1]["replicas"], item[1]["few"], item[1]["staleness_s"] or 0.0


def main() -> int:
    given = arguments("replicas", __doc__.splitlines()[0])
    sizes, staleness, duration_s = ((2, 8), (0.2, 1.0), DURATION_S) if given.quick else (SIZES, STALENESS_S, DURATION_S)
    cells = [Cell(size, stale, duration_s) for size in reversed(sizes) for stale in (None, *staleness)]
    if not given.quick:
        few = (None, 0.02, *(stale for stale in staleness if stale <= UP_TO_S))
        cells = [Cell(sizes[-1], stale, duration_s, few=True) for stale in few] + cells
    watch = Stopwatch()
    outcomes = run_all(run, cells, given.workers)
    results = {cell.name: figures for cell, (figures, _) in zip(cells, outcomes, strict=True)}
    timing = {cell.name: spent for cell, (_, spent) in zip(cells, outcomes, strict=True)}
    results = dict(
        sorted(results.items(), key=lambda item: (item[1]["replicas"], item[1]["few"], item[1]["staleness_s"] or 0))
    )
    print(f"{duration_s:g} s, seed {SEED}, {DEVICE}, {WARM_UP_S:g} s warm-up: {watch.seconds:.0f} s\n")
    print(table([_row(name, row) for name, row in results.items()]))
    told = {"device": DEVICE, "duration_s": duration_s, "seed": SEED, "cells": results}
    spent = {"cpu_s": sum(cost["cpu_s"] for cost in timing.values()), "cells": timing}
    return finish(given, told, spent, checks(results))


if __name__ == "__main__":
    sys.exit(main())
