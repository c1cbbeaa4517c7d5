"""Batches cut from simulated runs, with what a measured table says each of them takes.

Each trace is served by the real scheduler class at two rates, half and nine tenths of what the device sustains, twice:
one part of the trace to fit on, the part that follows it to be held out. No request is in both. Steps are drawn from
all of a run's, uniformly, with a fixed seed; a run ends when its arrivals do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from vllm_hybrid.policy.latency_features import StepWork
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.device_models import Chunk, Device, query_key_pairs
from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.sim.suites import make_workload

Batch = tuple[StepWork, float]
"""What a step computes, and its seconds on the table."""

LOADS = (0.5, 0.9)  # of the rate the device sustains
PARTS = ("fit", "held out")
SEED = 0


@dataclass(frozen=True)
class Trace:
    """A workload by name; requests: how many one run serves."""

    name: str
    workload: str
    requests: int
    parameters: tuple[tuple[str, Any], ...] = ()

    def part(self, qps: float, number: int) -> list[SimRequest]:
        """The `number`-th part of the trace at that rate."""
        duration_s = self.requests / qps
        given = dict(self.parameters)
        return make_workload(self.workload, SEED, qps=qps, duration_s=duration_s, start_s=number * duration_s, **given)


class Recorder:
    """Answers as a device and writes down what it is asked."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.batches: list[Batch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def batch_seconds(self, prefills: list[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        """The device's answer."""
        seconds = self._device.batch_seconds(prefills, decodes, context_tokens, longest_tokens)
        work = StepWork(
            decodes=decodes,
            prefill_tokens=sum(tokens for tokens, _ in prefills),
            context_tokens=context_tokens,
            pairs=query_key_pairs(prefills),
            prefills=len(prefills),
            done_tokens=sum(done for _, done in prefills),
        )
        self.batches.append((work, seconds))
        return seconds


def cut(device_name: str, trace: Trace, count: int) -> dict[str, list[Batch]]:
    """`count` batches of each part, drawn from both rates."""
    device = load_device(device_name)
    settings = EngineSettings(prefix_caching=trace.workload == "mooncake")
    capacity = sustained_rate(device, trace, settings)
    rng = random.Random(f"{device_name} {trace.name} {SEED}")
    parts = {}
    for number, part in enumerate(PARTS):
        batches: list[Batch] = []
        for load in LOADS:
            qps = round(load * capacity, 3)
            recorder: Any = Recorder(device)
            requests = trace.part(qps, number)
            simulate(requests, Contender("hybrid"), recorder, settings, until_s=trace.requests / qps)
            batches += rng.sample(recorder.batches, min(count // len(LOADS), len(recorder.batches)))
        parts[part] = batches
    return parts


def sustained_rate(device: Device, trace: Trace, settings: EngineSettings) -> float:
    """Requests per second while a backlog of the first part is served: up to half of it, so that no tail counts."""
    backlog = [replace(request, arrival_s=0.0) for request in trace.part(1.0, 0)[: trace.requests // 2]]
    record = simulate(backlog, Contender("fcfs", stock="fcfs"), device, settings)
    half = len(backlog) // 2
    finished_s = sorted(r.finished_s for r in record.requests if r.finished_s is not None)
    return half / finished_s[half]
