"""The trace that VTC's artifact was measured with, instead of our draw of it, through our emulation of its engine.

    python -m benchmarks.vtc_stored FILE [--workers N] [--out FILE]

FILE is `fair_bench/VTC/all_results_real.jsonl` of github.com/Ying1123/VTC-artifact: the responses of its run under VTC,
with each request's client, lengths and time of arrival. It is not part of this repository. What differs between this
table and `real` in `benchmarks.paper_vtc` is the draw; what differs from the published figures is the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.papers.common import RESULTS, run_all, table
from benchmarks.papers.vtc_published import PUBLISHED, Published
from benchmarks.papers.vtc_runs import Run, all_runs, measured_on
from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.results import text_of
from vllm_hybrid.sim.statistics import tidy
from vllm_hybrid.sim.suites.arrivals import in_order


def read_responses(path: Path) -> list[SimRequest]:
    """The requests of the last run that the file holds."""
    responses = json.loads(path.read_text().splitlines()[-1])["result"]["responses"]
    return in_order(
        SimRequest("", r["req_time"], r["prompt_len"], r["output_len"], r["adapter_dir"]) for r in responses
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vtc_stored", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the artifact's fair_bench/VTC/all_results_real.jsonl")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "vtc_stored.json", help="file of the results")
    given = parser.parse_args()
    requests = read_responses(given.file)
    runs = [run for run in all_runs() if run.suite == "real"]
    outcomes = run_all(partial(measured_on, requests), runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    prompts, answers = sum(r.prompt_tokens for r in requests), sum(r.output_tokens for r in requests)
    print(f"VTC's own trace: {len(requests)} requests, {prompts} prompt and {answers} output tokens\n")
    print(table([_row(run, results[run.name]) for run in runs]))
    told = {"requests": len(requests), "prompt_tokens": prompts, "output_tokens": answers, "runs": results}
    given.out.write_text(text_of(tidy(told)))
    print(f"\nwritten: {os.path.relpath(given.out)}")
    return 0


def _row(run: Run, found: dict[str, Any]) -> dict[str, str]:
    paper = PUBLISHED.get(run.name, Published())
    off = f"{found['throughput'] / paper.throughput - 1:+.1%}" if paper.throughput else ""
    return {
        "policy": run.policy,
        "tokens/s": f"{found['throughput']:.0f}",
        "(paper)": f"{paper.throughput}" if paper.throughput else "",
        "off": off,
        "mean diff": f"{found['difference'][1]:.0f}",
        "(paper) ": f"{paper.difference[1]:.0f}" if paper.difference else "",
        "accepted": str(found["requests"] - found["refused"]),
    }


if __name__ == "__main__":
    sys.exit(main())
