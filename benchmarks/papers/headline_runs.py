"""The runs of the headline: one workload under one policy, and the figures that all of them are judged by.

Lengths of answers are hidden from everybody (`known_lengths=False`): requests have the max_tokens that the model's
length leaves.  Every policy that steers by targets is told the workload's targets and that single gaps count.
"""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from vllm_hybrid.config.presets import READS
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites import make_workload

BUDGETS = (256, 512, 1024, 2048)
TENANTS = (0.4, 0.3, 0.2, 0.1)  # shares of the requests of a conversation trace that has no clients


@dataclass(frozen=True)
class Case:
    """A workload on its device with its targets. until_s: where offline work never ends; None: everything is served."""

    device: str
    slo: Slo
    requests: Callable[[int, float], list[SimRequest]]  # of a seed, at so many times the usual rate
    pool_tokens: int | None = None
    step_tokens: int = 2048
    model_tokens: int = 4096
    until_s: float | None = None
    max_seqs: int = 256


def _vtc(seed: int, factor: float) -> list[SimRequest]:
    return _faster(make_workload("overload", seed, duration_s=90.0), factor)


def _real(seed: int, factor: float) -> list[SimRequest]:
    return _faster([r for r in make_workload("real", seed) if r.arrival_s < 150.0], factor)


def _faster(requests: list[SimRequest], factor: float) -> list[SimRequest]:
    return [replace(r, arrival_s=r.arrival_s / factor) for r in requests]


def _hygen(seed: int, factor: float) -> list[SimRequest]:
    return make_workload("hygen", seed, qps=1.0 * factor, duration_s=90.0)


def _apt(cv: float) -> Callable[[int, float], list[SimRequest]]:
    return lambda seed, factor: make_workload("apt", seed, qps=2.0 * factor, cv=cv, requests=400)


def _sarathi(seed: int, factor: float) -> list[SimRequest]:
    return make_workload("sarathi-chat", seed, qps=2.9 * factor, requests=160)


def _chat(qps: float) -> Callable[[int, float], list[SimRequest]]:
    def requests(seed: int, factor: float) -> list[SimRequest]:
        rng = random.Random(seed)
        found = make_workload("azure_conv", seed, qps=qps * factor, duration_s=90.0, most_tokens=4096)
        names = rng.choices(range(len(TENANTS)), TENANTS, k=len(found))
        return [replace(r, client=f"tenant{name}") for r, name in zip(found, names)]

    return requests


def _mixed(seed: int, factor: float) -> list[SimRequest]:
    """Clients of a cloud service, four tenants of a conversation trace, and summaries that nobody waits for."""
    service = make_workload("servegen", seed, qps=2.0 * factor, duration_s=90.0, most_tokens=4096)
    batch = [r for r in make_workload("hygen", seed, qps=0.5, duration_s=90.0) if r.lane == "offline"]
    together = sorted([*service, *_chat(2.0)(seed, factor), *batch], key=lambda r: r.arrival_s)
    return [replace(r, request_id=f"r{i:06d}", hash_ids=()) for i, r in enumerate(together)]


CASES: Mapping[str, Case] = {
    "VTC overload": Case("a10g_llama2_7b", Slo(5.0, 0.2), _vtc),
    "VTC real": Case("a10g_llama2_7b", Slo(5.0, 0.2), _real),
    "HyGen co-location": Case("a100_40_llama2_7b", Slo(1.0, 0.1), _hygen, step_tokens=512, until_s=90.0, max_seqs=128),
    "Apt-Serve CV 1": Case("a100_40_opt_13b", Slo(1.0, 1.0), _apt(1.0), model_tokens=2048),
    "Apt-Serve CV 5": Case("a100_40_opt_13b", Slo(1.0, 1.0), _apt(5.0), model_tokens=2048),
    "Apt-Serve CV 10": Case("a100_40_opt_13b", Slo(1.0, 1.0), _apt(10.0), model_tokens=2048),
    "Sarathi chat": Case("a100_80_mistral_7b", Slo(2.0, 0.1), _sarathi, model_tokens=8192, max_seqs=128),
    "chat 1.3x, 14k pool": Case("a100_llama2_7b_fp16", Slo(1.0, 0.1), _chat(3.5), pool_tokens=14_000),
    "chat 1.3x, 42k pool": Case("a100_llama2_7b_fp16", Slo(1.0, 0.1), _chat(5.7), pool_tokens=42_000),
    "mixed tenants": Case("a100_llama2_7b_fp16", Slo(1.0, 0.1), _mixed, pool_tokens=42_000, until_s=90.0),
}
MIXED = "mixed tenants"

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "hybrid without the gate": {"memory": {"gate": "none"}},
    "hybrid, gap: deadline": {"slo": {"online": {"gap": "deadline"}}},
    "hybrid without TTFT target": {"slo": {"online": {"ttft_s": None}}},
}


