"""Fitting a workload to a machine: a part of it, fewer requests, faster arrivals, shorter texts.

Thinning keeps the arrival times of the requests that stay, so bursts and lulls of the source survive;
rescaling the rate compresses all gaps by one factor, which keeps their coefficient of variation.  Every
function returns a new list sorted by arrival and leaves its input alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_hybrid.workload.traces import TraceRequest


@dataclass(frozen=True, slots=True)
class Scale:
    """Lengths are multiplied by `factor` and held between `least` and `most` tokens."""

    factor: float
    least: int = 1
    most: int = 1_000_000

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor = {self.factor}: must be greater than 0")
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least = {self.least}, most = {self.most}: must be 1 <= least <= most")

    def __call__(self, tokens: int) -> int:
        return min(self.most, max(self.least, round(tokens * self.factor)))


def duration_s(requests: Sequence[TraceRequest]) -> float:
    """Seconds from 0 to the last arrival."""
    return requests[-1].arrival_s if requests else 0.0


def window(requests: Sequence[TraceRequest], start_s: float, end_s: float) -> list[TraceRequest]:
    """The requests that arrive in [start_s, end_s), with times counted from start_s."""
    if not 0 <= start_s < end_s:
        raise ValueError(f"start_s = {start_s}, end_s = {end_s}: must be 0 <= start_s < end_s")
    inside = (r for r in requests if start_s <= r.arrival_s < end_s)
    return [replace(r, arrival_s=r.arrival_s - start_s) for r in inside]


def thin(requests: Sequence[TraceRequest], fraction: float, seed: int) -> list[TraceRequest]:
    """A random `fraction` of the requests (rounded to whole ones), each at its own time."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction}: must be in (0, 1]; to add load, rescale the rate")
    kept = random.Random(seed).sample(range(len(requests)), round(fraction * len(requests)))
    return [requests[i] for i in sorted(kept)]


def rescale_rate(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """The same requests, arriving `factor` times as fast."""
    if not factor > 0:
        raise ValueError(f"factor = {factor}: must be greater than 0")
    return [replace(r, arrival_s=r.arrival_s / factor) for r in requests]


def rescale_lengths(requests: Sequence[TraceRequest], prompt: Scale, output: Scale) -> list[TraceRequest]:
    """The same arrivals with other lengths; block ids are dropped, since they no longer cover the prompt."""
    return [
        replace(r, prompt_tokens=prompt(r.prompt_tokens), output_tokens=output(r.output_tokens), hash_ids=())
        for r in requests
    ]
