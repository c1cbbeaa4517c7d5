"""What expecting a request's output does to the drift between clients, at the same throughput.

Plain VTC beside VTC that counts expected output (`fairness.prediction`), behind the memory gate, on the VTC paper's
`overload-multi` and on clients of a cloud service (ServeGen, prompt and output up to 4,096 tokens) at 1.5 times the
device's capacity. The drift is the worst difference in delivered service between two clients over any interval in
which both waited.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.sim.answers import answers_of
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.drift import services, worst_drifts
from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.sim.suites import make_workload

DEVICE = "a10g_llama2_7b"
SETTINGS = EngineSettings(max_model_len=8192)
PREDICTIONS = ("none", "mean", "median", "max_tokens")
LOADS = ("overload-multi", "servegen m_small", "servegen m_mid")
OVERLOAD = 1.5  # of the capacity
SEED = 0
LEAST_GAIN = 2.0  # of the drift on overload-multi, however output is predicted
SAME_THROUGHPUT = 0.03


@dataclass(frozen=True)
class Run:
    """One load under one prediction."""

    load: str
    prediction: str

    @property
    def name(self) -> str:
        return f"{self.load}/{self.prediction}"


def requests_of(load: str) -> list[SimRequest]:
    """The load's requests; those of the cloud service arrive 1.5 times as fast as they could be served."""
    name, _, model = load.partition(" ")
    if not model:
        return make_workload(name, SEED)
    given = {"model": model, "most_tokens": 4096}
    at_once = [replace(r, arrival_s=0.0) for r in make_workload(name, SEED, qps=4.0, duration_s=500.0, **given)]
    capacity = (
        len(at_once) / simulate(at_once, Contender("capacity", stock="fcfs"), load_device(DEVICE), SETTINGS).end_s
    )
    return make_workload(name, SEED, qps=round(OVERLOAD * capacity, 2), duration_s=200.0, **given)


def measured(run: Run) -> dict[str, Any]:
    """Drift and throughput of a run."""
    hybrid = {"preset": "vtc", "fairness": {"prediction": run.prediction}, "memory": {"gate": "max_tokens"}}
    record = simulate(requests_of(run.load), Contender(run.name, hybrid=hybrid), load_device(DEVICE), SETTINGS)
    tokens = sum(r.request.prompt_tokens + len(r.token_s) for r in record.requests)
    return {
        "drift": max(d.service for d in worst_drifts(services(answers_of(record), {}))),
        "throughput": tokens / record.end_s,
        "requests": len(record.requests),
        "preemptions": sum(r.preemptions for r in record.requests),
        "policy_errors": record.policy_errors,
    }


def checks(results: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """The drift shrinks where requests are alike; nothing is bought with throughput."""
    found = []
    for name, result in results.items():
        load, _, prediction = name.partition("/")
        plain = results[f"{load}/none"]
        off = result["throughput"] / plain["throughput"] - 1
        found.append(Check(f"throughput {name}", f"{off:+.1%}", f"±{SAME_THROUGHPUT:.0%}", abs(off) <= SAME_THROUGHPUT))
        if load == "overload-multi" and prediction != "none":
            gain = plain["drift"] / result["drift"]
            found.append(Check(f"drift {name}", f"{gain:.1f}x smaller", f"{LEAST_GAIN:g}x", gain >= LEAST_GAIN))
    return found


def main() -> int:
    given = arguments("prediction", __doc__ or "")
    watch = Stopwatch()
    runs = [Run(load, prediction) for load in (LOADS[1:2] if given.quick else LOADS) for prediction in PREDICTIONS]
    results = dict(zip((run.name for run in runs), run_all(measured, runs, given.workers), strict=True))
    rows = [
        {
            "load": name.partition("/")[0],
            "prediction": name.partition("/")[2],
            "drift (service)": f"{result['drift']:,.0f}",
            "of plain": f"{result['drift'] / results[name.partition('/')[0] + '/none']['drift']:.2f}",
            "tokens/s": f"{result['throughput']:,.0f}",
            "preemptions": f"{result['preemptions']}",
        }
        for name, result in results.items()
    ]
    print(table(rows))
    setting = {"device": DEVICE, "seed": SEED, "overload": OVERLOAD}
    return finish(given, {"setting": setting, "runs": results}, {"wall_s": watch.seconds}, checks(results))


if __name__ == "__main__":
    sys.exit(main())
