"""The runs of the Apt-Serve benchmark: one load under one policy, and what its requests got.

A request attains both targets by the paper's definition if its time to the first token and the 99th percentile of its
own gaps do; by worst gap if no gap at all exceeds the target.  Every run ends when the last request does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.sim.suites import make_workload

SEED = 1
DEVICE = "a100_40_opt_13b"
SETTINGS = EngineSettings(max_seqs=256, step_tokens=2_048, max_model_len=2_048)
TARGET_S = 1.0  # both of them
_SLO = {"slo": {"online": {"ttft_s": TARGET_S, "tbt_s": TARGET_S}}}
CONTENDERS = {
    "fcfs": Contender("fcfs", stock="fcfs"),
    "apt": Contender("apt", hybrid={"preset": "apt", **_SLO}),
    "hybrid": Contender("hybrid", hybrid=_SLO),
}


@dataclass(frozen=True)
class Run:
    """A rate, its burstiness and a policy."""

    qps: float
    cv: float
    policy: str
    requests: int = 800

    @property
    def name(self) -> str:
        return f"CV {self.cv:g}, {self.qps:g} req/s, {self.policy}"


def measured(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Simulate `run`; its figures, and what it cost on this machine."""
    requests = make_workload("apt", SEED, qps=run.qps, cv=run.cv, requests=run.requests)
    record = simulate(requests, CONTENDERS[run.policy], load_device(DEVICE), SETTINGS, seed=SEED)
    first_only = measure(record, Slo(ttft_s=TARGET_S))
    figures = measure(record, Slo(TARGET_S, TARGET_S))
    tokens = figures["total_input_tokens"] + figures["total_output_tokens"]
    return {
        "p99": figures["attainment_p99_gap"],
        "worst": figures["attainment_worst_gap"],
        "ttft": first_only["attainment_worst_gap"],
        "goodput_share": figures["goodput_share"],
        "mean_e2e_s": figures["mean_e2el_ms"] / 1000,
        "mean_worst_gap_s": figures["mean_worst_gap_ms"] / 1000,
        "p99_worst_gap_s": figures["p99_worst_gap_ms"] / 1000,
        "makespan_s": record.end_s,
        "preemptions": figures["preemptions"],
        "recomputed_share": figures["recomputed_tokens"] / (tokens + figures["recomputed_tokens"]),
        "policy_errors": record.policy_errors,
    }, {"cpu_s": record.cpu_s}
