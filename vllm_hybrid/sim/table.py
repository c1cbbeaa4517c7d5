"""Records as rows: the one table that `simulate` prints and a report shows.

The columns are those that a reader compares policies by; everything else is in the records. Latency is that of the
online requests: nobody waits for an offline one, which has an age instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_hybrid.sim.sweep import Outcome

Cell = Callable[[Mapping[str, Any]], str]


def _online(key: str) -> Cell:
    """Seconds of the online requests; of all where there are none."""

    def cell(record: Mapping[str, Any]) -> str:
        milliseconds = record["lanes"].get("online", record)[key]
        return "-" if milliseconds is None else f"{milliseconds / 1000:.3g}"

    return cell


def _offline(key: str, form: str) -> Cell:
    def cell(record: Mapping[str, Any]) -> str:
        figure = record["lanes"].get("offline", {}).get(key)
        return "-" if figure is None else f"{figure:{form}}"

    return cell


def _share(key: str) -> Cell:
    return lambda record: "-" if record[key] is None else f"{record[key]:.1%}"


def _gap_of_bound(record: Mapping[str, Any]) -> str:
    worst = record["fairness"]["worst_gap_of_bound"]
    return "-" if worst is None else f"{worst:.3f}"


COLUMNS: Mapping[str, Cell] = {
    "policy": lambda record: record["contender"]["name"],
    "seed": lambda record: str(record["seed"]),
    "done": lambda record: f"{record['completed']}/{record['num_requests']}",
    "tokens/s": lambda record: f"{record['total_token_throughput'] or 0:,.0f}",
    "wait p50 s": _online("p50_wait_ms"),
    "wait p99 s": _online("p99_wait_ms"),
    "TBT p50 s": _online("p50_itl_ms"),
    "TBT p99 s": _online("p99_itl_ms"),
    "worst gap p99 s": _online("p99_worst_gap_ms"),
    "goodput": _share("goodput_share"),
    "attained": _share("attainment_p99_gap"),
    "by worst gap": _share("attainment_worst_gap"),
    "gap / 2U": _gap_of_bound,
    "offline tokens/s": _offline("total_token_throughput", ",.0f"),
    "age p99 s": _offline("p99_age_s", ".3g"),
    "preempted": lambda record: str(record["preemptions"]),
    "refused": lambda record: str(record["refused"]),
}


def rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row per record, without the columns that say nothing about any of them."""
    cells = [{name: cell(record) for name, cell in COLUMNS.items()} for record in records]
    shown = [name for name in COLUMNS if any(row[name] not in ("-", "0") for row in cells) or name == "seed"]
    return [{name: row[name] for name in shown} for row in cells]


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes of a sweep, a block per workload, and how fast they were simulated."""
    workloads = dict.fromkeys(outcome.record["workload"] for outcome in outcomes)
    blocks = []
    for name in workloads:
        records = [outcome.record for outcome in outcomes if outcome.record["workload"] == name]
        first = records[0]
        title = f"{name} on {first['device']}: {first['num_requests']} requests, {first['duration']:.0f} s simulated"
        blocks.append("\n".join([title, *_lines(rows(records))]))
    steps, cpu_s = (sum(outcome.timing[key] for outcome in outcomes) for key in ("steps", "cpu_s"))
    blocks.append(f"{steps:,} steps in {cpu_s:.1f} s of CPU time: {steps / cpu_s:,.0f} steps/s per core")
    return "\n\n".join(blocks)


def _lines(cells: Sequence[Mapping[str, str]]) -> list[str]:
    header = {name: name for name in cells[0]}
    width = {name: max(len(row[name]) for row in (header, *cells)) for name in header}
    first = next(iter(header))
    return [
        "  ".join(f"{row[n]:<{width[n]}}" if n == first else f"{row[n]:>{width[n]}}" for n in header)
        for row in (header, *cells)
    ]
