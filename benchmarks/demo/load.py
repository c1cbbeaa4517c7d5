"""The demo's load: two online tenants and an offline backlog, the same requests for both schedulers.

Two phases.  *Flood*: a quiet tenant keeps to a fifth of the machine, at its trace's own times, while another
tenant asks for twice what the machine can do and an offline backlog is there from the start.  *Burst*: both
online tenants flood, asking 2 : 1, so that the shares they get can be compared while both are backlogged.

Demand is counted in seconds of the machine's capacity, which is measured just before (service per second,
service = prompt tokens + 2 x output tokens, as VTC charges it), and lengths are scaled so that the machine does
about three requests a second: the demo has the same shape on a slow machine and on a fast one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.demo.text import PromptWriter
from vllm_hybrid.workload import (
    Scale,
    TraceRequest,
    duration_s,
    rescale_lengths,
    rescale_rate,
    thin,
    window,
)

QUIET, FLOOD, BATCH = "quiet", "flood", "batch"


@dataclass(frozen=True, slots=True)
class Load:
    """Every factor of the load.  Shares are of the measured capacity, `work_s` are seconds of it."""

    flood_phase_s: float
    quiet_share: float
    flood_share: float
    offline_work_s: float
    burst_arrivals_s: float
    burst_work_s: float
    burst_ratio: float
    quiet_at: float
    flood_at: float
    quiet_burst_at: float
    flood_burst_at: float
    online_prompt: Scale
    online_output: Scale
    offline_prompt: Scale
    offline_output: Scale
    requests_per_s: float
    least_length_factor: float
    most_length_factor: float
    calibration_requests: int
    calibration_limit_s: float
    seed: int = 0

    @property
    def work_s(self) -> float:
        """Seconds one server needs for the load, if its capacity is what was measured."""
        flood_s = (self.quiet_share + self.flood_share) * self.flood_phase_s + self.offline_work_s
        return flood_s + (1 + self.burst_ratio) * self.burst_work_s

    def lasting(self, minutes: float) -> Load:
        """The same load for two servers that take `minutes` together, calibration not counted."""
        factor = minutes * 60 / 2 / self.work_s
        return replace(
            self,
            flood_phase_s=factor * self.flood_phase_s,
            offline_work_s=factor * self.offline_work_s,
            burst_arrivals_s=factor * self.burst_arrivals_s,
            burst_work_s=factor * self.burst_work_s,
        )


LOAD = Load(
    # Phase 1: a flood and an offline backlog beside a quiet tenant
    flood_phase_s=32,
    quiet_share=0.2,
    flood_share=2.0,
    offline_work_s=20,
    # Phase 2: the quiet tenant's own burst, and twice as much from the other
    burst_arrivals_s=10,
    burst_work_s=20,
    burst_ratio=2,
    # Where in the trace each slice starts, as a fraction of its duration: no request is used twice
    quiet_at=0.2,
    flood_at=0.35,
    quiet_burst_at=0.6,
    flood_burst_at=0.75,
    # Lengths: the trace's, times these, times one common factor that gives the machine `requests_per_s`
    online_prompt=Scale(0.09, least=16, most=280),
    online_output=Scale(0.10, least=4, most=48),
    offline_prompt=Scale(0.09, least=16, most=360),
    offline_output=Scale(0.075, least=4, most=48),
    requests_per_s=3,
    least_length_factor=0.5,
    most_length_factor=4,
    # Calibration, which is also the warm-up of both servers
    calibration_requests=40,
    calibration_limit_s=25,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One request of the demo."""

    tenant: str
    lane: str
    due_s: float
    prompt: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Phases:
    """The request lists, in the order they are replayed."""

    flood: list[Item]
    burst: list[Item]
    length_factor: float

    @property
    def digest(self) -> str:
        """Identifies the load: equal digests mean equal requests."""
        return hashlib.sha256(repr((self.flood, self.burst)).encode()).hexdigest()[:16]


class LoadError(ValueError):
    """The trace does not hold the load that is asked for."""


def service(requests: Sequence[TraceRequest]) -> float:
    return sum(r.prompt_tokens + 2 * r.output_tokens for r in requests)


def calibration(load: Load, trace: Sequence[TraceRequest], writer: PromptWriter) -> list[Item]:
    """Requests like the online tenants', all at once: what the machine does while they queue is its capacity."""
    lengths = rescale_lengths(trace[: load.calibration_requests], load.online_prompt, load.online_output)
    return [_item("warmup", "online", replace(r, arrival_s=0.0), writer) for r in lengths]


