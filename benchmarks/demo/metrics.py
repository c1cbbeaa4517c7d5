"""What a replay says about each tenant: latency, throughput, and the share of the service under contention.

Service is what VTC charges: prompt tokens + 2 x output tokens, a prompt's on its first token, an output token's
when it arrives.  A tenant is backlogged while it has a request that is due and has no token yet; shares are taken
over the longest stretch in which all tenants asked about are, because only then does fairness promise a share.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.demo.client import Outcome, Replay
from benchmarks.demo.load import LoadError

OUTPUT_WEIGHT = 2


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy and `vllm bench serve` do it."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """One tenant in one phase; times in seconds, throughput over the phase's makespan."""

    requests: int
    finished: int
    ttft_p50_s: float
    ttft_p99_s: float
    worst_gap_s: float
    input_tokens: int
    output_tokens: int
    last_token_s: float
    tokens_per_s: float
    """Prompt and output tokens per second until the tenant's own last token."""


def tenant_figures(outcomes: Sequence[Outcome], tenant: str) -> TenantFigures:
    own = [o for o in outcomes if o.item.tenant == tenant]
    answered = [o for o in own if o.tokens]
    ttfts = [o.ttft_s for o in answered]
    inputs, outputs = sum(o.prompt_tokens for o in answered), sum(o.output_tokens for o in answered)
    last_s = max((o.last_token_s for o in answered), default=0.0)
    return TenantFigures(
        requests=len(own),
        finished=sum(o.finished for o in own),
        ttft_p50_s=percentile(ttfts, 50) if ttfts else float("nan"),
        ttft_p99_s=percentile(ttfts, 99) if ttfts else float("nan"),
        worst_gap_s=max((gap for o in answered for gap in o.gaps_s), default=0.0),
        input_tokens=inputs,
        output_tokens=outputs,
        last_token_s=last_s,
        tokens_per_s=(inputs + outputs) / last_s if last_s else 0.0,
    )


def bench_serve_keys(replay: Replay, tenant: str | None = None) -> dict[str, float]:
    """The figures under the keys of `vllm bench serve`, for one tenant or for all."""
    outcomes = [o for o in replay.outcomes if tenant in (None, o.item.tenant)]
    answered = [o for o in outcomes if o.tokens]
    duration_s = replay.makespan_s
    inputs, outputs = sum(o.prompt_tokens for o in answered), sum(o.output_tokens for o in answered)
    ttfts = [o.ttft_s for o in answered]
    tpots = [(o.last_token_s - o.first_token_s) / (o.output_tokens - 1) for o in answered if o.output_tokens > 1]
    gaps = [gap for o in answered for gap in o.gaps_s]
    return {
        "duration": duration_s,
        "completed": sum(o.finished for o in outcomes),
        "failed": sum(not o.finished for o in outcomes),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": sum(o.finished for o in outcomes) / duration_s if duration_s else 0.0,
        "output_throughput": outputs / duration_s if duration_s else 0.0,
        "total_token_throughput": (inputs + outputs) / duration_s if duration_s else 0.0,
        **_spread("ttft_ms", ttfts),
        **_spread("tpot_ms", tpots),
        **_spread("itl_ms", gaps),
        "max_itl_ms": 1000 * max(gaps, default=0.0),
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        f"mean_{name}": 1000 * statistics.fmean(seconds),
        f"median_{name}": 1000 * percentile(seconds, 50),
        f"std_{name}": 1000 * statistics.pstdev(seconds),
        f"p99_{name}": 1000 * percentile(seconds, 99),
    }


@dataclass(frozen=True, slots=True)
class Contention:
    """The longest stretch in which several tenants were all backlogged, and what each got in it."""

    start_s: float
    end_s: float
    service: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def share(self, tenant: str) -> float:
        whole = sum(self.service.values())
        return self.service[tenant] / whole if whole else float("nan")


def contention(outcomes: Sequence[Outcome], tenants: Sequence[str]) -> Contention:
    backlogged = [_merged(_waits(o for o in outcomes if o.item.tenant == t)) for t in tenants]
    together = backlogged[0]
    for other in backlogged[1:]:
        together = list(_overlaps(together, other))
    start_s, end_s = max(together, key=lambda span: span[1] - span[0], default=(0.0, 0.0))
    got = {t: service_between(outcomes, t, start_s, end_s) for t in tenants}
    return Contention(start_s, end_s, got)


def service_between(outcomes: Iterable[Outcome], tenant: str, start_s: float, end_s: float) -> float:
    """The service of `tenant` in (start_s, end_s]."""
    got = 0.0
    for outcome in outcomes:
        if outcome.item.tenant != tenant or not outcome.tokens:
            continue
        if start_s < outcome.first_token_s <= end_s:
            got += outcome.prompt_tokens
        got += OUTPUT_WEIGHT * sum(n for t, n in outcome.tokens if start_s < t <= end_s)
    return got


def capacity(calibration: Replay) -> float:
    """Service per second with every slot taken: from the first request's end to the last one's first token."""
    answered = [o for o in calibration.outcomes if o.tokens]
    ended = [o.last_token_s for o in answered if o.finished]
    if not ended:
        raise LoadError("no request of the calibration finished: this machine is too slow for the demo")
    start_s, end_s = min(ended), max(o.first_token_s for o in answered)
    if end_s <= start_s:
        raise LoadError("the calibration has fewer requests than the server has slots")
    return service_between(answered, answered[0].item.tenant, start_s, end_s) / (end_s - start_s)


def _waits(outcomes: Iterable[Outcome]) -> Iterator[tuple[float, float]]:
    """When each request was due and had no token yet; one that failed never waited."""
    return ((o.item.due_s, o.first_token_s) for o in outcomes if o.tokens)


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def _overlaps(
    these: Sequence[tuple[float, float]], those: Sequence[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    for a_start, a_end in these:
        for b_start, b_end in those:
            if max(a_start, b_start) < min(a_end, b_end):
                yield max(a_start, b_start), min(a_end, b_end)
