"""The runs of the VTC benchmark: which suites under which policies, and what is measured of each.

Policies run on the paper's engine (`vtc_engine.py`): a request is admitted only if everything it may ever hold fits
with what the others may (`memory.gate: max_tokens`), and admissions are looked for at intervals.  "every step" has the
gate, on vLLM's engine; "no gate" is VTC without both, and "stock" is vLLM's own class, both with the 2,048 tokens a
step that the claims about preemption were made with.  "oracle" and "predicted" count output ahead when clients are
compared; "no gate, billed again" charges recomputed prompts, which the others do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.vtc_engine import (
    as_a_real_one,
    as_they_arrive,
    paper_device,
    paper_settings,
    use_free_engine,
    use_own_engine,
    use_paper_engine,
)
from vllm_hybrid.config.presets import READS
from vllm_hybrid.sim import drift, service
from vllm_hybrid.sim.answers import answers_of
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, SimRequest, simulate
from vllm_hybrid.sim.suites import WORKLOADS, make_workload
from vllm_hybrid.sim.suites.vtc import ABLATION_RATES

SEED = 42
DEVICE = "a10g_llama2_7b"
MAX_SEQS, MAX_MODEL_LEN = 1000, 2048
GATED = EngineSettings(max_seqs=MAX_SEQS, step_tokens=3072, max_model_len=MAX_MODEL_LEN)
FREE = EngineSettings(max_seqs=MAX_SEQS, step_tokens=2048, max_model_len=MAX_MODEL_LEN)
RPM_LIMITS = (30, 20, 15, 10, 5)
_GAP_TICKS = 100
_FAIRNESS = {
    "oracle": {"prediction": "max_tokens"},  # requests here use up their max_tokens
    "predicted": {"prediction": "mean"},
    "no gate, billed again": {"bill_recompute": True},
}
_LONGEST_STAY_S = 30.0  # of a request that runs, 256 tokens on the A10G


@dataclass(frozen=True)
class Run:
    """One suite under one policy; `pool` and `length` are the ablation's."""

    suite: str
    policy: str
    pool: int | None = None
    length: int | None = None
    duration_s: float | None = None
    stops: bool = False  # soon after the last arrival, whoever waits then

    @property
    def name(self) -> str:
        ablation = f"-{self.pool}-{self.length}" if self.pool else ""
        return f"{self.suite}{ablation}/{self.policy}"

    @property
    def parameters(self) -> dict[str, Any]:
        first_rate = 0.8 if self.policy == "vtc unweighted" else None
        given = {"pool": self.pool, "length": self.length, "duration_s": self.duration_s, "first_rate": first_rate}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def window_s(self) -> float:
        return self.duration_s or WORKLOADS[self.suite].parameters["duration_s"]

    @property
    def device(self) -> str:
        return f"a100_80_llama2_13b_{self.pool // 1000}k" if self.pool else DEVICE


def contender(policy: str, clients: Mapping[str, Mapping[str, Any]]) -> Contender:
    """The scheduler of a policy's name. `clients`: the weights of the suite."""
    if policy == "stock fcfs":
        return Contender(policy, stock="fcfs")
    name, _, variant = policy.partition(" ")
    settings: dict[str, Any] = {"preset": name}
    if name.startswith("rpm"):
        settings = {"preset": "rpm", "presets": {"rpm": {"limit": int(name.removeprefix("rpm"))}}}
    if not variant.startswith("no gate"):
        settings["memory"] = {"gate": "max_tokens"}
    if variant in _FAIRNESS:
        settings["fairness"] = _FAIRNESS[variant]
    if clients and variant != "unweighted" and "clients" in READS[settings["preset"]]:
        settings["clients"] = dict(clients)
    return Contender(policy, hybrid=settings)


def all_runs() -> list[Run]:
    suites = {
        "overload": ("vtc", "fcfs", "vtc every step", "stock fcfs"),
        "proportional": ("vtc", "fcfs"),
        "on_off_less": ("vtc", "fcfs"),
        "on_off_overload": ("vtc", "fcfs"),
        "poisson_short_long": ("vtc", "fcfs"),
        "poisson_short_long_2": ("vtc", "fcfs", "stock fcfs", "vtc no gate", "vtc no gate, billed again"),
        "increase": ("vtc", "fcfs"),
        "dist_shift": ("vtc", "lcf"),
        "overload-multi": ("vtc", "fcfs"),
        "overload-weighted": ("vtc", "vtc unweighted"),
        "real": ("fcfs", "lcf", "vtc", "vtc oracle", "vtc predicted", "drr", *(f"rpm{limit}" for limit in RPM_LIMITS)),
    }
    durations_s = {"overload": 360.0}  # the published throughput is that of the artifact's shorter run
    runs = [Run(suite, policy, duration_s=durations_s.get(suite)) for suite in suites for policy in suites[suite]]
    runs += [Run("ablation", "vtc", pool, length) for pool, length in ABLATION_RATES]
    return [*runs, Run("ablation", "fcfs", 65_000, 256)]


