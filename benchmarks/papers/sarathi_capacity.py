"""Capacity as Sarathi-Serve defines it: the highest rate at which a policy still meets the target.

The target: the 99th percentile of all times between two tokens within the limit, and a median scheduling delay of at
most two seconds.  The search is a bisection on a grid of rates 4 % apart; all rates replay the same requests faster
or slower, so that neighbouring rates differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, simulate
from vllm_hybrid.sim.suites import make_workload
from vllm_hybrid.sim.suites.sarathi import ARXIV_MOST_TOKENS, CHAT_MOST_TOKENS

SEED = 1
STEP = 1.04
LONGEST_MEDIAN_DELAY_S = 2.0
POLICIES = ("orca", "prefill_first", "sarathi")
ORCA_BATCH = 16  # of the paper's two, 16 and 8, the one that serves Orca better
_LEAST_RATE = 0.02
_STRIDE = 6  # grid steps of the first bracket


@dataclass(frozen=True)
class Cell:
    """A model on its machine, a data set, a target and Sarathi's tokens per step for it."""

    device: str
    model: str
    data: str
    limit_s: float
    sarathi_tokens: int
    requests: int
    start_rate: float  # where the search begins; its result does not depend on it

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


def contender(search: Search) -> Contender:
    """The policy as its paper runs it. Whole-prompt policies take steps of up to the longest sequence."""
    cell, policy = search.cell, search.policy
    if policy == "sarathi":
        return Contender(policy, hybrid={"preset": policy}, engine={"step_tokens": cell.sarathi_tokens})
    engine = {"step_tokens": cell.model_len}
    if policy == "prefill_first":
        return Contender(policy, hybrid={"preset": policy}, engine=engine)
    options = {"batch_requests": ORCA_BATCH, "reserve_tokens": cell.model_len}
    return Contender(policy, hybrid={"preset": policy, "presets": {policy: options}}, engine=engine)


def capacity(search: Search) -> tuple[dict[str, Any], dict[str, Any]]:
    """The capacity and what was seen there and one step above; what the search cost on this machine."""
    cpu_s, tried = 0.0, {}

    def tries(rung: int) -> dict[str, Any]:
        nonlocal cpu_s
        if rung not in tried:
            record = _simulate(search, rate_of(rung, search.step))
            cpu_s += record.cpu_s
            tried[rung] = _seen(record, search.cell.limit_s)
        return tried[rung]

    start = round(math.log(search.cell.start_rate / _LEAST_RATE, search.step))
    best = highest(lambda rung: tries(rung)["met"], start)
    found = {
        "capacity": rate_of(best, search.step),
        "there": tries(best),
        "above": tries(best + 1),
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


def _simulate(search: Search, rate: float) -> RunRecord:
    cell = search.cell
    requests = make_workload(f"sarathi-{cell.data}", SEED, qps=rate, requests=cell.requests)
    settings = EngineSettings(max_seqs=128, max_model_len=cell.model_len)
    return simulate(requests, contender(search), load_device(cell.device), settings, seed=SEED)


def _seen(record: RunRecord, limit_s: float) -> dict[str, Any]:
    gaps = np.concatenate([np.diff(np.asarray(request.token_s)) for request in record.requests])
    delays = [r.scheduled_s - r.request.arrival_s for r in record.requests if r.scheduled_s is not None]
    p99_tbt_s, median_delay_s = float(np.percentile(gaps, 99)), float(np.median(delays))
    return {
        "met": p99_tbt_s <= limit_s and median_delay_s <= LONGEST_MEDIAN_DELAY_S,
        "p99_tbt_s": p99_tbt_s,
        "median_delay_s": median_delay_s,
        "preemptions": sum(request.preemptions for request in record.requests),
    }
