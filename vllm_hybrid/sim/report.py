"""A folder of records as one page that needs nothing else: a section per workload and device, a table, plots.

The page is a function of the records, so two people with the same records have the same page. The timings beside the
records say how fast they were simulated; they are the only figures on it that a machine decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from vllm_hybrid.sim.table import rows

Record = Mapping[str, Any]

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2.2em; border-top: 1px solid #ddd; padding-top: 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #eee; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; } td:first-child { font-weight: 600; }
p.about, footer { color: #666; font-size: .9em; } svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #ddd; } th, td { border-color: #333; } svg { background: #fff; }
}
"""
_HELP = """
<p class="about">wait: time to the first token of every online request, those never served included. worst gap: the
longest pause in a stream. goodput: online requests all of whose tokens came by their deadlines (token k at arrival +
TTFT target + k &times; TBT target). attained: TTFT and the P99 of the request's own gaps below the targets; by worst
gap: the longest gap instead. gap / 2U: the largest difference in service between two clients that both waited, as a
part of VTC's bound. age: of offline requests, from arrival to the last token or to the end of the run.</p>
"""


class ReportError(ValueError):
    """A page that cannot be made; the message says what to install."""


def page(runs: Sequence[tuple[Record, Record]]) -> str:
    """The page for (record, timing) of every run."""
    try:
        import matplotlib  # noqa: F401 - fail before anything is written
    except ImportError:
        raise ReportError("report needs matplotlib: pip install 'vllm-hybrid[bench]'") from None
    sections: dict[tuple[str, str], list[Record]] = {}
    for record, _ in runs:
        sections.setdefault((record["workload"], record["device"]), []).append(record)
    title = f"{len(runs)} simulated runs"
    body = "".join(_section(*names, records) for names, records in sections.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>\n'
        f"<body><h1>{title}</h1>{_HELP}{body}{_footer(runs)}</body></html>\n"
    )


def _section(workload: str, device: str, records: Sequence[Record]) -> str:
    from vllm_hybrid.sim import plots

    seeds = sorted({record["seed"] for record in records})
    drawn = [record for record in records if record["seed"] == seeds[0]]
    return (
        f"<h2>{escape(workload)} on {escape(device)}</h2>"
        f'<p class="about">{escape("; ".join(_about(records[0])))}</p>'
        f'<div class="wide">{_table(rows(records))}</div>'
        f'<p class="about">seed {seeds[0]}</p><div class="wide">{plots.distributions(drawn)}</div>'
        f'<p class="about">service (prompt tokens + 2 &times; output tokens) delivered to the clients</p>'
        f'<div class="wide">{plots.service(drawn)}</div>'
    )


def _about(record: Record) -> Iterator[str]:
    settings, slo = record["settings"], record["slo"]
    yield f"{record['num_requests']} requests, {len(record['clients'])} clients, {record['duration']:.0f} s simulated"
    yield f"pool {settings['pool_tokens']:,} tokens"
    yield f"{settings['step_tokens']:,} tokens and {settings['max_seqs']} sequences per step"
    targets = [f"{key.removesuffix('_s').upper()} {value:g} s" for key, value in slo.items() if value is not None]
    yield f"targets: {', '.join(targets) or 'none'}"


def _table(cells: Sequence[Mapping[str, str]]) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in cells[0])
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row.values()) for row in cells)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _footer(runs: Sequence[tuple[Record, Record]]) -> str:
    timings = [timing for _, timing in runs if timing.get("cpu_s")]
    version = escape(str(runs[0][0]["vllm_hybrid"]))
    speed = ""
    if timings:
        steps, cpu_s = sum(t["steps"] for t in timings), sum(t["cpu_s"] for t in timings)
        speed = f": {steps:,} steps at {steps / cpu_s:,.0f} per second of CPU time"
    return f"<footer><p>vllm-hybrid {version}, vLLM's scheduler classes on a simulated device{speed}</p></footer>"