def quick_runs() -> list[Run]:
    """The suites whose shares settle soon, stopped when the last request has arrived."""
    runs = {"overload": ("vtc", "fcfs"), "proportional": ("vtc",), "overload-weighted": ("vtc",)}
    durations_s = {"overload": 360.0, "proportional": 300.0, "overload-weighted": 300.0}
    return [Run(suite, policy, duration_s=durations_s[suite], stops=True) for suite in runs for policy in runs[suite]]


def measured(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Simulate `run`; its figures, and what it cost on this machine."""
    return measured_on(make_workload(run.suite, SEED, **run.parameters), run)


def measured_on(requests: list[SimRequest], run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for a given list of requests instead of the suite's own."""
    who = contender(run.policy, WORKLOADS[run.suite].clients)
    device, settings = load_device(run.device), FREE
    variant = run.policy.partition(" ")[2]
    if who.stock is None:
        preset = who.hybrid["preset"]
        if variant.startswith("no gate"):
            use_free_engine(preset)
        elif variant == "every step":
            use_own_engine(preset)
            settings = GATED
        else:
            use_paper_engine(preset, requests)
            device, settings = paper_device(device), paper_settings(device.kv_tokens, MAX_SEQS, MAX_MODEL_LEN)
            if run.pool is None:
                requests, device = as_they_arrive(requests, SEED), as_a_real_one(device)
    until_s = run.window_s + _LONGEST_STAY_S if run.stops else None
    record = simulate(requests, who, device, settings, until_s=until_s, seed=SEED)
    steps = len(record.steps)
    timing = {"cpu_s": record.cpu_s, "steps_per_s": steps / record.cpu_s, "speed": record.end_s / record.cpu_s}
    found = {"shortened": run.stops, **_whole_run(record), **_in_window(record, run)}
    return {**found, "worst_drift": _worst_drift(record)}, timing


def _whole_run(record: RunRecord) -> dict[str, Any]:
    served = service.served(record)
    tokens = sum(request.prompt_tokens + request.output_tokens for request in served)
    tpot_s = [(r.finished_s - r.first_token_s) / (r.output_tokens - 1) for r in served if r.output_tokens > 1]
    return {
        "requests": len(record.requests),
        "finished": len(served),
        "refused": sum(request.refused for request in record.requests),
        "preemptions": sum(request.preemptions for request in record.requests),
        "makespan_s": record.end_s,
        "throughput": tokens / record.end_s,
        "mean_tpot_ms": 1000 * statistics.fmean(tpot_s),
        "wait_s": list(service.mean_wait_s(served).values()),
        "policy_errors": record.policy_errors,
    }


def _in_window(record: RunRecord, run: Run) -> dict[str, Any]:
    """Figures of the time in which requests arrive, shares and rates without the paper's 30 s of warm-up.

    Where the suite has phases, they are those of the middle one.
    """
    served, end_s = service.served(record), run.window_s
    window = (end_s / 3, 2 * end_s / 3) if run.suite == "dist_shift" else (service.WARMUP_S, end_s)
    every_s = end_s / _GAP_TICKS
    gaps = service.accumulated_gaps(served, end_s, every_s=every_s)
    slope, linearity = line(gaps, every_s)
    difference = service.service_difference(served, service.demand_of(record), end_s)
    asked = service.demand_of(record)
    return {
        "shares": list(service.shares(served, *window).values()),
        "rates": list(service.service_rates(served, *window).values()),
        "asked_rates": [sum(s for _, s in asked[client]) / end_s for client in sorted(asked)],
        "worst_gap": max(gaps),
        "gap_slope": slope,
        "gap_linearity": linearity,
        "difference": [difference.largest, difference.mean, difference.variance],
    }


def _worst_drift(record: RunRecord) -> float:
    """The largest difference of two clients' service over any time in which both of them waited."""
    clients = drift.services(answers_of(record), {})
    return max((found.service for found in drift.worst_drifts(clients)), default=0.0)


def line(values: Sequence[float], every_s: float) -> tuple[float, float]:
    """Slope per second of the values' regression on time, and its coefficient of determination."""
    times = [every_s * (tick + 1) for tick in range(len(values))]
    slope, _ = statistics.linear_regression(times, values)
    return slope, statistics.correlation(times, values) ** 2 if len(set(values)) > 1 else 0.0
