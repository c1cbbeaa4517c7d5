"""What must hold for online requests: a metric and its limit, absolute or relative to online work alone.

`ttft_p99=2,tbt_p99=0.1` are seconds; `tbt_mean=+10%` is HyGen's form (arXiv 2501.14808): so much above what the same
online requests see without any offline work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vllm_hybrid.sim.records import RunRecord

METRICS = tuple(f"{what}_{of}" for what in ("ttft", "tbt") for of in ("mean", "p50", "p99"))
_RELATIVE = re.compile(r"\+(\d+(?:\.\d+)?)%")


class TargetError(ValueError):
    """An SLO that cannot be read, said in one line."""


@dataclass(frozen=True, slots=True)
class Target:
    """limit: seconds, or a share above online-alone if `relative`."""

    metric: str
    limit: float
    relative: bool = False

    def limit_s(self, alone: Mapping[str, float]) -> float:
        """In seconds, given the metrics of the online requests alone."""
        return alone[self.metric] * (1 + self.limit) if self.relative else self.limit


def parse(text: str) -> list[Target]:
    """The targets in `metric=limit,...`."""
    found = []
    for part in text.split(","):
        metric, equals, value = part.strip().partition("=")
        if metric not in METRICS or not equals:
            raise TargetError(f"--slo {part.strip()!r}: must be METRIC=SECONDS or METRIC=+N%, METRIC one of {METRICS}")
        relative = _RELATIVE.fullmatch(value)
        try:
            limit = float(relative[1]) / 100 if relative else float(value)
        except ValueError:
            limit = -1.0
        if not 0 < limit < float("inf"):
            raise TargetError(f"--slo {metric}={value}: must be seconds above 0, or +N%")
        found.append(Target(metric, limit, bool(relative)))
    return found


def online_metrics(record: RunRecord) -> dict[str, float]:
    """TTFT and gaps between tokens of the online requests; who got no token waited until the end."""
    online = [r for r in record.requests if r.request.lane == "online"]
    ttfts = [(r.token_s[0] if r.token_s else record.end_s) - r.request.arrival_s for r in online]
    gaps = [later - earlier for r in online for earlier, later in pairwise(r.token_s)] or [0.0]
    return _summary("ttft", ttfts) | _summary("tbt", gaps)


def offline_tokens_per_s(record: RunRecord) -> float:
    """Prompt and output tokens of offline requests that were answered, per second of the run."""
    offline = [r for r in record.requests if r.request.lane == "offline"]
    return sum(r.request.prompt_tokens * bool(r.token_s) + len(r.token_s) for r in offline) / record.end_s


def _summary(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_mean": float(np.mean(values)),
        f"{name}_p50": float(np.percentile(values, 50)),
        f"{name}_p99": float(np.percentile(values, 99)),
    }
