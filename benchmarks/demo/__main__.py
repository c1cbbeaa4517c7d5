"""`python -m benchmarks.demo`: serve a model with either scheduler under the same load, and compare.

The environment's MODEL and TRACE are the defaults of --model and --trace, so that `make demo MODEL=tiny` works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.demo import machine, model, plot, report, results, server, text
from benchmarks.demo.load import LOAD, Load, LoadError, Phases, build, calibration
from benchmarks.demo.run import Run, run
from benchmarks.demo.source import Source, find_source
from vllm_hybrid.workload import TraceError

QUICK_MINUTES = 0.9
HYBRID_CONFIG = {"slo": {"online": {"ttft_s": 2.0, "tbt_s": 0.5}, "idle_step_s": 0.5}}
SCHEDULERS = {
    "stock": (),
    "hybrid": ("--scheduler", "hybrid", "--hybrid-config", json.dumps(HYBRID_CONFIG)),
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    started = time.monotonic()
    try:
        outcome = _compare(options)
    except (model.ModelError, server.ServerError, TraceError, LoadError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\n{options.out}/demo.json and demo.png written; {(time.monotonic() - started) / 60:.1f} minutes")
    return 1 if options.check and not outcome else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    trace = os.environ.get("TRACE")
    parser.add_argument("--model", default=os.environ.get("MODEL") or "smollm2", help="smollm2 or tiny")
    parser.add_argument("--trace", type=Path, default=Path(trace) if trace else None, help="CSV or JSONL trace")
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--capacity", type=float, help="service/s to load for, instead of the measured capacity")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="minutes of load for both servers together (default 5)")
    length.add_argument("--quick", action="store_true", help="under a minute of load, looser tolerances")
    parser.add_argument("--check", action="store_true", help="fail when a tolerance does not hold")
    return parser.parse_args(argv)


def _compare(options: argparse.Namespace) -> bool:
    load = replace(LOAD, seed=options.seed)
    if options.quick:
        load = replace(load.lasting(QUICK_MINUTES), calibration_requests=24)
    elif options.minutes:
        load = load.lasting(options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    source = find_source(options.trace, load.seed)
    folder = model.prepare(options.model)
    bench = _Bench(load, source, folder, options.out, options.capacity)
    stock, hybrid = (bench.measure(name, flags) for name, flags in SCHEDULERS.items())
    tolerances = report.QUICK_TOLERANCES if options.quick else report.FULL_TOLERANCES
    checked = report.checks(stock, hybrid, tolerances)
    about = bench.about(options.model)
    results.write(options.out / "demo.json", results.document(about, (stock, hybrid), checked))
    caption = f"{about['machine']}; {options.model}; seed {load.seed}"
    plot.draw(options.out / "demo.png", (stock, hybrid), caption)
    _print_report(about, stock, hybrid, checked)
    return all(check.ok for check in checked)


class _Bench:
    """Measures one scheduler after the other; the first one's capacity decides the load of both."""

    def __init__(self, load: Load, source: Source, folder: Path, out: Path, capacity: float | None) -> None:
        self._load, self._source, self._folder, self._out = load, source, folder, out
        self._capacity = capacity
        self._phases: Phases | None = None
        self._writer = model.prompt_writer(folder, load.seed)
        self._warmup = calibration(load, source.online, self._writer)

    def measure(self, name: str, flags: Sequence[str]) -> Run:
        with server.serve(name, self._folder, flags, self._out / f"server-{name}.log") as running:
            return run(running, flags, self._load, self._warmup, self._phases_for)

    def about(self, model_name: str) -> dict[str, Any]:
        assert self._phases is not None and self._capacity is not None
        return {
            "machine": machine.describe(),
            "model": model_name,
            "seed": self._load.seed,
            "trace": self._source.description,
            "capacity": round(self._capacity, 1),
            "length_factor": round(self._phases.length_factor, 3),
            "requests": len(self._phases.flood) + len(self._phases.burst),
            "requests_sha256": self._phases.digest,
            "common_flags": list(server.common_flags()),
            "load": asdict(self._load),
        }

    def _phases_for(self, measured: float) -> Phases:
        if self._phases is None:
            self._capacity = self._capacity or measured
            self._phases = build(self._load, self._capacity, self._source.online, self._source.offline, self._writer)
        return self._phases


def _print_report(about: dict[str, Any], stock: Run, hybrid: Run, checked: Sequence[report.Check]) -> None:
    print("\n" + report.table(stock, hybrid))
    print(f"\n{about['machine']}; model {about['model']}; {about['requests']} requests; seed {about['seed']}")
    print(f"load: {about['trace']}; repeat it with --capacity {about['capacity']}")
    print("\n" + report.check_table(checked))
    print(f"\nAnswers of {about['model']} under hybrid:")
    for question, answer in zip(text.SHOWN_QUESTIONS, hybrid.answers, strict=True):
        print(f"  {question}\n    {' '.join(answer.split())}")


if __name__ == "__main__":
    sys.exit(main())
