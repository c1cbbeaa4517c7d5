"""The side-by-side table, and the tolerances the demo holds itself to.

A figure without its tolerance is an anecdote: each promise of the README is a named check with the value that was
measured and the value that is allowed, and `--check` turns a failed one into a failed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.demo.load import BATCH, FLOOD, LOAD, QUIET
from benchmarks.demo.metrics import TenantFigures
from benchmarks.demo.run import Run

_LABEL_WIDTH, _COLUMN_WIDTH = 46, 14


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What must hold; times in seconds."""

    most_ttft_ratio: float = 0.10
    least_share: float = 0.45
    most_share: float = 0.55
    least_contended_s: float = 30
    least_throughput_ratio: float = 0.95
    least_planned_share: float = 0.90


FULL_TOLERANCES = Tolerances()
# A minute of load: queues are short, and one request more or less moves a share by some points.
QUICK_TOLERANCES = Tolerances(
    most_ttft_ratio=0.5,
    least_share=0.35,
    most_share=0.65,
    least_contended_s=3,
    least_throughput_ratio=0.80,
)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    value: str
    allowed: str
    ok: bool


def checks(stock: Run, hybrid: Run, tolerances: Tolerances) -> list[Check]:
    return [
        *_load_checks(stock, hybrid),
        *_promises(stock, hybrid, tolerances),
        *_policy_checks(hybrid, tolerances),
    ]


def _load_checks(stock: Run, hybrid: Run) -> Iterator[Check]:
    for run in (stock, hybrid):
        unfinished = [o for o in run.outcomes if not o.finished]
        reason = f", first: {unfinished[0].error or 'too few tokens'}" if unfinished else ""
        value = f"{len(run.outcomes) - len(unfinished)} of {len(run.outcomes)}{reason}"
        yield Check(f"{run.scheduler}: every request finished", value, "all", not unfinished)
    offline = hybrid.flood_figures(BATCH)
    finished = f"{offline.finished} of {offline.requests}"
    yield Check("hybrid: offline work finished", finished, "all", offline.finished == offline.requests)


def _promises(stock: Run, hybrid: Run, allowed: Tolerances) -> Iterator[Check]:
    ratio = hybrid.flood_figures(QUIET).ttft_p99_s / stock.flood_figures(QUIET).ttft_p99_s
    limit = allowed.most_ttft_ratio
    yield Check("quiet tenant's p99 TTFT, hybrid / stock", f"{ratio:.3f}", f"<= {limit:g}", ratio <= limit)
    window = hybrid.contention
    seconds = allowed.least_contended_s
    yield Check(
        "hybrid: both tenants backlogged", f"{window.seconds:.0f} s", f">= {seconds:g} s", window.seconds >= seconds
    )
    low, high = allowed.least_share, allowed.most_share
    for tenant in (QUIET, FLOOD):
        share = window.share(tenant)
        yield Check(f"hybrid: share of {tenant}", f"{share:.3f}", f"{low:g} .. {high:g}", low <= share <= high)
    throughput = hybrid.tokens_per_s / stock.tokens_per_s
    limit = allowed.least_throughput_ratio
    yield Check("total tokens/s, hybrid / stock", f"{throughput:.3f}", f">= {limit:g}", throughput >= limit)


def _policy_checks(hybrid: Run, allowed: Tolerances) -> Iterator[Check]:
    steps = hybrid.policy
    errors = "no such metric" if steps.errors is None else f"{steps.errors:.0f}"
    yield Check("hybrid: policy errors", errors, "0", steps.errors == 0)
    limit = allowed.least_planned_share
    planned = f"{steps.planned_share:.3f} of {steps.contended:.0f}"
    ok = steps.contended > 0 and steps.planned_share >= limit
    yield Check("hybrid: steps with two live clients that ran a plan", planned, f">= {limit:g}", ok)


def table(stock: Run, hybrid: Run) -> str:
    """What each tenant got, one column per scheduler."""
    runs = (stock, hybrid)
    lines = [_line("", *(run.scheduler for run in runs))]
    lines += ["", "Phase 1: a flood and an offline backlog beside a quiet tenant"]
    lines += _online_rows(f"quiet tenant, {LOAD.quiet_share:.0%} of capacity", runs, _flood_figures(QUIET))
    lines += _online_rows(f"flooding tenant, {LOAD.flood_share:.0%}", runs, _flood_figures(FLOOD))
    lines += _offline_rows(runs, _flood_figures(BATCH))
    lines += ["", f"Phase 2: both tenants flood, 1 : {LOAD.burst_ratio:g}"]
    for tenant, title in ((QUIET, "quiet tenant's burst"), (FLOOD, "flooding tenant")):
        lines += _online_rows(title, runs, _burst_figures(tenant))
        lines += _share_row(runs, tenant)
    lines += ["", "Both phases"]
    lines.append(_row("total tokens/s", runs, lambda run: f"{run.tokens_per_s:.0f}"))
    lines.append(_row("seconds until all was done", runs, lambda run: f"{run.seconds:.0f}"))
    return "\n".join(lines)


def check_table(results: Sequence[Check]) -> str:
    width = max(len(check.name) for check in results)
    return "\n".join(
        f"{'ok  ' if c.ok else 'FAIL'}  {c.name:<{width}}  {c.value}  (allowed: {c.allowed})" for c in results
    )


Figures = Callable[[Run], TenantFigures]


def _flood_figures(tenant: str) -> Figures:
    return lambda run: run.flood_figures(tenant)


def _burst_figures(tenant: str) -> Figures:
    return lambda run: run.burst_figures(tenant)


def _online_rows(title: str, runs: Sequence[Run], figures: Figures) -> Iterator[str]:
    yield f"  {title}"
    yield _row("    TTFT p50, s", runs, lambda run: f"{figures(run).ttft_p50_s:.2f}")
    yield _row("    TTFT p99, s", runs, lambda run: f"{figures(run).ttft_p99_s:.2f}")
    yield _row("    worst gap between tokens, s", runs, lambda run: f"{figures(run).worst_gap_s:.2f}")
    yield _row("    tokens/s", runs, lambda run: f"{figures(run).tokens_per_s:.0f}")


def _share_row(runs: Sequence[Run], tenant: str) -> Iterator[str]:
    label = "    share of the service while both wait"
    yield _row(label, runs, lambda run: f"{run.contention.share(tenant):.2f}")


def _offline_rows(runs: Sequence[Run], figures: Figures) -> Iterator[str]:
    yield "  offline backlog"
    yield _row("    tokens/s", runs, lambda run: f"{figures(run).tokens_per_s:.0f}")
    yield _row("    finished", runs, lambda run: f"{figures(run).finished} of {figures(run).requests}")
    yield _row("    all done after, s", runs, lambda run: f"{figures(run).last_token_s:.0f}")


def _row(label: str, runs: Sequence[Run], cell: Callable[[Run], str]) -> str:
    return _line(label, *(cell(run) for run in runs))


def _line(label: str, *cells: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_COLUMN_WIDTH}}" for cell in cells)
