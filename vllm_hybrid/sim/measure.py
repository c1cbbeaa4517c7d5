"""What a run gave its requests: one record of figures that no policy can improve by parking what it has started.

Latency over the requests that were lucky enough to be served flatters a scheduler that starves the rest, and a
percentile over a request's own gaps hides its longest one. So every request is in every figure that judges a policy:
`wait` is the time to the first token or, without one, to the end of the run; the gap that is still open when a run ends
is a gap; what was not delivered was not delivered in time. Where `vllm bench serve` has a figure, it has that key here.
`docs/simulator.md` explains them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vllm_hybrid.sim.run import RequestRecord, RunRecord, StepLog

SCHEMA = 1
PERCENTILES = (50, 90, 95, 99)
_DIGITS = 9  # summing in another order, as another CPU may, changes the digits after these

Seconds = npt.NDArray[np.float64]

_STATISTICS: Mapping[str, Callable[[Seconds], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "std": np.std,
    "max": np.max,
}


@dataclass(frozen=True, slots=True)
class Slo:
    """What was promised to online requests. None: no promise."""

    ttft_s: float | None = None
    tbt_s: float | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One request as its client saw it."""

    record: RequestRecord
    tokens_s: Seconds  # when each output token arrived
    end_s: float  # of the run

    @property
    def arrival_s(self) -> float:
        return self.record.request.arrival_s

    @property
    def started(self) -> bool:
        return len(self.tokens_s) > 0

    @property
    def finished(self) -> bool:
        return self.record.finished_s is not None and self.started

    @property
    def wait_s(self) -> float:
        """To the first token; what is known of it where none came."""
        return float(self.tokens_s[0] if self.started else max(self.end_s, self.arrival_s)) - self.arrival_s

    @property
    def age_s(self) -> float:
        """From the arrival to the last token, or to the end of the run."""
        return float(self.tokens_s[-1] if self.finished else max(self.end_s, self.arrival_s)) - self.arrival_s

    @property
    def gaps_s(self) -> Seconds:
        """Between its tokens, and from the last one to the end of the run where it was not finished."""
        closed = np.diff(self.tokens_s)
        if self.finished or not self.started:
            return closed
        return np.append(closed, max(0.0, self.end_s - float(self.tokens_s[-1])))

    @property
    def worst_gap_s(self) -> float:
        gaps = self.gaps_s
        return float(gaps.max()) if len(gaps) else 0.0


def measure(run: RunRecord, slo: Slo, *, warmup_s: float = 0.0) -> dict[str, Any]:
    """The figures of a run, JSON-able and the same for the same run; requests before `warmup_s` are not judged."""
    end_s = max([run.end_s, *(r.token_s[-1] for r in run.requests if len(r.token_s))])
    served = [
        Served(r, np.asarray(r.token_s, dtype=np.float64), end_s)
        for r in run.requests
        if r.request.arrival_s >= warmup_s
    ]
    online = [s for s in served if s.record.request.lane == "online"]
    offline = [s for s in served if s.record.request.lane == "offline"]
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "warmup_s": warmup_s,
        **request_figures(served, end_s - warmup_s),
        **slo_figures(online, slo, end_s - warmup_s),
        "lanes": {
            name: {**request_figures(lane, end_s - warmup_s), **spread("age", [s.age_s for s in lane], unit="s")}
            for name, lane in (("online", online), ("offline", offline))
            if lane
        },
        "steps": step_figures(run.steps),
        "policy": {
            "errors": run.policy_errors,
            "planned_steps": run.planned_steps,
            "reused_steps": run.reused_steps,
            "stock_steps": run.stock_steps,
            "fallback_steps": run.fallback_steps,
        },
    }
    return tidy(figures)


def request_figures(served: Sequence[Served], seconds: float) -> dict[str, Any]:
    """Latency, throughput and what was lost, of any set of requests."""
    started = [s for s in served if s.started]
    finished = [s for s in started if s.finished]
    input_tokens = sum(s.record.request.prompt_tokens for s in started)
    output_tokens = sum(len(s.tokens_s) for s in started)
    several = [s for s in finished if len(s.tokens_s) > 1]
    gaps = [s.gaps_s for s in started]
    return {
        "num_requests": len(served),
        "duration": seconds,
        "completed": len(finished),
        "failed": len(served) - len(finished),
        "refused": sum(s.record.refused for s in served),
        "never_started": sum(not s.started and not s.record.refused for s in served),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": _ratio(len(finished), seconds),
        "output_throughput": _ratio(output_tokens, seconds),
        "total_token_throughput": _ratio(input_tokens + output_tokens, seconds),
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


def slo_figures(online: Sequence[Served], slo: Slo, seconds: float) -> dict[str, Any]:
    """How the promise was kept to online requests, judged three ways; None where nothing was promised."""
    promised = slo.ttft_s is not None or slo.tbt_s is not None
    judged = online if promised else []
    in_time = [_tokens_in_time(s, slo) for s in judged]
    good = sum(n == s.record.request.output_tokens for n, s in zip(in_time, judged))
    return {
        "slo": {"ttft_s": slo.ttft_s, "tbt_s": slo.tbt_s},
        "request_goodput": _ratio(good, seconds) if promised else None,
        "goodput_share": _ratio(good, len(judged)),
        "token_goodput_share": _ratio(sum(in_time), sum(s.record.request.output_tokens for s in judged)),
        "attainment_p99_gap": _ratio(sum(_attains(s, slo, _p99) for s in judged), len(judged)),
        "attainment_worst_gap": _ratio(sum(_attains(s, slo, np.max) for s in judged), len(judged)),
    }


def _tokens_in_time(served: Served, slo: Slo) -> int:
    """Output tokens delivered by their deadlines: token k is due at arrival + ttft + k * tbt.

    Without a promise for the first token the others count from when it came; without one between tokens, only the
    first has a deadline, and the others are in time if it was.
    """
    tokens_s = served.tokens_s
    if not len(tokens_s):
        return 0
    first_due_s = float(tokens_s[0]) if slo.ttft_s is None else served.arrival_s + slo.ttft_s
    if slo.tbt_s is None:
        return len(tokens_s) if tokens_s[0] <= first_due_s else 0
    return int(np.count_nonzero(tokens_s <= first_due_s + slo.tbt_s * np.arange(len(tokens_s))))


def _attains(served: Served, slo: Slo, of_gaps: Callable[[Seconds], float]) -> bool:
    """Whether a request's own TTFT and a figure of its own gaps stay below the targets (Apt-Serve's definition)."""
    if not served.finished or (slo.ttft_s is not None and served.wait_s >= slo.ttft_s):
        return False
    gaps = served.gaps_s
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


def spread(name: str, seconds: Iterable[float], unit: str = "ms") -> dict[str, float | None]:
    """Mean, median, deviation, percentiles and maximum under the keys of `vllm bench serve`; None of nothing."""
    values = np.asarray(seconds if isinstance(seconds, np.ndarray) else list(seconds), dtype=np.float64)
    values = values * (1000 if unit == "ms" else 1)
    if not len(values):
        return {f"{key}_{name}_{unit}": None for key in (*_STATISTICS, *(f"p{p}" for p in PERCENTILES))}
    figures = {key: float(figure(values)) for key, figure in _STATISTICS.items()}
    figures |= {f"p{p}": float(q) for p, q in zip(PERCENTILES, np.percentile(values, PERCENTILES))}
    return {f"{key}_{name}_{unit}": figure for key, figure in figures.items()}


def tidy(value: Any) -> Any:
    """Plain Python numbers of nine digits, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