def build(
    load: Load,
    capacity: float,
    trace: Sequence[TraceRequest],
    offline: Sequence[TraceRequest],
    writer: PromptWriter,
) -> Phases:
    """The demo's requests for a machine of `capacity` service per second."""
    factor = _length_factor(load, capacity, trace)
    slices = _Slices(
        rescale_lengths(trace, _times(load.online_prompt, factor), _times(load.online_output, factor)),
        load.seed,
    )
    quiet = slices.at_own_times(load.quiet_at, load.flood_phase_s, load.quiet_share * capacity)
    flood = slices.compressed(load.flood_at, load.flood_phase_s, load.flood_share * capacity)
    backlog = _backlog(load, capacity, factor, offline)
    burst_rate = load.burst_work_s * capacity / load.burst_arrivals_s
    quiet_burst = slices.compressed(load.quiet_burst_at, load.burst_arrivals_s, burst_rate)
    flood_rate = load.burst_ratio * burst_rate
    flood_burst = slices.compressed(load.flood_burst_at, load.burst_arrivals_s, flood_rate)
    return Phases(
        flood=_items([(BATCH, "offline", backlog), (QUIET, "online", quiet), (FLOOD, "online", flood)], writer),
        burst=_items([(QUIET, "online", quiet_burst), (FLOOD, "online", flood_burst)], writer),
        length_factor=factor,
    )


@dataclass(frozen=True, slots=True)
class _Slices:
    """Parts of one trace, each with the service per second that is asked for."""

    trace: Sequence[TraceRequest]
    seed: int

    def at_own_times(self, start: float, length_s: float, rate: float) -> list[TraceRequest]:
        """A thinned slice; where the trace itself has less than `rate`, it has to be compressed instead."""
        start_s = start * duration_s(self.trace)
        requests = window(self.trace, start_s, start_s + length_s)
        fraction = rate * length_s / max(1.0, service(requests))
        if fraction > 1:
            return self.compressed(start, length_s, rate)
        return thin(requests, fraction, self.seed)

    def compressed(self, start: float, length_s: float, rate: float) -> list[TraceRequest]:
        """As much of the trace as makes `rate` for `length_s` seconds, in that time."""
        start_s = start * duration_s(self.trace)
        taken: list[TraceRequest] = []
        left = rate * length_s
        for request in self.trace:
            if request.arrival_s >= start_s and left > 0:
                taken.append(replace(request, arrival_s=request.arrival_s - start_s))
                left -= service([request])
        if left > 0:
            raise LoadError(f"the trace is too short: from {start:.0%} on it lacks {left / rate:.0f} s of work")
        return rescale_rate(taken, max(duration_s(taken), 1e-9) / length_s)


def _length_factor(load: Load, capacity: float, trace: Sequence[TraceRequest]) -> float:
    lengths = rescale_lengths(trace, load.online_prompt, load.online_output)
    factor = capacity / load.requests_per_s / (service(lengths) / len(lengths))
    return min(load.most_length_factor, max(load.least_length_factor, factor))


def _times(scale: Scale, factor: float) -> Scale:
    return replace(scale, factor=scale.factor * factor, most=round(scale.most * factor))


def _backlog(load: Load, capacity: float, factor: float, offline: Sequence[TraceRequest]) -> list[TraceRequest]:
    """A random part of the offline sample, all due at the start, worth `offline_work_s` of the machine."""
    scaled = rescale_lengths(offline, _times(load.offline_prompt, factor), _times(load.offline_output, factor))
    random.Random(load.seed).shuffle(scaled)
    backlog: list[TraceRequest] = []
    left = load.offline_work_s * capacity
    while left > 0:
        # Only the distribution matters: a short sample may be drawn from again.
        backlog.append(replace(scaled[len(backlog) % len(scaled)], arrival_s=0.0))
        left -= service(backlog[-1:])
    return backlog


def _items(groups: Sequence[tuple[str, str, list[TraceRequest]]], writer: PromptWriter) -> list[Item]:
    items = [_item(tenant, lane, r, writer) for tenant, lane, requests in groups for r in requests]
    return sorted(items, key=lambda item: item.due_s)


def _item(tenant: str, lane: str, request: TraceRequest, writer: PromptWriter) -> Item:
    prompt = writer.write(request.prompt_tokens)
    return Item(tenant, lane, request.arrival_s, prompt, request.output_tokens)
