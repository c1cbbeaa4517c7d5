"""VTC's experiments (OSDI'24) on the real scheduler classes, beside the published figures.

    python -m benchmarks.paper_vtc [--quick] [--only SUITE ...] [--check] [--workers N] [--out FILE]

Thirteen suites on a simulated A10G with the paper's pool of 10,000 tokens (the ablation: A100-80GB, 35,000 and 65,000),
under the paper's policies, on its engine's admission rules, and vLLM's own class as it is.  All policies of a suite
get the same list of requests; figures are those of the paper's own evaluation (`vllm_hybrid/sim/service.py`).
With --only and --out the other suites stay as FILE has them, and what is checked is all of it: a run is decided by
its suite, policy and seed, whatever else runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.common import Stopwatch, arguments, finish, run_all, table, timing_of
from benchmarks.papers.vtc_checks import all_checks
from benchmarks.papers.vtc_published import PUBLISHED, Published
from benchmarks.papers.vtc_runs import DEVICE, SEED, all_runs, measured, quick_runs

Parts = dict[str, dict[str, Any]]
"""A run's name -> what was found of it."""


def main() -> int:
    suites = tuple(dict.fromkeys(run.suite for run in all_runs()))
    given = arguments("paper_vtc", __doc__.splitlines()[0], suites)
    runs = [run for run in (quick_runs() if given.quick else all_runs()) if run.suite in (given.only or suites)]
    watch = Stopwatch()
    outcomes = run_all(measured, runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    timing = {run.name: spent for run, (_, spent) in zip(runs, outcomes, strict=True)}
    spent_s = sum(spent["cpu_s"] for spent in timing.values())
    print(f"VTC, {len(runs)} runs, {DEVICE}, seed {SEED}: {spent_s:.0f} s of CPU time, {watch.seconds:.0f} s in all\n")
    if given.only and given.out:
        results, timing = beside_others(given.out, results, timing)
    cpu_s = sum(spent["cpu_s"] for spent in timing.values())
    print(table([_row(name, found) for name, found in results.items()]))
    told = {"paper": "VTC, OSDI'24, arXiv 2401.00588", "device": DEVICE, "seed": SEED, "runs": results}
    return finish(given, told, {"cpu_s": cpu_s, "runs": timing}, all_checks(results))


def beside_others(out: Path, results: Parts, timing: Parts) -> tuple[Parts, Parts]:
    """The runs of a part and those that the file holds already, in the order of the whole command."""
    if not out.is_file():
        return results, timing
    merged = []
    for path, new in ((out, results), (timing_of(out), timing)):
        runs = {**json.loads(path.read_text())["runs"], **new}
        merged.append({run.name: runs[run.name] for run in all_runs() if run.name in runs})
    return merged[0], merged[1]


def _row(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """A run beside what was published of it; the published figure is the right one of each pair."""
    paper = PUBLISHED.get(name, Published())
    suite, policy = name.split("/")
    few = len(found["shares"]) <= 4
    return {
        "suite": suite,
        "policy": policy,
        "shares": _numbers(found["shares"], 3) if few else "",
        "(paper)": _numbers(paper.shares, 3),
        "tokens/s": f"{found['throughput']:,.0f}",
        "(paper) ": f"{paper.throughput:,}" if paper.throughput else "",
        "wait s": _numbers(found["wait_s"], 1) if few else "",
        "(paper)  ": _numbers(paper.wait_s, 1),
        "mean diff": f"{found['difference'][1]:.0f}",
        "(paper)   ": f"{paper.difference[1]:.0f}" if paper.difference else "",
        "worst gap": f"{found['worst_gap']:,.0f}",
        "(paper)    ": f"{paper.worst_gap:,.0f}" if paper.worst_gap else "",
        "preempted": str(found["preemptions"]),
        "refused": str(found["refused"]),
    }


def _numbers(values: Sequence[float] | None, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values) if values else ""


if __name__ == "__main__":
    sys.exit(main())
