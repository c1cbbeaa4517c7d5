"""HyGen's SLO-aware profiler over the simulator: the most offline work with which an online target is still met.

A target is a tolerance: the metric may be so much above its value when the same online requests run alone.  Each
policy has one knob (HyGen its budget of seconds per step, HyGen* its rate of offline requests, hybrid its target
between tokens); a search on a fine grid of the knob finds a setting that meets the target within a point of the
tolerance, or the largest that does.  The paper bisects; here the next try is interpolated too, as a run costs seconds.
As in the paper the setting found counts.  On the real scheduler a larger budget is not always more work, because online
arrivals evict what it let in: where a smaller one that was tried does more, it is noted beside (`fullest`).
The predictor's coefficients are fitted to batches drawn at random on the device, as the paper profiles them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites import make_workload
from vllm_hybrid.sim.suites.sources import timed

SEED = 1
DEVICE = "a100_40_llama2_7b"
STEP_TOKENS, MOST_TOKENS = 512, 4_096
SETTINGS = EngineSettings(max_seqs=128, step_tokens=STEP_TOKENS, max_model_len=MOST_TOKENS)
PROFILED_BATCHES = 4_000
BURST_S = 60.0
CLOSE = 0.01  # how far below its tolerance a target may be left
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
    "hygen": Grid(0.010, 0.12, 1.02),
    "hygen_star": Grid(0.02, 1.6, 1.05),
    "hybrid": Grid(0.010, 0.12, 1.02),
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
    bench = Bench(search)
    if search.policy not in GRIDS:
        return bench.run(search.policy), {"cpu_s": bench.cpu_s}
    alone = bench.run("sarathi")
    found = {"alone": alone, **{t.name: reached(bench, search, t, alone) for t in search.targets}}
    return found, {"cpu_s": bench.cpu_s, "runs": len(bench.runs)}


def reached(bench: Bench, search: Search, target: Target, alone: dict[str, Any]) -> dict[str, Any]:
    grid = GRIDS[search.policy]

    def ratio(rung: int) -> float:
        return bench.run(search.policy, grid.value(rung))[target.metric] / alone[target.metric]

    best = largest(ratio, 1 + target.tolerance, grid.rungs, bench.rungs(grid))
    if best is None:
        return {"knob": None, "offline": 0.0, "total": alone["online"], "ratio": 1.0}

    def offline(rung: int) -> float:
        return bench.run(search.policy, grid.value(rung))["offline"]

    knob = grid.value(best)
    fullest = max([r for r in bench.rungs(grid) if ratio(r) <= 1 + target.tolerance], key=lambda r: (offline(r), r))
    return {
        "knob": knob,
        **bench.run(search.policy, knob),
        "ratio": ratio(best),
        "fullest": {"knob": grid.value(fullest), "offline": offline(fullest)},
        **_later(bench, target, knob),
    }


def _later(bench: Bench, target: Target, knob: float) -> dict[str, Any]:
    """The same setting on the window after the one it was found on."""
    if bench.search.policy != "hygen" or target.metric != "mean":
        return {}
    alone, there = bench.run("sarathi", None, 1), bench.run("hygen", knob, 1)
    return {"later_ratio": there[target.metric] / alone[target.metric]}


def largest(ratio: Callable[[int], float], limit: float, rungs: int, tried: Sequence[int]) -> int | None:
    """A rung whose ratio is within `CLOSE` below the limit, else the largest that is not above it; None if none is.

    tried: rungs whose ratio is known already. Without any work of the knob's the ratio is 1.
    """
    top = rungs - 1
    if ratio(top) <= limit:
        return top
    low, high = -1, top
    for rung in sorted(tried):
        if ratio(rung) <= limit:
            low = rung
        else:
            high = rung
            break
    interpolate = True
    while high - low > 1:
        below, above = 1.0 if low < 0 else ratio(low), ratio(high)
        if low >= 0 and limit - CLOSE <= below:
            return low
        part = (limit - below) / (above - below) if interpolate and above > below else 0.5
        middle = min(high - 1, max(low + 1, low + round(part * (high - low))))
        low, high = (middle, high) if ratio(middle) <= limit else (low, middle)
        interpolate = not interpolate
    return low if low >= 0 else None


class Bench:
    """Runs of one search; none is made twice."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.runs: dict[tuple[str, float | None, int, float], dict[str, Any]] = {}
        self.cpu_s = 0.0

    def run(self, policy: str, knob: float | None = None, window: int = 0, burst: float = 1.0) -> dict[str, Any]:
        key = (policy, knob, window, burst)
        if key not in self.runs:
            self.runs[key] = self._simulated(*key)
        return self.runs[key]

    def rungs(self, grid: Grid) -> list[int]:
        """The settings of the knob that were tried on the window it is tuned on."""
        return [round(math.log(knob / grid.low, grid.step)) for _, knob, window, _ in self.runs if knob and not window]

    def _simulated(self, policy: str, knob: float | None, window: int, burst: float) -> dict[str, Any]:
        requests = requests_of(self.search.qps, self.search.window_s, window, burst)
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
            "online_qps": online["num_requests"] / self.search.window_s,
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
def requests_of(qps: float, window_s: float, window: int, burst: float = 1.0) -> list[SimRequest]:
    """A window of the trace's hour, which is stretched until it has `qps` on average; the backlog beside it.

    burst: so many times the window's rate in a minute that begins after two fifths of it, by requests that follow it.

    The hour is stretched with all its requests, and those that are too long are left out afterwards; the trace's own
    swings stay. So no window has exactly the rate of the hour: the first has .16, .55, 1.3, 2.2 req/s for .5, 1, 2, 3.
    That is the load of the reference, whose totals relative to online alone give the same online tokens/s.
    """
    hour = timed("azure_conv_2023", "auto", SEED)
    begin_s = hour[0].arrival_s
    stretch = len(hour) / (hour[-1].arrival_s - begin_s) / qps
    rows = [row for row in hour if row.prompt_tokens + row.output_tokens <= MOST_TOKENS]
    windows = [int((row.arrival_s - begin_s) * stretch // window_s) for row in rows]
    first, count = windows.index(window), windows.count(window)
    rate = count / window_s
    found = make_workload("hygen", SEED, qps=rate, duration_s=window_s, start_s=first / rate, most_tokens=MOST_TOKENS)
    if burst == 1.0:
        return found
    begin_s, more = 0.4 * window_s, (burst - 1.0) * rate
    start_s = (first + count) / more  # the first request after the window
    added = make_workload("azure_conv", SEED, qps=more, duration_s=BURST_S, start_s=start_s, most_tokens=MOST_TOKENS)
    burst_requests = [replace(r, request_id=f"burst{r.request_id}", arrival_s=begin_s + r.arrival_s) for r in added]
    return sorted([*found, *burst_requests], key=lambda r: r.arrival_s)


def contender(policy: str, knob: float | None) -> Contender:
    """A policy with its knob; `sarathi` is the one that gets the online requests alone."""
    if policy == "hygen":
        options = {"step_budget_s": knob, "coefficients": profiled_coefficients()[0]}
        return Contender(policy, hybrid={"preset": policy, "presets": {policy: options}})
    if policy == "hygen_star":
        return Contender(policy, hybrid={"preset": policy, "presets": {policy: {"offline_rate": knob}}})
    if policy == "hybrid slowdown":
        return Contender(policy, hybrid={"slo": {"online": {"slowdown": knob}}})
    if policy == "hybrid gap":
        return Contender(policy, hybrid={"slo": {"online": {"tbt_s": knob, "gap": "strict"}}})
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
