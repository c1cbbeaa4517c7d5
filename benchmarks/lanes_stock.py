"""Online and offline on one GPU: hybrid beside vLLM's own `priority` with the best fixed token budget for the workload.

    python -m benchmarks.lanes_stock [--quick] [--only DEVICE ...] [--check] [--workers N] [--out FILE]

Azure conversation online at 30, 50 and 70 % of what the device serves, arXiv prompts offline without an end; targets of
1 s to the first token and 100 ms between tokens, lengths of answers hidden from everybody.  Stock gets every budget and
the best one counts: of those within half a percent of the highest online goodput the one with the most offline tokens.
Hybrid is told the targets and nothing else, the same at every load.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites import make_workload

DEVICES = ("a100_llama2_7b_fp16", "h100_llama31_8b_bf16")
LOADS = (0.3, 0.5, 0.7)
BUDGETS = (256, 512, 1024, 2048, 8192)
HYBRID = "hybrid"
SLO = Slo(ttft_s=1.0, tbt_s=0.1)
MOST_TOKENS, SEED = 4_096, 1
WINDOW_S, QUICK_WINDOW_S = 100.0, 20.0  # in which online requests arrive
TAIL_S = 60.0  # of offline work alone and online requests that end: who is paced by the target is not late at its end
SETTINGS = EngineSettings(max_seqs=256, step_tokens=8_192, max_model_len=MOST_TOKENS, known_lengths=False)
CAPACITY_REQUESTS = 600  # all there at the beginning; what is finished per second is the capacity
SAME_GOODPUT = 0.005
LEAST_GAIN, MOST_RECOMPUTED = 1.1, 0.05


@dataclass(frozen=True)
class Run:
    """One policy on one device; policy: `hybrid`, or the token budget of `priority`."""

    device: str
    load: float
    policy: str
    qps: float
    window_s: float

    @property
    def name(self) -> str:
        return f"{self.device} {self.load:.0%} {self.policy}"

    @property
    def contender(self) -> Contender:
        if self.policy == HYBRID:
            target = {"ttft_s": SLO.ttft_s, "tbt_s": SLO.tbt_s, "gap": "strict"}
            return Contender(HYBRID, hybrid={"slo": {"online": target}})
        return Contender(self.policy, stock="priority", engine={"step_tokens": int(self.policy)})


def capacity(device: str) -> float:
    """Conversations per second that stock finishes when all of them wait."""
    rows = make_workload("azure_conv", SEED, qps=5.0, duration_s=CAPACITY_REQUESTS / 5.0, most_tokens=MOST_TOKENS)
    requests = [replace(row, arrival_s=0.0) for row in rows]
    record = simulate(requests, Contender("fcfs", stock="fcfs"), load_device(device), SETTINGS, seed=SEED)
    return len(requests) / record.end_s


def requests_of(run: Run) -> list[SimRequest]:
    """The window's conversations; beside them more prompts than the device can read in it."""
    offline = round((run.window_s + TAIL_S) * load_device(run.device).kv_tokens / 20_000)
    return [
        replace(row, priority=int(row.lane == "offline"))
        for row in make_workload(
            "hygen",
            SEED,
            qps=run.qps,
            duration_s=run.window_s,
            most_tokens=MOST_TOKENS,
            offline_requests=offline,
        )
    ]