# Ingredients that are no settings: what to put in the place of which constants of `vllm_hybrid.policy`, to do without.
INGREDIENTS: Mapping[str, Mapping[str, float]] = {
    "hybrid without the exchange": {"gate.LEAST_STEPS": math.inf},
    "hybrid without waiting for blocks": {"gate._LEAST_GROWTH": 1.0, "pace.LATE_GAPS": 0.0, "pace._AIM": 0.0},
    "hybrid, the whole pool for the late": {"expected._LATE_POOL": 1.0},
    "hybrid, no deviation in the gate": {"expected._DEVIATIONS": 0.0},
    "hybrid, one curve for all clients": {"survival._LANE_ANSWERS": 1e9},
    "hybrid, no gap for the late": {"compose._ALLOWED_GAP": 0.0},
    "hybrid, all of the slack": {"compose._STRICT_AIM": 1.0},
    "hybrid, no turn for the late": {"admission.LATE_SHARE": math.inf},
}


@contextmanager
def doing_without(ingredient: str) -> Iterator[None]:
    """The policy without an ingredient of that name; any other name changes nothing."""
    with ExitStack() as changed:
        for name, value in INGREDIENTS.get(ingredient, {}).items():
            module, _, constant = name.partition(".")
            here = importlib.import_module(f"vllm_hybrid.policy.{module}")
            changed.enter_context(mock.patch.object(here, constant, value))
        yield


@dataclass(frozen=True)
class Run:
    """A case under a policy; a policy's name may end in @BUDGET, its tokens per step, or do without an ingredient."""

    case: str
    policy: str
    seed: int = 1
    factor: float = 1.0
    known_lengths: bool = False
    device: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return f"{self.case}, {self.policy}, seed {self.seed}, {self.factor:g}x, {self.device or 'own device'}"


def contender(run: Run) -> Contender:
    """The scheduler: vLLM's own class for fcfs and priority, ours for everybody else."""
    slo = CASES[run.case].slo
    name, _, budget = run.policy.partition("@")
    engine = {"step_tokens": max(int(budget), CASES[run.case].max_seqs)} if budget else {}
    if name in ("fcfs", "priority"):
        return Contender(run.policy, stock=name, engine=engine)
    preset = "hybrid" if name.startswith("hybrid") else name
    settings: dict[str, Any] = {"preset": preset}
    if "slo" in READS[preset]:
        gap = {"gap": "strict"} if preset == "hybrid" else {}
        settings["slo"] = {"online": {"ttft_s": slo.ttft_s, "tbt_s": slo.tbt_s, **gap}}
    if preset == "hygen":
        settings["presets"] = {"hygen": {"step_budget_s": (slo.tbt_s or 0.1) / 2}}
    for section, changed in run.changes.items():
        if section == "slo":
            settings["slo"] = {"online": settings["slo"]["online"] | changed["online"]}
        else:
            settings[section] = changed
    return Contender(run.policy, hybrid=settings, engine=engine)


def measured(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Simulate `run`; its figures, and what it cost on this machine."""
    case = CASES[run.case]
    settings = EngineSettings(
        max_seqs=case.max_seqs,
        step_tokens=max(case.step_tokens, case.max_seqs),
        pool_tokens=case.pool_tokens,
        max_model_len=case.model_tokens,
        known_lengths=run.known_lengths,
    )
    requests, device = case.requests(run.seed, run.factor), load_device(run.device or case.device)
    with doing_without(run.policy):
        record = simulate(requests, contender(run), device, settings, until_s=case.until_s, seed=run.seed)
    figures = measure(record, case.slo)
    tokens = figures["total_input_tokens"] + figures["total_output_tokens"]
    offline = figures["lanes"].get("offline", {})
    return {
        "worst": figures["attainment_worst_gap"],
        "p99": figures["attainment_p99_gap"],
        "goodput": figures["goodput_share"],
        "service_gap": figures["fairness"].get("worst_gap_service"),
        "service_gap_of_bound": figures["fairness"].get("worst_gap_of_bound"),
        "offline_tokens_per_s": offline.get("total_token_throughput", 0.0),
        "tokens_per_s": figures["total_token_throughput"],
        "recomputed": figures["recomputed_tokens"] / max(1, tokens + figures["recomputed_tokens"]),
        "preemptions": figures["preemptions"],
        "worst_gap_s": figures["lanes"].get("online", figures)["max_worst_gap_ms"] / 1000,
        "p99_wait_s": figures["lanes"].get("online", figures)["p99_wait_ms"] / 1000,
        "policy_errors": record.policy_errors,
    }, {"cpu_s": record.cpu_s}
