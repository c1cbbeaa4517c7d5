"""How far apart the service of two clients drifts while both of them wait, against the bound of the VTC paper.

A fair queue owes a client its share only while it has something waiting, so accumulated totals are compared over the
stretches in which both clients of a pair are backlogged, and over every interval within such a stretch. VTC keeps that
difference within 2U, U = max(w_p * longest prompt, w_q * pool); what is printed is the worst one found as a part of
2U. Service is what was delivered: a prompt when its first token arrives, an output token when it arrives, divided by
the client's weight. Clients are compared within their lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np

from vllm_hybrid.sim.answers import Answer, Seconds

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
_MOST_COMPARED = 32  # clients; the pairs of more would take longer than the run
_CURVE_POINTS = 61
_MOST_CURVES = 8

Span = tuple[float, float]


@dataclass(frozen=True)
class ClientService:
    """What one client got, and when it waited."""

    lane: str
    client: str
    weight: float
    times_s: Seconds  # sorted
    amounts: Seconds  # service at each of the times
    backlogged: Sequence[Span]  # disjoint, sorted

    @property
    def total(self) -> float:
        return float(self.amounts.sum())

    @property
    def backlogged_s(self) -> float:
        return sum(end_s - start_s for start_s, end_s in self.backlogged)

    def accumulated(self, at_s: Seconds) -> Seconds:
        """Service up to and including each time of `at_s`."""
        sums = np.concatenate([[0.0], np.cumsum(self.amounts)])
        return sums[np.searchsorted(self.times_s, at_s, side="right")]

    def between(self, start_s: float, end_s: float) -> float:
        """Service in [start_s, end_s)."""
        low, high = np.searchsorted(self.times_s, [start_s, end_s], side="left")
        return float(self.amounts[low:high].sum())


@dataclass(frozen=True)
class Drift:
    """The worst difference found between two clients of a lane that both waited."""

    service: float
    lane: str
    clients: tuple[str, str]


def services(answers: Sequence[Answer], weights: Mapping[str, float]) -> list[ClientService]:
    """Every client's service, by lane and name."""
    own: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        own[answer.record.request.lane, answer.record.request.client].append(answer)
    return [_service(lane, client, weights.get(client, 1.0), own[lane, client]) for lane, client in sorted(own)]


def drift_figures(clients: Sequence[ClientService], longest_prompt: int, pool_tokens: int) -> dict[str, Any]:
    """The worst drift between two clients, beside the bound."""
    least_weight = min((c.weight for c in clients), default=1.0)
    bound = 2 * max(INPUT_WEIGHT * longest_prompt, OUTPUT_WEIGHT * pool_tokens) / least_weight
    compared = sorted(clients, key=lambda c: (-c.backlogged_s, c.lane, c.client))[:_MOST_COMPARED]
    worst = max(worst_drifts(compared), key=lambda d: d.service, default=None)
    return {
        "bound_2u": bound,
        "worst_gap_service": worst.service if worst else None,
        "worst_gap_of_bound": worst.service / bound if worst else None,
        "worst_gap_lane": worst.lane if worst else None,
        "worst_gap_clients": list(worst.clients) if worst else [],
        "clients": len(clients),
        "clients_compared": len(compared),
    }


def worst_drifts(clients: Sequence[ClientService]) -> Iterator[Drift]:
    """Of each pair that ever waited at the same time, the largest |W_f - W_g| over an interval of that."""
    for lane in sorted({c.lane for c in clients}):
        own = [c for c in clients if c.lane == lane]
        grid = np.unique(np.concatenate([c.times_s for c in own]))
        sums = {c.client: c.accumulated(grid) / c.weight for c in own}
        for f, g in combinations(own, 2):
            drifts = [
                _range(sums[f.client], sums[g.client], grid, span) for span in overlaps(f.backlogged, g.backlogged)
            ]
            if drifts:
                yield Drift(max(drifts), lane, (f.client, g.client))


def largest_delivery(clients: Sequence[ClientService]) -> float:
    """Most service, by weight, that one of two waiting clients of a lane got at one moment; 0 if no two ever waited.

    A prompt is delivered at once, so the worst drift of the same run is never smaller than this.
    """
    most = 0.0
    for f, g in permutations(clients, 2):
        if f.lane != g.lane:
            continue
        for start_s, end_s in overlaps(f.backlogged, g.backlogged):
            low, high = np.searchsorted(f.times_s, [start_s, end_s], side="right")
            most = max(most, float(f.amounts[low:high].max(initial=0.0)) / f.weight)
    return most


def curves(clients: Sequence[ClientService], end_s: float) -> dict[str, Any]:
    """Accumulated service over time of the clients that got most, for a plot."""
    at_s = np.linspace(0, end_s, _CURVE_POINTS)
    most = sorted(clients, key=lambda c: (-c.total, c.lane, c.client))[:_MOST_CURVES]
    return {
        "at_s": at_s.tolist(),
        "service": {f"{c.client} ({c.lane})": c.accumulated(at_s).tolist() for c in most},
    }


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same stretches of time, disjoint and sorted; those that touch become one."""
    found: list[Span] = []
    for start_s, end_s in sorted(spans):
        if found and start_s <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end_s))
        elif end_s > start_s:
            found.append((start_s, end_s))
    return found


def overlaps(these: Sequence[Span], those: Sequence[Span]) -> Iterator[Span]:
    """Where two lists of disjoint, sorted stretches overlap."""
    i = j = 0
    while i < len(these) and j < len(those):
        start_s, end_s = max(these[i][0], those[j][0]), min(these[i][1], those[j][1])
        if start_s < end_s:
            yield start_s, end_s
        if these[i][1] <= those[j][1]:
            i += 1
        else:
            j += 1


def _service(lane: str, client: str, weight: float, answers: Sequence[Answer]) -> ClientService:
    started = [s for s in answers if s.started]
    firsts = [s.tokens_s[0] for s in started]
    times = np.concatenate([firsts, *(s.tokens_s for s in started)])
    prompts = np.array([INPUT_WEIGHT * s.record.request.prompt_tokens for s in started])
    amounts = np.concatenate([prompts, np.full(len(times) - len(firsts), OUTPUT_WEIGHT)])
    order = np.argsort(times, kind="stable")
    waits = ((s.arrival_s, _admitted_s(s)) for s in answers if not s.record.refused)
    return ClientService(lane, client, weight, times[order], amounts[order], merged(waits))


def _admitted_s(answer: Answer) -> float:
    scheduled_s = answer.record.scheduled_s
    return answer.end_s if scheduled_s is None else scheduled_s


def _range(f: Seconds, g: Seconds, grid: Seconds, span: Span) -> float:
    """Largest difference of f - g between two times of the stretch, its beginning included."""
    low, high = np.searchsorted(grid, span, side="right")
    difference = f[max(0, low - 1) : high] - g[max(0, low - 1) : high]
    if low == 0:  # nothing was served before the stretch began
        difference = np.append(difference, 0.0)
    return float(difference.max() - difference.min()) if len(difference) else 0.0
