"""HyGen's SLO-aware profiler over the simulator: the most offline work with which an online target is still met.

A target is a tolerance: the metric may be so much above its value when the same online requests run alone.  Each
policy has one knob (HyGen its budget of seconds per step, HyGen* its rate of offline requests, hybrid its target
between tokens); a bisection on a grid of the knob finds its largest setting that meets the target.  The predictor's
coefficients are fitted to batches drawn at random on the device, as the paper profiles them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites import make_workload

SEED = 1
DEVICE = "a100_40_llama2_7b"
STEP_TOKENS, MOST_TOKENS = 512, 4_096
SETTINGS = EngineSettings(max_seqs=128, step_tokens=STEP_TOKENS, max_model_len=MOST_TOKENS)
PROFILED_BATCHES = 4_000
_MOST_DECODES, _MOST_PREFILLS = 64, 3


@dataclass(frozen=True)
class Target:
    """metric: of all times between two online tokens."""

    metric: str  # "mean" or "p99"
    tolerance: float

    @property
    def name(self) -> str:
        return f"{self.metric} TBT +{self.tolerance:.0%}"


@dataclass(frozen=True)
class Grid:
    """The settings of a knob that are tried: from `low` to `high`, each `step` times the one before."""

    low: float
    high: float
    step: float

    @property
    def rungs(self) -> int:
        return 1 + round(math.log(self.high / self.low, self.step))

    def value(self, rung: int) -> float:
        return self.low * self.step**rung


GRIDS = {
    "hygen": Grid(0.008, 0.15, 1.05),
    "hygen_star": Grid(0.02, 2.0, 1.1),
    "hybrid": Grid(0.008, 0.15, 1.05),
}


@dataclass(frozen=True)
class Search:
    """One policy at one online rate: its knob for every target, or without a knob what it does."""

    policy: str
    qps: float
    targets: tuple[Target, ...] = ()
    window_s: float = 300.0

    @property
    def name(self) -> str:
        return f"{self.qps:g} req/s {self.policy}"


def searched(search: Search) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the policy reaches under each target, and what the search cost on this machine."""
    bench = _Bench(search)
    if search.policy not in GRIDS:
        return bench.run(search.policy), {"cpu_s": bench.cpu_s}
    alone = bench.run("sarathi")
    found = {"alone": alone, **{t.name: _reached(bench, search, t, alone) for t in search.targets}}
    return found, {"cpu_s": bench.cpu_s, "runs": len(bench.runs)}


def _reached(bench: _Bench, search: Search, target: Target, alone: dict[str, Any]) -> dict[str, Any]:
    grid, limit_ms = GRIDS[search.policy], alone[target.metric] * (1 + target.tolerance)

    def meets(rung: int) -> bool:
        return bench.run(search.policy, grid.value(rung))[target.metric] <= limit_ms

    best = largest(meets, grid.rungs)
    if best is None:
        return {"knob": None, "offline": 0.0, "total": alone["online"], "ratio": 1.0}
    # What other targets tried counts too: a run is not quite monotonic in the knob.
    knobs = [knob for policy, knob, _ in bench.runs if policy == search.policy and knob is not None]
    fair = [k for k in knobs if bench.run(search.policy, k)[target.metric] <= limit_ms]
    knob = max(fair, key=lambda k: bench.run(search.policy, k)["offline"])
    there = bench.run(search.policy, knob)
    return {"knob": knob, **there, "ratio": there[target.metric] / alone[target.metric], **_later(bench, target, knob)}


def _later(bench: _Bench, target: Target, knob: float) -> dict[str, Any]:
    """The same setting on the window after the one it was found on."""
    if bench.search.policy != "hygen" or target.metric != "mean":
        return {}
    begin_s = bench.search.window_s
    alone, there = bench.run("sarathi", None, begin_s), bench.run("hygen", knob, begin_s)
    return {"later_ratio": there[target.metric] / alone[target.metric]}