def served(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one run, and what it cost on this machine."""
    requests = requests_of(run)
    record = simulate(
        requests, run.contender, load_device(run.device), SETTINGS, until_s=run.window_s + TAIL_S, seed=SEED
    )
    figures = measure(record, SLO)
    online, offline = figures["lanes"]["online"], figures["lanes"]["offline"]
    computed = figures["total_input_tokens"] + figures["total_output_tokens"] + figures["recomputed_tokens"]
    return {
        "goodput": figures["goodput_share"],
        "worst_gap_share": figures["attainment_worst_gap"],
        "worst_gap_ms": online["max_worst_gap_ms"],
        "p99_gap_ms": online["p99_itl_ms"],
        "p99_wait_ms": online["p99_wait_ms"],
        "offline": offline["total_token_throughput"],
        "offline_left": offline["never_started"],
        "online": online["total_token_throughput"],
        "recomputed": figures["recomputed_tokens"] / computed,
        "preemptions": figures["preemptions"],
        "policy_errors": record.policy_errors,
    }, {"cpu_s": record.cpu_s}


def main() -> int:
    given = arguments("lanes_stock", __doc__.splitlines()[0], DEVICES)
    devices = DEVICES[:1] if given.quick else tuple(given.only or DEVICES)
    loads, window_s = (LOADS[1:2], QUICK_WINDOW_S) if given.quick else (LOADS, WINDOW_S)
    watch = Stopwatch()
    rates = dict(zip(devices, run_all(capacity, devices, given.workers), strict=True))
    policies = (*(str(budget) for budget in BUDGETS), HYBRID)
    runs = [
        Run(device, load, policy, load * rates[device], window_s)
        for device in devices
        for load in loads
        for policy in policies
    ]
    outcomes = run_all(served, runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    timing = {run.name: spent for run, (_, spent) in zip(runs, outcomes, strict=True)}
    spans = f"{window_s:g} s and {TAIL_S:g} s more"
    print(f"Stock `priority` at five fixed budgets, {spans}, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(run, results) for run in runs]))
    checks = [] if given.quick else [c for d in devices for load in loads for c in _checks(d, load, results)]
    told = {
        "seed": SEED,
        "window_s": window_s,
        "tail_s": TAIL_S,
        "capacity": rates,
        "slo": {"ttft_s": SLO.ttft_s, "tbt_s": SLO.tbt_s},
    }
    return finish(given, told | {"runs": results}, {"wall_s": watch.seconds, "runs": timing}, checks)


def best_of(device: str, load: float, results: Mapping[str, Any]) -> str:
    """The budget that counts."""
    of = {str(budget): results[f"{device} {load:.0%} {budget}"] for budget in BUDGETS}
    most = max(found["goodput"] for found in of.values())
    good = [budget for budget, found in of.items() if found["goodput"] >= most - SAME_GOODPUT]
    return max(good, key=lambda budget: of[budget]["offline"])


def _row(run: Run, results: Mapping[str, Any]) -> dict[str, str]:
    found, best = results[run.name], best_of(run.device, run.load, results)
    return {
        "device": run.device,
        "load": f"{run.load:.0%}",
        "tokens/step": f"{run.policy}{' (best)' if run.policy == best else ''}",
        "online goodput": f"{found['goodput']:.1%}",
        "every gap in time": f"{found['worst_gap_share']:.1%}",
        "worst gap": f"{found['worst_gap_ms']:.0f} ms",
        "offline tok/s": f"{found['offline']:.0f}",
        "x best": f"{found['offline'] / results[f'{run.device} {run.load:.0%} {best}']['offline']:.2f}",
        "recomputed": f"{found['recomputed']:.1%}",
    }


def _checks(device: str, load: float, results: Mapping[str, Any]) -> Iterator[Check]:
    budget = best_of(device, load, results)
    best, ours = results[f"{device} {load:.0%} {budget}"], results[f"{device} {load:.0%} {HYBRID}"]
    where = f"{device} at {load:.0%}"
    said = f"{ours['goodput']:.1%} against {best['goodput']:.1%}"
    yield Check(f"{where}: online goodput", said, "no worse", ours["goodput"] >= best["goodput"])
    said = f"{ours['worst_gap_ms']:.0f} ms against {best['worst_gap_ms']:.0f} ms"
    yield Check(f"{where}: worst gap", said, "no worse", ours["worst_gap_ms"] <= best["worst_gap_ms"])
    gain = ours["offline"] / best["offline"]
    yield Check(f"{where}: offline tokens/s", f"{gain:.2f}x", f"at least {LEAST_GAIN:g}x", gain >= LEAST_GAIN)
    again = ours["recomputed"]
    yield Check(f"{where}: recomputed", f"{again:.1%}", f"at most {MOST_RECOMPUTED:.0%}", again <= MOST_RECOMPUTED)


if __name__ == "__main__":
    sys.exit(main())
