"""Capacity as Sarathi-Serve defines it: the highest rate at which a policy still meets the target.

The target: the 99th percentile of all times between two tokens within the limit, and a median scheduling delay of at
most two seconds.  The search is a bisection on a grid of rates 4 % apart; all rates replay the same requests faster
or slower, so that neighbouring rates differ in nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, effective_settings
from vllm_hybrid.sim.suites import make_workload
from vllm_hybrid.sim.suites.sarathi import ARXIV_MOST_TOKENS, CHAT_MOST_TOKENS

SEED = 1
STEP = 1.04
LONGEST_MEDIAN_DELAY_S = 2.0
POLICIES = ("orca", "prefill_first", "sarathi")
ORCA_BATCH = 16  # of the paper's two, 16 and 8, the one that serves Orca better
_LEAST_RATE = 0.02
_STRIDE = 3  # grid steps of the first bracket


@dataclass(frozen=True)
class Cell:
    """A model on its machine, a data set, a target and Sarathi's tokens per step for it."""

    device: str
    model: str
    data: str
    limit_s: float
    sarathi_tokens: int
    requests: int
    start_rates: tuple[float, float, float]  # where the search of each policy begins; its result does not depend on it

    @property
    def name(self) -> str:
        return f"{self.model} {self.data} {self.limit_s:g} s"

    @property
    def model_len(self) -> int:
        return CHAT_MOST_TOKENS if self.data == "chat" else ARXIV_MOST_TOKENS


@dataclass(frozen=True)
class Search:
    """One policy's capacity in one cell."""

    cell: Cell
    policy: str
    step: float = STEP

    @property
    def name(self) -> str:
        return f"{self.cell.name}/{self.policy}"

    @property
    def start_rate(self) -> float:
        return self.cell.start_rates[POLICIES.index(self.policy)]

    @property
    def contender(self) -> Contender:
        """The policy as its paper runs it. Whole-prompt policies take steps of up to the longest sequence."""
        cell, policy = self.cell, self.policy
        if policy == "sarathi":
            return Contender(policy, hybrid={"preset": policy}, engine={"step_tokens": cell.sarathi_tokens})
        engine = {"step_tokens": cell.model_len}
        if policy == "prefill_first":
            return Contender(policy, hybrid={"preset": policy}, engine=engine)
        options = {"batch_requests": ORCA_BATCH, "reserve_tokens": cell.model_len}
        return Contender(policy, hybrid={"preset": policy, "presets": {policy: options}}, engine=engine)


class Searched(Protocol):
    """Whose capacity is looked for, where, on which grid of rates, and from which rate on."""

    @property
    def cell(self) -> Cell: ...
    @property
    def step(self) -> float: ...
    @property
    def start_rate(self) -> float: ...
    @property
    def contender(self) -> Contender: ...


def capacity(search: Searched) -> tuple[dict[str, Any], dict[str, Any]]:
    """The capacity, what was seen there, what is missed one step above; what the search cost on this machine."""
    cpu_s, tried = 0.0, {}

    def tries(rung: int) -> dict[str, Any]:
        nonlocal cpu_s
        if rung not in tried:
            tried[rung], spent_s = _tried(search, rate_of(rung, search.step))
            cpu_s += spent_s
        return tried[rung]

    start = round(math.log(search.start_rate / _LEAST_RATE, search.step))
    best = highest(lambda rung: tries(rung)["met"], start)
    found = {
        "capacity": rate_of(best, search.step),
        "there": tries(best),
        "missed_above": tries(best + 1)["missed"],
        "rates_tried": len(tried),
    }
    return found, {"cpu_s": cpu_s}


def rate_of(rung: int, step: float) -> float:
    return _LEAST_RATE * step**rung


def highest(holds: Callable[[int], bool], start: int) -> int:
    """The highest rung that holds while the next one does not, searched around `start`; rung 0 is taken to hold."""
    low, high = start, start
    while low > 0 and not holds(low):
        low, high = max(0, low - _STRIDE), low
    while high <= low or holds(high):
        low, high = max(low, high), high + _STRIDE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _tried(search: Searched, rate: float) -> tuple[dict[str, Any], float]:
    """What was seen at that rate, and CPU seconds. A run is left as soon as the target cannot be met any more."""
    cell = search.cell
    requests = make_workload(f"sarathi-{cell.data}", SEED, qps=rate, requests=cell.requests)
    device, who = load_device(cell.device), search.contender
    settings = effective_settings(who, device, EngineSettings(max_seqs=128, max_model_len=cell.model_len))
    from vllm_hybrid.sim.loop import Simulation

    simulation = Simulation(requests, who, device, settings, SEED)
    begin_s = time.process_time()
    try:
        simulation.run(None, lambda now_s, finished: _give_up(simulation.record, cell.limit_s))
    except _Missed as missed:
        return {"met": False, "missed": str(missed)}, time.process_time() - begin_s
    return _seen(simulation.record, cell.limit_s), time.process_time() - begin_s


class _Missed(Exception):
    """Whatever the rest of the run does, the target is missed."""


def _give_up(record: RunRecord, limit_s: float) -> None:
    if late_gaps(record, limit_s) > 0.01 * sum(r.request.output_tokens - 1 for r in record.requests) + 1:
        raise _Missed("tbt")
    late = sum(delay_s > LONGEST_MEDIAN_DELAY_S for delay_s in _delays_s(record))
    if late > len(record.requests) / 2 + 1:
        raise _Missed("delay")


def late_gaps(record: RunRecord, limit_s: float) -> int:
    """Times between two tokens that were longer than the limit."""
    return sum(int((np.diff(np.asarray(request.token_s)) > limit_s).sum()) for request in record.requests)


def _delays_s(record: RunRecord) -> list[float]:
    return [r.scheduled_s - r.request.arrival_s for r in record.requests if r.scheduled_s is not None]


def _seen(record: RunRecord, limit_s: float) -> dict[str, Any]:
    gaps = np.concatenate([np.diff(np.asarray(request.token_s)) for request in record.requests])
    p99_tbt_s, median_delay_s = float(np.percentile(gaps, 99)), float(np.median(_delays_s(record)))
    missed = "tbt" if p99_tbt_s > limit_s else "delay" if median_delay_s > LONGEST_MEDIAN_DELAY_S else ""
    return {
        "met": not missed,
        "missed": missed,
        "p99_tbt_s": p99_tbt_s,
        "median_delay_s": median_delay_s,
        "preemptions": sum(request.preemptions for request in record.requests),
    }
