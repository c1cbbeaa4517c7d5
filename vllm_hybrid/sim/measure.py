"""What a run gave its requests: one record of figures that no policy can improve by parking what it has started.

Latency over the requests that were lucky enough to be served flatters a scheduler that starves the rest, and a
percentile over a request's own gaps hides its longest one. So every request is in every figure that judges a policy:
`wait` is the time to the first token or, without one, to the end of the run; the gap that is still open when a run ends
is a gap; what was not delivered was not delivered in time. Where `vllm bench serve` has a figure, it has that key here.
`docs/simulator.md` explains them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_hybrid.config import LANES
from vllm_hybrid.sim import service
from vllm_hybrid.sim.answers import Answer, Seconds, answers_of, end_of
from vllm_hybrid.sim.drift import ClientService, drift_figures, services
from vllm_hybrid.sim.statistics import ratio, spread, tidy

if TYPE_CHECKING:
    from vllm_hybrid.sim.records import RunRecord, StepLog

SCHEMA = 1

_CLIENT_KEYS = (
    *("num_requests", "completed", "refused", "never_started", "total_input_tokens", "total_output_tokens"),
    *("mean_wait_ms", "p50_wait_ms", "p99_wait_ms", "mean_ttft_ms", "p99_worst_gap_ms", "preemptions"),
)


@dataclass(frozen=True, slots=True)
class Slo:
    """What was promised to online requests. None: no promise."""

    ttft_s: float | None = None
    tbt_s: float | None = None


def measure(
    run: RunRecord, slo: Slo, *, warmup_s: float = 0.0, weights: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The figures of a run, JSON-able and the same for the same run.

    Requests that came before `warmup_s` are not judged, but what they got counts as their client's service.
    `weights`: what the clients are meant to get of it, relative to each other; 1 where nothing is said.
    """
    answers = answers_of(run, warmup_s)
    seconds = end_of(run) - warmup_s
    lanes = {name: [a for a in answers if a.record.request.lane == name] for name in LANES}
    return tidy(
        {
            "schema": SCHEMA,
            "warmup_s": warmup_s,
            **request_figures(answers, seconds),
            **slo_figures(lanes["online"], slo, seconds),
            "lanes": {
                name: {**request_figures(lane, seconds), **spread("age", [a.age_s for a in lane], unit="s")}
                for name, lane in lanes.items()
                if lane
            },
            **client_figures(run, answers, weights or {}),
            "steps": step_figures(run.steps),
            "policy": {
                "errors": run.policy_errors,
                "planned_steps": run.planned_steps,
                "reused_steps": run.reused_steps,
                "stock_steps": run.stock_steps,
                "fallback_steps": run.fallback_steps,
            },
        }
    )


def client_figures(run: RunRecord, answers: Sequence[Answer], weights: Mapping[str, float]) -> dict[str, Any]:
    """What each client got, and how far from each other those were that both waited."""
    whole = services(answers_of(run), weights)
    total = sum(client.total for client in whole)
    own: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        own[answer.record.request.client].append(answer)
    longest_prompt = max((r.request.prompt_tokens for r in run.requests), default=0)
    return {
        "clients": [_client(client, total, own[client.client]) for client in whole],
        "fairness": {
            **drift_figures(whole, longest_prompt, run.settings.pool_tokens or 0),
            "service_difference": _service_difference(run),
        },
    }


def _service_difference(run: RunRecord) -> dict[str, float] | None:
    """The row of the VTC paper's fairness table; None of a load too short for its windows."""
    seconds = max((r.request.arrival_s for r in run.requests), default=0.0)
    if seconds < service.WARMUP_S + service.WINDOW_S:
        return None
    return asdict(service.service_difference(service.served(run), service.demand_of(run), seconds))


def _client(client: ClientService, total: float, answers: Sequence[Answer]) -> dict[str, Any]:
    lane = [a for a in answers if a.record.request.lane == client.lane]
    figures = request_figures(lane, 0.0)
    return {
        "client": client.client,
        "lane": client.lane,
        "weight": client.weight,
        "service": client.total,
        "service_share": ratio(client.total, total),
        "backlogged_s": client.backlogged_s,
        **{key: figures[key] for key in _CLIENT_KEYS},
    }