def largest(holds: Callable[[int], bool], rungs: int) -> int | None:
    """The largest of `rungs` rungs that holds, by bisection; None if the lowest does not."""
    if holds(rungs - 1):
        return rungs - 1
    if not holds(0):
        return None
    low, high = 0, rungs - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Bench:
    """Runs of one search; none is made twice."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.runs: dict[tuple[str, float | None, float], dict[str, Any]] = {}
        self.cpu_s = 0.0

    def run(self, policy: str, knob: float | None = None, start_s: float = 0.0) -> dict[str, Any]:
        key = (policy, knob, start_s)
        if key not in self.runs:
            self.runs[key] = self._simulated(*key)
        return self.runs[key]

    def _simulated(self, policy: str, knob: float | None, start_s: float) -> dict[str, Any]:
        requests = _requests(self.search.qps, self.search.window_s, start_s)
        if policy == "sarathi":
            requests = [request for request in requests if request.lane == "online"]
        record = simulate(
            requests, contender(policy, knob), load_device(DEVICE), SETTINGS, until_s=self.search.window_s, seed=SEED
        )
        self.cpu_s += record.cpu_s
        figures = measure(record, Slo())
        lanes = figures["lanes"]
        online, offline = lanes["online"], lanes.get("offline", {})
        return {
            "mean": online["mean_itl_ms"],
            "p99": online["p99_itl_ms"],
            "mean_ttft_ms": online["mean_ttft_ms"],
            "online": online["total_token_throughput"],
            "offline": offline.get("total_token_throughput", 0.0),
            "total": figures["total_token_throughput"],
            "preemptions": figures["preemptions"],
            "recomputed_tokens": figures["recomputed_tokens"],
            "prediction_error": figures["steps"]["mean_prediction_error"],
        }


@cache
def _requests(qps: float, window_s: float, start_s: float) -> list[SimRequest]:
    return make_workload("hygen", SEED, qps=qps, duration_s=window_s, start_s=start_s, most_tokens=MOST_TOKENS)


def contender(policy: str, knob: float | None) -> Contender:
    """A policy with its knob; `sarathi` is the one that gets the online requests alone."""
    if policy == "hygen":
        options = {"step_budget_s": knob, "coefficients": profiled_coefficients()[0]}
        return Contender(policy, hybrid={"preset": policy, "presets": {policy: options}})
    if policy == "hygen_star":
        return Contender(policy, hybrid={"preset": policy, "presets": {policy: {"offline_rate": knob}}})
    if policy == "hybrid":
        return Contender(policy, hybrid={"slo": {"online": {"tbt_s": knob}}})
    return Contender(policy, hybrid={"preset": policy})


@cache
def profiled_coefficients() -> tuple[list[float], float]:
    """HyGen's coefficients for the device by least squares, and the mean relative error on other batches."""
    features, seconds = _profile(random.Random(SEED), PROFILED_BATCHES)
    coefficients, *_ = np.linalg.lstsq(features, seconds, rcond=None)
    others, real = _profile(random.Random(SEED + 1), PROFILED_BATCHES)
    error = np.abs(others @ coefficients - real) / real
    return [float(value) for value in coefficients], float(error.mean())


def _profile(rng: random.Random, batches: int) -> tuple[np.ndarray, np.ndarray]:
    device = load_device(DEVICE)
    features, seconds = [], []
    while len(seconds) < batches:
        contexts = [rng.randrange(50, MOST_TOKENS) for _ in range(rng.randint(1, _MOST_DECODES))]
        chunks = [rng.randint(1, STEP_TOKENS // _MOST_PREFILLS) for _ in range(rng.randint(0, _MOST_PREFILLS))]
        prefills = [(tokens, rng.randrange(MOST_TOKENS - tokens)) for tokens in chunks]
        if sum(contexts) + sum(done + tokens for tokens, done in prefills) > device.kv_tokens:
            continue  # no such batch can run
        tokens = sum(chunks)
        features.append([1.0, tokens, sum(contexts), tokens * tokens, len(chunks), len(contexts)])
        seconds.append(device.step_seconds(prefills, contexts))
    return np.array(features), np.array(seconds)
