"""When requests arrive: the arrival processes of the published experiments, and the order of a finished list.

Every stream has its own random generator, seeded by the workload's seed and the stream's name, so that a list does
not change for one client because another one was added.  Poisson and gamma gaps are drawn at rate 1 and divided by
the rate: a sweep over the rate replays one sequence faster or slower, which keeps a search over it monotonic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate

from vllm_hybrid.sim.records import SimRequest

ON_OFF_S = 60.0  # VTC's bursty clients: a minute on, a minute off


def stream(seed: int, name: object) -> random.Random:
    """The random generator of one stream of a workload."""
    return random.Random(f"{seed}/{name}")


def uniform(rng: random.Random, rate: float, duration_s: float) -> list[float]:
    """Fixed gaps from a random start within the first gap."""
    first_s = rng.random() / rate
    return [first_s + i / rate for i in range(int(rate * duration_s))]


def gamma(rng: random.Random, rate: float, cv: float, count: int) -> list[float]:
    """`count` arrivals whose gaps have the coefficient of variation `cv`; 1 is Poisson."""
    shape = 1 / cv**2
    gaps = (rng.gammavariate(shape, 1 / shape) for _ in range(count))
    return [arrival / rate for arrival in accumulate(gaps)]


def ramp(start_rate: float, end_rate: float, duration_s: float) -> list[float]:
    """A rate that grows linearly; each gap is the inverse of the rate at its beginning (as in the VTC artifact)."""
    arrivals, now_s = [], 0.0
    for _ in range(int((start_rate + end_rate) / 2 * duration_s)):
        now_s += 1 / (start_rate + (end_rate - start_rate) * now_s / duration_s)
        arrivals.append(now_s)
    return arrivals


def merged_poisson(rng: random.Random, rates: tuple[float, ...], duration_s: float) -> list[tuple[float, int]]:
    """(arrival, client's index): one Poisson process, each arrival's client picked by the clients' rates."""
    arrivals = gamma(rng, sum(rates), 1.0, int(sum(rates) * duration_s))
    clients = range(len(rates))
    return [(arrival_s, rng.choices(clients, rates)[0]) for arrival_s in arrivals]


def is_on(arrival_s: float, period_s: float = ON_OFF_S) -> bool:
    """Whether an on/off client sends at that time: the odd periods are silent."""
    return int(arrival_s // period_s) % 2 == 0


def in_order(requests: Iterable[SimRequest]) -> list[SimRequest]:
    """Sorted by arrival, with ids in that order, and the lane's priority for vLLM's own `priority` policy."""
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    return [
        replace(request, request_id=f"r{index:06d}", priority=int(request.lane == "offline"))
        for index, request in enumerate(ordered)
    ]


def fitting(draw: Callable[[], tuple[int, int]], most_tokens: int) -> Iterator[tuple[int, int]]:
    """Endless (prompt, output) lengths from `draw`, without those longer than `most_tokens` together."""
    while True:
        prompt_tokens, output_tokens = draw()
        if prompt_tokens + output_tokens <= most_tokens:
            yield prompt_tokens, output_tokens
