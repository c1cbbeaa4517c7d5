"""What the bound on the service gap costs: `memory.gate: max_tokens` against none, on two overloads of the VTC paper.

Without the gate running requests outgrow the pool and are preempted, and no bound holds; with it nobody is, and fewer
run at a time. Shares are those of the time in which requests arrive, without the first 30 s; the drift is the worst
difference in delivered service between the two clients over any interval in which both waited.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.sim import service
from vllm_hybrid.sim.answers import answers_of
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.drift import services, worst_drifts
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.sim.suites import make_workload

DEVICE = "a10g_llama2_7b"
SETTINGS = EngineSettings(max_seqs=256, step_tokens=2048, max_model_len=2048)
SUITES = {"overload": 360.0, "poisson_short_long_2": 600.0}
SEED = 42
SHARE = 0.02  # of one half, behind the gate


@dataclass(frozen=True)
class Run:
    """One suite under one preset, with or without the gate."""

    suite: str
    preset: str
    gate: str
    duration_s: float

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.preset}/{self.gate}"


def measured(run: Run) -> dict[str, Any]:
    """Throughput, share, drift and preemptions of a run."""
    requests = make_workload(run.suite, SEED, duration_s=run.duration_s)
    settings = {"preset": run.preset, "memory": {"gate": run.gate}}
    record = simulate(requests, Contender(run.name, hybrid=settings), load_device(DEVICE), SETTINGS, seed=SEED)
    served = service.served(record)
    tokens = sum(request.prompt_tokens + request.output_tokens for request in served)
    return {
        "throughput": tokens / record.end_s,
        "share": service.shares(served, service.WARMUP_S, run.duration_s)["client0"],
        "drift": max(found.service for found in worst_drifts(services(answers_of(record), {}))),
        "preemptions": sum(r.preemptions for r in record.requests),
        "policy_errors": record.policy_errors,
    }


def checks(results: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Behind the gate nobody is preempted, shares are even and the drift is within 2U."""
    found = []
    bound = 4 * load_device(DEVICE).kv_tokens
    for name, result in results.items():
        if not name.endswith("max_tokens"):
            continue
        off = abs(result["share"] - 0.5)
        found.append(Check(f"preemptions {name}", f"{result['preemptions']}", "0", result["preemptions"] == 0))
        found.append(Check(f"share {name}", f"{result['share']:.3f}", f".5 ± {SHARE}", off <= SHARE))
        found.append(Check(f"drift {name}", f"{result['drift']:,.0f}", f"<= {bound:,}", result["drift"] <= bound))
    return found


def main() -> int:
    given = arguments("gate_price", __doc__ or "")
    watch = Stopwatch()
    suites = {"overload": 120.0} if given.quick else SUITES
    runs = [
        Run(suite, preset, gate, duration_s)
        for suite, duration_s in suites.items()
        for preset in ("vtc", "hybrid")
        for gate in ("none", "max_tokens")
    ]
    results = dict(zip((run.name for run in runs), run_all(measured, runs, given.workers), strict=True))
    rows = [
        dict(zip(("suite", "preset", "gate"), name.split("/"), strict=True))
        | {
            "tokens/s": f"{result['throughput']:,.0f}",
            "of ungated": f"{result['throughput'] / results[name.rpartition('/')[0] + '/none']['throughput']:.3f}",
            "first client's share": f"{result['share']:.3f}",
            "drift": f"{result['drift']:,.0f}",
            "preemptions": f"{result['preemptions']:,}",
        }
        for name, result in results.items()
    ]
    print(table(rows))
    setting = {"device": DEVICE, "seed": SEED}
    return finish(given, {"setting": setting, "runs": results}, {"wall_s": watch.seconds}, checks(results))


if __name__ == "__main__":
    sys.exit(main())
