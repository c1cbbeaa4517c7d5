"""Workloads from production traces: HyGen's co-location, the conversation traces, clients of a cloud service.

Rates are set by stretching time, which keeps the order and the relative gaps of the source; the part that is taken
has the wanted rate itself, whatever its hour had.  `start_s` picks the part: what was tuned on one can be tried on
another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import fitting, in_order, stream
from vllm_hybrid.sim.suites.sources import draw_lengths, require_trace, timed
from vllm_hybrid.workload import TraceRequest, load_trace, rescale_rate

MOONCAKE_FILE = "mooncake_conversation.jsonl.gz"
MOONCAKE_BLOCK_TOKENS = 512
_OFFLINE_PER_SECOND = 3.0  # more than one GPU of the published experiments completes


def hygen(
    seed: int,
    *,
    qps: float = 1.0,
    duration_s: float = 300.0,
    start_s: float = 0.0,
    most_tokens: int = 4_096,
    offline_requests: int | None = None,
    source: str = "auto",
) -> list[SimRequest]:
    """Azure conversation online, arXiv summarization offline, all of it there at the start."""
    online = azure_conv(seed, qps=qps, duration_s=duration_s, start_s=start_s, most_tokens=most_tokens, source=source)
    count = round(_OFFLINE_PER_SECOND * duration_s) if offline_requests is None else offline_requests
    rng = stream(seed, "offline")
    lengths = fitting(lambda: draw_lengths("arxiv_summarization", source, rng), most_tokens)
    offline = [SimRequest("", 0.0, *next(lengths), client="batch", lane="offline") for _ in range(count)]
    return in_order([*online, *offline])


def azure_conv(
    seed: int,
    *,
    qps: float = 5.5,
    duration_s: float = 300.0,
    start_s: float = 0.0,
    most_tokens: int = 16_384,
    source: str = "auto",
) -> list[SimRequest]:
    rows = timed("azure_conv_2023", source, seed)
    return in_order(_online(_stretched(rows, qps, duration_s, start_s, most_tokens)))


def servegen(
    seed: int,
    *,
    model: str = "m_small",
    qps: float = 4.0,
    duration_s: float = 600.0,
    start_s: float = 0.0,
    most_tokens: int = 16_384,
    source: str = "auto",
) -> list[SimRequest]:
    if model not in ("m_small", "m_mid"):
        raise ValueError(f"model = {model!r}: must be one of m_small, m_mid")
    rows = timed(f"servegen_{model}", source, seed, file_name=f"servegen_{model}_requests.csv.gz")
    return in_order(_online(_stretched(rows, qps, duration_s, start_s, most_tokens)))


def mooncake(
    seed: int, *, qps: float = 1.0, duration_s: float = 600.0, start_s: float = 0.0, most_tokens: int = 16_384
) -> list[SimRequest]:
    """A trace and nothing random: the seed has no effect. Equal leading hash ids are a shared prefix."""
    rows = load_trace(require_trace(MOONCAKE_FILE))
    return in_order(_online(_stretched(rows, qps, duration_s, start_s, most_tokens)))


def _stretched(
    rows: Sequence[TraceRequest], qps: float, duration_s: float, start_s: float, most_tokens: int
) -> list[TraceRequest]:
    """`qps * duration_s` of the requests that fit, from number `qps * start_s` on, stretched over `duration_s`."""
    fit = [row for row in rows if row.prompt_tokens + row.output_tokens <= most_tokens]
    first, count = round(start_s * qps), round(qps * duration_s)
    if not 1 <= count <= len(fit) - first - 1:
        raise ValueError(f"qps * duration_s = {count} requests from number {first} on: the source holds {len(fit)}")
    part = fit[first : first + count]
    begin_s = part[0].arrival_s
    factor = (fit[first + count].arrival_s - begin_s) / duration_s
    return rescale_rate([replace(row, arrival_s=row.arrival_s - begin_s) for row in part], factor)


def _online(rows: Iterable[TraceRequest]) -> list[SimRequest]:
    return [
        SimRequest(
            "",
            row.arrival_s,
            row.prompt_tokens,
            row.output_tokens,
            client=row.client,
            hash_ids=row.hash_ids,
            hash_block_tokens=MOONCAKE_BLOCK_TOKENS,
        )
        for row in rows
    ]