def request_figures(served: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Latency, throughput and what was lost, of any set of requests."""
    started = [s for s in served if s.started]
    finished = [s for s in started if s.finished]
    input_tokens = sum(s.record.request.prompt_tokens for s in started)
    output_tokens = sum(len(s.tokens_s) for s in started)
    several = [s for s in finished if len(s.tokens_s) > 1]
    gaps = [np.diff(s.tokens_s) for s in started]
    return {
        "num_requests": len(served),
        "duration": seconds,
        "completed": len(finished),
        "failed": len(served) - len(finished),
        "refused": sum(s.record.refused for s in served),
        "never_started": sum(not s.started and not s.record.refused for s in served),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": ratio(len(finished), seconds),
        "output_throughput": ratio(output_tokens, seconds),
        "total_token_throughput": ratio(input_tokens + output_tokens, seconds),
        **spread("ttft", [s.wait_s for s in started]),
        **spread("tpot", [(s.tokens_s[-1] - s.tokens_s[0]) / (len(s.tokens_s) - 1) for s in several]),
        **spread("itl", np.concatenate(gaps) if gaps else []),
        **spread("e2el", [s.age_s for s in finished]),
        **spread("wait", [s.wait_s for s in served if not s.record.refused]),
        **spread("worst_gap", [s.worst_gap_s for s in started if len(s.gaps_s)]),
        "preemptions": sum(s.record.preemptions for s in served),
        "preempted_requests": sum(s.record.preemptions > 0 for s in served),
        "recomputed_tokens": sum(s.record.recomputed_tokens for s in served),
        "cached_tokens": sum(s.record.cached_tokens for s in served),
    }


def slo_figures(online: Sequence[Answer], slo: Slo, seconds: float) -> dict[str, Any]:
    """How the promise was kept to online requests, judged three ways; None where nothing was promised."""
    promised = slo.ttft_s is not None or slo.tbt_s is not None
    judged = online if promised else []
    in_time = [_tokens_in_time(s, slo) for s in judged]
    good = sum(n == s.record.request.output_tokens for n, s in zip(in_time, judged))
    return {
        "slo": {"ttft_s": slo.ttft_s, "tbt_s": slo.tbt_s},
        "request_goodput": ratio(good, seconds) if promised else None,
        "goodput_share": ratio(good, len(judged)),
        "token_goodput_share": ratio(sum(in_time), sum(s.record.request.output_tokens for s in judged)),
        "attainment_p99_gap": ratio(sum(_attains(s, slo, _p99) for s in judged), len(judged)),
        "attainment_worst_gap": ratio(sum(_attains(s, slo, np.max) for s in judged), len(judged)),
    }


def _tokens_in_time(answer: Answer, slo: Slo) -> int:
    """Output tokens delivered by their deadlines: token k is due at arrival + ttft + k * tbt.

    Without a promise for the first token the others count from when it came; without one between tokens, only the
    first has a deadline, and the others are in time if it was.
    """
    tokens_s = answer.tokens_s
    if not len(tokens_s):
        return 0
    first_due_s = float(tokens_s[0]) if slo.ttft_s is None else answer.arrival_s + slo.ttft_s
    if slo.tbt_s is None:
        return len(tokens_s) if tokens_s[0] <= first_due_s else 0
    return int(np.count_nonzero(tokens_s <= first_due_s + slo.tbt_s * np.arange(len(tokens_s))))


def _attains(answer: Answer, slo: Slo, of_gaps: Callable[[Seconds], float]) -> bool:
    """Whether a request's own TTFT and a figure of its own gaps stay below the targets (Apt-Serve's definition)."""
    if not answer.finished or (slo.ttft_s is not None and answer.wait_s >= slo.ttft_s):
        return False
    gaps = answer.gaps_s
    return slo.tbt_s is None or not len(gaps) or bool(of_gaps(gaps) < slo.tbt_s)


def _p99(gaps: Seconds) -> float:
    return float(np.percentile(gaps, 99))


def step_figures(steps: StepLog) -> dict[str, Any]:
    """What the steps took, and how far the policy's prediction of that was off."""
    seconds = np.asarray(steps.seconds, dtype=np.float64)
    predicted = np.asarray(steps.predicted_s, dtype=np.float64)
    known = np.isfinite(predicted) & (seconds > 0)
    errors = np.abs(predicted[known] - seconds[known]) / seconds[known]
    return {
        "steps": len(seconds),
        "busy_s": float(seconds.sum()),
        "prefill_tokens": int(np.sum(np.asarray(steps.prefill_tokens, dtype=np.int64))),
        "decodes": int(np.sum(np.asarray(steps.decodes, dtype=np.int64))),
        **spread("step", seconds),
        "predicted_steps": int(known.sum()),
        "mean_prediction_error": float(errors.mean()) if len(errors) else None,
        "p99_prediction_error": float(np.percentile(errors, 99)) if len(errors) else None,
    }
