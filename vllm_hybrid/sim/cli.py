"""`vllm-hybrid simulate` and `vllm-hybrid report`: what a user may ask for, and one line for what cannot be.

Only arguments live here; vLLM and the plotting library are imported when a command really needs them, because an
operator's `vllm-hybrid check` must not wait for them. Everything that can be known to be wrong is refused before the
first run starts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

_FAILED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130


def add_commands(commands: Any) -> None:
    """Add the sub-commands; each sets `run` to what carries it out."""
    simulate = commands.add_parser("simulate", help="run workloads through the real schedulers on a simulated device")
    source = simulate.add_mutually_exclusive_group()
    source.add_argument("--workload", metavar="NAME", help="a workload that ships with the package")
    source.add_argument("--trace", metavar="FILE", type=Path, help="a CSV or JSONL trace, gzipped or not")
    simulate.add_argument("--columns", metavar="FIELD=COLUMN,...", default="", help="the trace's own column names")
    simulate.add_argument("--parameters", metavar="KEY=VALUE,...", default="", help="the workload's, e.g. qps=2")
    simulate.add_argument("--device", metavar="NAME|FILE", help="a device model; see --list")
    simulate.add_argument("--preset", metavar="NAME,...", default="fcfs,hybrid", help="who schedules (%(default)s)")
    simulate.add_argument("--hybrid-config", metavar="JSON|FILE", help="settings for every preset but stock's")
    simulate.add_argument("--engine", metavar="KEY=VALUE,...", default="", help="e.g. step_tokens=512,max_seqs=64")
    simulate.add_argument("--seeds", metavar="N,...", default="0", help="seeds of the workload (%(default)s)")
    simulate.add_argument("--duration", metavar="S", help="stop after so many simulated seconds (default: when done)")
    simulate.add_argument("--slo", metavar="KEY=S,...", default="", help="what is promised, e.g. ttft_s=1,tbt_s=.1")
    simulate.add_argument("--out", metavar="DIR", type=Path, help="write a record per run")
    simulate.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    simulate.add_argument("--list", action="store_true", help="print the devices, workloads and presets there are")
    simulate.set_defaults(run=simulate_command)
    report = commands.add_parser("report", help="turn a folder of records into one HTML page")
    report.add_argument("folder", metavar="DIR", type=Path)
    report.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: DIR/report.html")
    report.set_defaults(run=report_command)


def simulate_command(given: argparse.Namespace) -> int:
    """Run what was asked for, print its table, write its records."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_hybrid.sim import options, results, sweep, table

    try:
        if given.list:
            _print_names()
            return 0
        jobs = options.jobs(given)
        keep = None if given.out is None else lambda outcome: results.write(given.out, outcome)
        outcomes = sweep.sweep(jobs, given.workers, keep)
    except (*options.MISTAKES, OSError) as error:
        return _say(error, _BAD_INPUT)
    except sweep.SweepError as error:
        return _say(error, _FAILED)
    except KeyboardInterrupt:
        return _INTERRUPTED
    print(table.table(outcomes))
    if given.out is not None:
        print(f"\n{len(outcomes)} records in {given.out}; vllm-hybrid report {given.out} draws them")
    return 0


def report_command(given: argparse.Namespace) -> int:
    """Write the page."""
    from vllm_hybrid.sim import report, results

    output = given.output or given.folder / "report.html"
    try:
        records = results.read_all(given.folder)
        output.write_text(report.page(records), encoding="utf-8")
    except (results.ResultsError, report.ReportError, OSError) as error:
        return _say(error, _BAD_INPUT)
    print(f"{output}: {len(records)} runs")
    return 0


def _print_names() -> None:
    from vllm_hybrid.sim import options

    for kind, names in options.names().items():
        print(f"{kind}: {', '.join(names)}")


def _say(error: Exception, status: int) -> int:
    print(f"vllm-hybrid: {error}", file=sys.stderr)
    return status
