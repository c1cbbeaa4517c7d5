"""Service per client as the VTC paper's evaluation counts it: shares, rates, accumulated gap, service difference.

The service of a finished request, w_p * prompt + w_q * output tokens, is spread evenly over the time from its first
to its last token; a service rate is what falls into a window of a minute around a moment.  The accumulated gap is the
largest minus the smallest service any client got since the start.  The service difference sums over the clients how
far each is below the best served one or away from what it asked for, whichever is less: a client that asked for
little is not treated unfairly by getting little.  (OSDI'24, evaluation; the artifact's `visualize.py`.)
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_hybrid.sim.records import RunRecord

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
WINDOW_S = 60.0
WARMUP_S = 30.0
TICKS = 20


@dataclass(frozen=True, slots=True)
class Served:
    """One finished request."""

    client: str
    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    first_token_s: float
    finished_s: float

    @property
    def service(self) -> float:
        return INPUT_WEIGHT * self.prompt_tokens + OUTPUT_WEIGHT * self.output_tokens

    @property
    def wait_s(self) -> float:
        return self.first_token_s - self.arrival_s

    def service_within(self, start_s: float, end_s: float) -> float:
        overlap_s = min(end_s, self.finished_s) - max(start_s, self.first_token_s)
        if overlap_s <= 0:
            # A single token takes no time: its service falls on one moment.
            at_once = self.finished_s == self.first_token_s and start_s <= self.finished_s < end_s
            return self.service if at_once else 0.0
        return self.service * overlap_s / (self.finished_s - self.first_token_s)


@dataclass(frozen=True, slots=True)
class ServiceDifference:
    """The paper's fairness table: over the ticks of a run."""

    largest: float
    mean: float
    variance: float


def served(run: RunRecord) -> list[Served]:
    """The finished requests of a run."""
    return [
        Served(
            record.request.client,
            record.request.prompt_tokens,
            len(record.token_s),
            record.request.arrival_s,
            record.token_s[0],
            record.finished_s,
        )
        for record in run.requests
        if record.finished_s is not None and len(record.token_s)
    ]


def service_within(requests: Iterable[Served], start_s: float, end_s: float) -> dict[str, float]:
    """Service each client got in [start_s, end_s)."""
    service: dict[str, float] = defaultdict(float)
    for request in requests:
        service[request.client] += request.service_within(start_s, end_s)
    return dict(sorted(service.items()))


def service_rates(requests: Iterable[Served], start_s: float, end_s: float) -> dict[str, float]:
    """Service per second of each client in [start_s, end_s)."""
    return {client: got / (end_s - start_s) for client, got in service_within(requests, start_s, end_s).items()}


def shares(requests: Iterable[Served], start_s: float, end_s: float) -> dict[str, float]:
    """Each client's part of the service in [start_s, end_s); empty when there was none."""
    got = service_within(requests, start_s, end_s)
    total = sum(got.values())
    return {client: service / total for client, service in got.items()} if total else {}


def mean_wait_s(requests: Iterable[Served]) -> dict[str, float]:
    """Mean time to the first token, per client."""
    waits: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        waits[request.client].append(request.wait_s)
    return {client: statistics.fmean(waits[client]) for client in sorted(waits)}


def accumulated_gaps(
    requests: Sequence[Served], end_s: float, start_s: float = 0.0, every_s: float = 6.0
) -> list[float]:
    """Largest minus smallest service since `start_s`, at every tick up to `end_s`."""
    clients = {request.client for request in requests}
    so_far = dict.fromkeys(clients, 0.0)
    gaps = []
    for tick in range(int((end_s - start_s) / every_s)):
        at_s = start_s + tick * every_s
        for client, service in service_within(requests, at_s, at_s + every_s).items():
            so_far[client] += service
        gaps.append(max(so_far.values()) - min(so_far.values()))
    return gaps


def service_difference(
    requests: Sequence[Served], demand: Mapping[str, Sequence[tuple[float, float]]], duration_s: float
) -> ServiceDifference:
    """The fairness table's row. `demand`: client -> (arrival, service asked for) of its requests.

    Ticks are a window's half apart from the end of the warm-up on; the first of them is dropped.
    """
    at = [WARMUP_S + tick * duration_s / TICKS for tick in range(1, TICKS)]
    differences = [_difference_at(requests, demand, tick_s) for tick_s in at]
    return ServiceDifference(max(differences), statistics.fmean(differences), statistics.pvariance(differences))


def demand_of(run: RunRecord) -> dict[str, list[tuple[float, float]]]:
    """(arrival, service asked for) of a run's requests, per client; a refused one asks for nothing, as in the paper."""
    demand: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in run.requests:
        if record.refused:
            continue
        request = record.request
        service = INPUT_WEIGHT * request.prompt_tokens + OUTPUT_WEIGHT * request.output_tokens
        demand[request.client].append((request.arrival_s, service))
    return dict(demand)


def _difference_at(
    requests: Sequence[Served], demand: Mapping[str, Sequence[tuple[float, float]]], at_s: float
) -> float:
    start_s, end_s = at_s - WINDOW_S / 2, at_s + WINDOW_S / 2
    got = service_rates(requests, start_s, end_s)
    best = max(got.values(), default=0.0)
    total = 0.0
    for client, asked in demand.items():
        rate = got.get(client, 0.0)
        wanted = sum(service for arrival_s, service in asked if start_s <= arrival_s <= end_s) / WINDOW_S
        total += min(best - rate, abs(wanted - rate))
    return total
