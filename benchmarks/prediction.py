"""What expecting a request's output does to the drift between clients, at the same throughput.

Plain VTC beside VTC that counts expected output (`fairness.prediction`), behind the memory gate, on the VTC paper's
`overload-multi` and on clients of a cloud service (ServeGen, prompt and output up to 4,096 tokens) at 1.5 times the
device's capacity, on a small and on a large pool. The drift is the worst difference in delivered service between two
clients over any interval in which both waited; the gap is that between the clients that waited all the time,
accumulated since the end of the warm-up, as in the paper's evaluation. A prompt is delivered at once, with its first
token, so a run's drift is at least the largest prompt that came while another client waited ("one prompt"): where plain
VTC's leaves less room than the wanted gain, the gain is not checked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.sim.answers import answers_of
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.device_models import Device
from vllm_hybrid.sim.drift import ClientService, largest_delivery, services, worst_drifts
from vllm_hybrid.sim.records import RunRecord, SimRequest
from vllm_hybrid.sim.run import Contender, EngineSettings, simulate
from vllm_hybrid.sim.service import WARMUP_S
from vllm_hybrid.sim.suites import make_workload

DEVICE, LARGE = "a10g_llama2_7b", "a100_80_llama2_13b_65k"
SETTINGS = EngineSettings(max_model_len=8192)
PREDICTIONS = ("none", "mean", "median", "max_tokens")
LOADS = ("overload-multi", "servegen m_small", "servegen m_mid", "servegen m_small large", "servegen m_mid large")
OVERLOAD = 1.5  # of the capacity
SEED = 0
LEAST_GAIN = 2.0  # of drift and gap on overload-multi, and elsewhere with known lengths
LEARNED_GAIN = 4 / 3  # of them elsewhere, with learned lengths
SAME_THROUGHPUT = 0.03
_POINTS = 2000  # of time at which the accumulated gap is looked at


@dataclass(frozen=True)
class Run:
    """One load under one prediction."""

    load: str
    prediction: str

    @property
    def name(self) -> str:
        return f"{self.load}/{self.prediction}"


def device_of(load: str) -> Device:
    """Whose pool is large or small."""
    return load_device(LARGE if load.endswith(" large") else DEVICE)


def requests_of(load: str) -> list[SimRequest]:
    """The load's requests; those of the cloud service arrive 1.5 times as fast as they could be served."""
    name, *more = load.split(" ")
    if not more:
        return make_workload(name, SEED)
    given = {"model": more[0], "most_tokens": 4096}
    at_once = [replace(r, arrival_s=0.0) for r in make_workload(name, SEED, qps=4.0, duration_s=500.0, **given)]
    capacity = len(at_once) / simulate(at_once, Contender("capacity", stock="fcfs"), device_of(load), SETTINGS).end_s
    return make_workload(name, SEED, qps=round(OVERLOAD * capacity, 2), duration_s=200.0, **given)


def measured(run: Run) -> dict[str, Any]:
    """Drift and throughput of a run."""
    hybrid = {"preset": "vtc", "fairness": {"prediction": run.prediction}, "memory": {"gate": "max_tokens"}}
    record = simulate(requests_of(run.load), Contender(run.name, hybrid=hybrid), device_of(run.load), SETTINGS)
    clients = services(answers_of(record), {})
    tokens = sum(r.request.prompt_tokens + len(r.token_s) for r in record.requests)
    return {
        "drift": max(d.service for d in worst_drifts(clients)),
        "largest_delivery": largest_delivery(clients),
        **throughout(record, clients),
        "throughput": tokens / record.end_s,
        "requests": len(record.requests),
        "preemptions": sum(r.preemptions for r in record.requests),
        "policy_errors": record.policy_errors,
    }


def throughout(record: RunRecord, clients: Sequence[ClientService]) -> dict[str, Any]:
    """Of the clients that waited from the warm-up to the last arrival: how many, their worst gap, largest request."""
    until_s = max(r.request.arrival_s for r in record.requests)
    always = [
        c for c in clients if any(start_s <= WARMUP_S and end_s >= until_s - 1 for start_s, end_s in c.backlogged)
    ]
    names = {c.client for c in always}
    at_s = np.linspace(WARMUP_S, until_s, _POINTS)
    got = np.array([c.accumulated(at_s) - c.accumulated(at_s[:1]) for c in always])
    requests = [r.request for r in record.requests if r.request.client in names]
    return {
        "always_waiting": len(always),
        "gap": float((got.max(axis=0) - got.min(axis=0)).max()) if len(always) > 1 else None,
        "largest_request": max((r.prompt_tokens + 2.0 * r.output_tokens for r in requests), default=None),
    }


def checks(results: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """The drift shrinks where requests are alike; nothing is bought with throughput."""
    found = []
    for name, result in results.items():
        load, _, prediction = name.partition("/")
        plain = results[f"{load}/none"]
        off = result["throughput"] / plain["throughput"] - 1
        found.append(Check(f"throughput {name}", f"{off:+.1%}", f"±{SAME_THROUGHPUT:.0%}", abs(off) <= SAME_THROUGHPUT))
        if prediction == "none":
            continue
        wanted = LEAST_GAIN if load == "overload-multi" or prediction == "max_tokens" else LEARNED_GAIN
        if plain["drift"] >= wanted * plain["largest_delivery"]:
            gain = plain["drift"] / result["drift"]
            found.append(Check(f"drift {name}", f"{gain:.2f}x smaller", f"{wanted:.3g}x", gain >= wanted))
        if plain["gap"] and result["gap"]:
            gain = plain["gap"] / result["gap"]
            found.append(Check(f"gap {name}", f"{gain:.2f}x smaller", f"{wanted:.3g}x", gain >= wanted))
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
            "one prompt": f"{result['largest_delivery']:,.0f}",
            "of plain": f"{result['drift'] / results[name.partition('/')[0] + '/none']['drift']:.2f}",
            "always waiting": f"{result['always_waiting']}",
            "gap": "-" if result["gap"] is None else f"{result['gap']:,.0f}",
            "largest request": "-" if result["largest_request"] is None else f"{result['largest_request']:,.0f}",
            "tokens/s": f"{result['throughput']:,.0f}",
            "preemptions": f"{result['preemptions']}",
        }
        for name, result in results.items()
    ]
    print(table(rows))
    setting = {"devices": [DEVICE, LARGE], "seed": SEED, "overload": OVERLOAD}
    return finish(given, {"setting": setting, "runs": results}, {"wall_s": watch.seconds}, checks(results))


if __name__ == "__main__":
    sys.exit(main())
