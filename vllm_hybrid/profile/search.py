"""The settings with most offline work that keep an SLO, found by simulating them.

The simulator drives the real scheduler with the profile's step times and the user's trace. What is tried is the time
between two online tokens that the scheduler aims at (`slo.online.tbt_s`): the smaller, the less offline work fits
beside a decode. It is not the SLO itself: a scheduler that aims at a p99 misses it, and a mean is met by gaps that are
longer. The SLO is judged over the whole trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_hybrid.config.profile import Profile
from vllm_hybrid.profile.target import Target, offline_tokens_per_s, online_metrics
from vllm_hybrid.sim.device_fit import profiled_device
from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.workload import TraceRequest

STEPS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # of the mean gap of online work alone
_BACKLOG = 2  # offline requests per online one, where the trace has none


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what it did."""

    tbt_s: float
    metrics: dict[str, float]
    offline_tokens_per_s: float
    keeps: bool


@dataclass(frozen=True, slots=True)
class Found:
    """limits: of each metric, in seconds. best: the trial to take; None if no setting keeps the SLO."""

    alone: dict[str, float]
    limits: dict[str, float]
    trials: list[Trial]
    ttft_s: float

    @property
    def best(self) -> Trial | None:
        """The most offline work among those that keep the SLO."""
        return max((t for t in self.trials if t.keeps), key=lambda t: t.offline_tokens_per_s, default=None)


def workload(rows: Sequence[TraceRequest], profile: Profile) -> list[SimRequest]:
    """The trace's requests that the engine can hold; without offline ones a backlog with the lengths of the others."""
    longest = min(profile.max_model_len, profile.kv_tokens // 2)
    fit = [row for row in rows if row.prompt_tokens + row.output_tokens <= longest]
    if not fit:
        raise ValueError(f"no request of the trace fits the engine: at most {longest} tokens, prompt and output")
    rng = random.Random(0)
    if all(row.lane == "online" for row in fit):
        fit += [replace(rng.choice(fit), arrival_s=0.0, lane="offline") for _ in range(_BACKLOG * len(fit))]
    return [
        SimRequest(f"r{i}", row.arrival_s, row.prompt_tokens, row.output_tokens, row.client, row.lane)
        for i, row in enumerate(sorted(fit, key=lambda row: row.arrival_s))
    ]


def search(
    profile: Profile,
    requests: Sequence[SimRequest],
    targets: Sequence[Target],
    progress: Callable[[Iterable[float]], Iterable[float]],
) -> Found:
    """Simulate every setting."""
    online = [request for request in requests if request.lane == "online"]
    alone = online_metrics(_simulated(profile, online, {}, None))
    limits = {target.metric: target.limit_s(alone) for target in targets}
    ttft_s = min([limits[m] for m in limits if m.startswith("ttft")], default=10 * alone["ttft_p99"])
    until_s = max(request.arrival_s for request in online) + ttft_s
    trials = []
    for share in progress(STEPS):
        tbt_s = share * alone["tbt_mean"]
        record = _simulated(profile, requests, {"slo": {"online": online_targets(ttft_s, tbt_s)}}, until_s)
        metrics = online_metrics(record)
        keeps = all(metrics[metric] <= limit for metric, limit in limits.items())
        trials.append(Trial(tbt_s, metrics, offline_tokens_per_s(record), keeps))
    return Found(alone, limits, trials, ttft_s)


def online_targets(ttft_s: float | None, tbt_s: float | None) -> dict[str, Any]:
    """`slo.online` with these aims. Gaps are strict: credit from an early first token would make them long."""
    given: dict[str, Any] = {"ttft_s": ttft_s, "tbt_s": tbt_s, "gap": "strict" if tbt_s is not None else None}
    return {key: value for key, value in given.items() if value is not None}


def _simulated(profile: Profile, requests: Sequence[SimRequest], hybrid: dict[str, Any], until_s: float | None) -> Any:
    settings = EngineSettings(
        max_seqs=profile.max_seqs,
        step_tokens=profile.step_tokens,
        pool_tokens=profile.kv_tokens,
        max_model_len=profile.max_model_len,
    )
    contender = Contender("hybrid", hybrid=hybrid)
    return simulate(requests, contender, profiled_device(profile), settings, until_s=until_s)
