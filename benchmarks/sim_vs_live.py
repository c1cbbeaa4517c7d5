"""`python -m benchmarks.sim_vs_live`: does the simulator say what the live engine does?

The engine's steps on one load are fitted by a `step_linear` device; the same requests of another load then go through
the engine and through the simulator, and TTFT p50, TBT p50 and the total time are compared. Nothing of the second load
enters the fit. Busy time, the sum of the steps, is shown because the total time is mostly that of the arrivals. The
loads are twins of the Azure conversation trace, shortened to what a CPU can do; their rate is a fixed part of the
engine's capacity, which is measured first. With stock's scheduler and with ours, several times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import live_engine
from benchmarks.demo import machine, model
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.sim.device_fit import fit_step_linear
from vllm_hybrid.sim.device_models import StepLinearDevice
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.records import Contender, EngineSettings, RunRecord, SimRequest
from vllm_hybrid.sim.run import simulate
from vllm_hybrid.workload import Scale, load_profile, rescale_lengths

SETTINGS = EngineSettings(max_seqs=16, step_tokens=256, pool_tokens=16_384, block_size=32, max_model_len=1024)
CONTENDERS = (Contender("fcfs", stock="fcfs"), Contender("hybrid", hybrid={"preset": "hybrid"}))
COMPARED = {"TTFT p50": "median_ttft_ms", "TBT p50": "median_itl_ms", "total time": "duration"}
ALSO = ("busy_s", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "p99_itl_ms", "mean_e2el_ms")
TOLERANCE = 0.15
PROMPT, OUTPUT = Scale(0.15, least=4, most=640), Scale(0.3, least=2, most=160)
WARM_UP_SEED, FIT_SEED = 1_000, 2_000
WARM_UP_REQUESTS = 48
FIT_LOAD, LOAD = 1.0, 0.8  # of the engine's capacity


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim_vs_live", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=sorted(model.MAKERS))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="loads per scheduler")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: on a machine with other work")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    given = parser.parse_args()
    os.environ.update(live_engine.IN_PROCESS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    folder = str(model.prepare(given.model))
    results = [compare(contender, folder, given) for contender in CONTENDERS]
    print(_table(results))
    if given.out is not None:
        given.out.write_text(json.dumps(_document(given, results), indent=1) + "\n")
    return 0 if all(abs(ratio - 1) <= TOLERANCE for result in results for ratio in result["ratio"].values()) else 1


def compare(contender: Contender, folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """One scheduler: warm up, fit, then every load live and simulated."""
    with live_engine.engine_of(folder, machine.fast_dtype(), contender, SETTINGS) as engine:

        def live(requests: Sequence[SimRequest]) -> live_engine.Served:
            return live_engine.serve(engine, contender, SETTINGS, requests, live_engine.Clock(given.clock))

        warm_up = _at_once(load(WARM_UP_SEED, WARM_UP_REQUESTS))
        live(warm_up)  # the first steps allocate and compile
        capacity = _capacity(live(warm_up).run)
        runs = [_run(contender, live, seed, given.requests, capacity) for seed in range(given.repeats)]
    ratio = {key: [run["sim"][key] / run["live"][key] for run in runs] for key in COMPARED.values()}
    return {
        "contender": contender.name,
        "capacity_service_per_s": round(capacity, 1),
        "runs": runs,
        "ratio": {name: statistics.median(ratio[key]) for name, key in COMPARED.items()},
    }


def _run(
    contender: Contender,
    live: Callable[[Sequence[SimRequest]], live_engine.Served],
    seed: int,
    count: int,
    capacity: float,
) -> dict[str, Any]:
    """One load live and simulated.

    Half of the other load, to whose steps the device is fitted, is served before it and half after it: a machine whose
    speed drifts must not pass for a simulator that errs.
    """
    fitting = [_paced(load(FIT_SEED + 2 * seed + i, count // 2), FIT_LOAD * capacity) for i in range(2)]
    requests = _paced(load(seed, count), LOAD * capacity)
    before, served, after = live(fitting[0]), live(requests), live(fitting[1])
    device = fit_step_linear(before.samples + after.samples, name=f"live-{contender.name}-{seed}")
    return {
        "seed": seed,
        "live": figures(served.run),
        "sim": figures(simulate(requests, contender, device, SETTINGS)),
        "mean_step_error": _step_error(device, served),
        "device": {key: value for key, value in device.model_dump(by_alias=True).items() if key.endswith("_s")},
    }


def load(seed: int, count: int) -> list[SimRequest]:
    """`count` requests of the trace's twin, from two clients; the second sends twice as many."""
    twin = load_profile("azure_conv_2023")
    rows = rescale_lengths(twin.sample(seed, twin.duration_s), PROMPT, OUTPUT)[:count]
    clients = random.Random(seed)
    return [
        SimRequest(f"s{seed}r{i:04d}", r.arrival_s, r.prompt_tokens, r.output_tokens, clients.choice("abb"))
        for i, r in enumerate(rows)
    ]


def _at_once(requests: Sequence[SimRequest]) -> list[SimRequest]:
    return [replace(request, arrival_s=0.0) for request in requests]


def _paced(requests: Sequence[SimRequest], service_per_s: float) -> list[SimRequest]:
    """The same requests, asking for so much service a second on average."""
    factor = sum(map(_service, requests)) / service_per_s / requests[-1].arrival_s
    return [replace(request, arrival_s=request.arrival_s * factor) for request in requests]


def _capacity(run: RunRecord) -> float:
    return sum(_service(record.request) for record in run.requests) / run.end_s


def _service(request: SimRequest) -> int:
    return request.prompt_tokens + 2 * request.output_tokens


def figures(run: RunRecord) -> dict[str, float]:
    """What is compared, and what is shown beside it."""
    measured = measure(run, Slo())
    measured |= measured["steps"]
    return {key: measured[key] for key in (*COMPARED.values(), *ALSO)}


def _step_error(device: StepLinearDevice, served: live_engine.Served) -> float:
    """Mean relative error of the fit on the steps of a load that it has not seen."""
    return statistics.fmean(abs(_step_s(device, work) / seconds - 1) for work, seconds in served.samples)


def _step_s(device: StepLinearDevice, work: StepWork) -> float:
    fixed_s = device.constant_s + device.prefill_token_s * work.prefill_tokens + device.pair_s * work.pairs
    return fixed_s + device.decode_s * work.decodes + device.decode_context_token_s * work.context_tokens


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'':24}{'live':>10}{'simulated':>12}{'sim / live':>12}{'all loads':>18}"]
    for result in results:
        lines.append(f"{result['contender']} ({len(result['runs'])} loads)")
        for name, key in (COMPARED | {"busy time": "busy_s"}).items():
            live, sim = (statistics.median(run[side][key] for run in result["runs"]) for side in ("live", "sim"))
            ratios = sorted(run["sim"][key] / run["live"][key] for run in result["runs"])
            label = f"{name}, {'s' if name.endswith('time') else 'ms'}"
            all_loads = f"{ratios[0]:.3f} .. {ratios[-1]:.3f}"
            lines.append(f"  {label:22}{live:10.1f}{sim:12.1f}{statistics.median(ratios):12.3f}{all_loads:>18}")
    return "\n".join(lines)


def _document(given: argparse.Namespace, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "machine": machine.describe(),
        "model": given.model,
        "threads": 1,
        "clock": given.clock,
        "requests": given.requests,
        "load_of_capacity": LOAD,
        "settings": asdict(SETTINGS),
        "tolerance": TOLERANCE,
        "results": list(results),
    }


if __name__ == "__main__":
    sys.exit(main())
