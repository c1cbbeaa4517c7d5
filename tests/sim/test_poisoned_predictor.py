"""The real scheduler with a predictor that goes wrong in the middle of a run: nothing stops, online comes first."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.loop import Simulation
from vllm_hybrid.sim.records import RunRecord
from vllm_hybrid.sim.run import Contender, EngineSettings
from vllm_hybrid.sim.suites import make_workload

pytestmark = pytest.mark.oracle

DEVICE = load_device("a100_llama31_8b_bf16")
SETTINGS = EngineSettings(max_seqs=64, step_tokens=2048, pool_tokens=60_000, max_model_len=8_192)
TBT_S = 0.1
HYBRID = {"slo": {"online": {"ttft_s": 2.0, "tbt_s": TBT_S, "gap": "strict"}}}
POISONED_S, END_S = 20.0, 60.0


def coefficients_times(factor: float) -> Callable[[Simulation], None]:
    def poison(run: Simulation) -> None:
        predictor = run.scheduler.predictor
        predictor.coefficients = [factor * value for value in predictor.coefficients]

    return poison


def times(change: Callable[[float], float]) -> Callable[[Simulation], None]:
    def poison(run: Simulation) -> None:
        predictor: Any = run.scheduler.predictor
        learn = predictor.observe
        predictor.observe = lambda work, seconds, alone=True: learn(work, change(seconds), alone)

    return poison


def clock_jumps(by_s: float) -> Callable[[Simulation], None]:
    def poison(run: Simulation) -> None:
        run.scheduler.clock = lambda: run.now_s + by_s

    return poison


POISONS: dict[str, Callable[[Simulation], None]] = {
    "coefficients nan": coefficients_times(math.nan),
    "coefficients zero": coefficients_times(0.0),
    "coefficients a tenth": coefficients_times(0.1),
    "coefficients tenfold": coefficients_times(10.0),
    "times nan": times(lambda seconds: math.nan),
    "times zero": times(lambda seconds: 0.0),
    "times tenfold": times(lambda seconds: 10 * seconds),
    "clock an hour ahead": clock_jumps(3_600.0),
    "clock an hour back": clock_jumps(-3_600.0),
}


class Poisoned(Simulation):
    """Poisons the predictor once, at `POISONED_S`."""

    poison: Callable[[Simulation], None] | None = None

    def _turn(self) -> None:
        if self.poison is not None and self.now_s >= POISONED_S:
            self.poison(self)
            self.poison = None
        super()._turn()


@cache
def served(poison: str | None, async_mode: bool) -> RunRecord:
    requests = make_workload("hygen", 0, qps=1.5, duration_s=END_S, offline_requests=150, source="twin")
    settings = EngineSettings(**{**vars(SETTINGS), "async_mode": async_mode})
    run = Poisoned(requests, Contender("hybrid", hybrid=HYBRID), DEVICE, settings, 0)
    run.poison = POISONS[poison] if poison else None
    return run.run(None)


def late_share(record: RunRecord) -> float:
    """Of the gaps between online tokens after the poisoning: how many were longer than the target."""
    gaps = [
        later - earlier
        for r in record.requests
        if r.request.lane == "online"
        for earlier, later in pairwise(r.token_s)
        if later > POISONED_S
    ]
    return sum(gap > TBT_S for gap in gaps) / len(gaps)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("poison", POISONS)
def test_everybody_is_served_and_online_keeps_its_gaps(poison: str, async_mode: bool) -> None:
    record, clean = served(poison, async_mode), served(None, async_mode)
    assert record.policy_errors == record.fallback_steps == 0
    assert all(r.finished_s is not None for r in record.requests)
    assert late_share(record) <= late_share(clean) + 0.01
    assert record.end_s < 3 * clean.end_s
