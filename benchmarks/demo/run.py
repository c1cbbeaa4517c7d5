"""One scheduler's run: the warm-up, the two phases, and what the server counted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.demo import client, metrics, server, text
from benchmarks.demo.client import Outcome, Replay
from benchmarks.demo.load import FLOOD, QUIET, Item, Load, Phases
from benchmarks.demo.metrics import Contention, TenantFigures

_ANSWER_TOKENS = 64
_COUNTERS_SETTLE_S = 2
_PLANNED_MODES = ("plan", "reuse")


@dataclass(frozen=True, slots=True)
class PolicySteps:
    """How the hybrid scheduler's steps went; `errors` is None on a server that has no such metric."""

    errors: float | None
    contended: float
    planned: float

    @property
    def planned_share(self) -> float:
        return self.planned / self.contended if self.contended else 0.0


@dataclass(slots=True)
class Run:
    """What one scheduler made of the load."""

    scheduler: str
    flags: Sequence[str]
    capacity: float
    flood: Replay
    burst: Replay
    policy: PolicySteps
    answers: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        return self.flood.outcomes + self.burst.outcomes

    @property
    def seconds(self) -> float:
        return self.flood.makespan_s + self.burst.makespan_s

    @property
    def tokens_per_s(self) -> float:
        """All prompt and output tokens of both phases, over the time both took until their last token."""
        return sum(o.prompt_tokens + o.output_tokens for o in self.outcomes) / self.seconds

    @property
    def contention(self) -> Contention:
        return metrics.contention(self.burst.outcomes, (QUIET, FLOOD))

    def flood_figures(self, tenant: str) -> TenantFigures:
        return metrics.tenant_figures(self.flood.outcomes, tenant)

    def burst_figures(self, tenant: str) -> TenantFigures:
        return metrics.tenant_figures(self.burst.outcomes, tenant)


def run(
    running: server.Server,
    flags: Sequence[str],
    load: Load,
    warmup: Sequence[Item],
    phases: Callable[[float], Phases],
) -> Run:
    """Warm the server up, replay both phases, and read its counters; `phases` gets the measured capacity."""
    name = running.name
    capacity = metrics.capacity(client.replay(running.base_url, warmup, f"{name}: warm-up", load.calibration_limit_s))
    wanted = phases(capacity)
    before = _policy_steps(running)
    flood = client.replay(running.base_url, wanted.flood, f"{name}: phase 1")
    burst = client.replay(running.base_url, wanted.burst, f"{name}: phase 2")
    # The counters are collected about once a second: asked last, they hold the whole load.
    answers = client.ask(running.base_url, text.SHOWN_QUESTIONS, _ANSWER_TOKENS)
    time.sleep(_COUNTERS_SETTLE_S)
    after = _policy_steps(running)
    policy = PolicySteps(after.errors, after.contended - before.contended, after.planned - before.planned)
    return Run(name, flags, capacity, flood, burst, policy, answers)


def _policy_steps(running: server.Server) -> PolicySteps:
    samples = running.metrics()
    steps = "vllm_hybrid_steps_total"
    planned = (server.total(samples, steps, contended="true", mode=mode) or 0 for mode in _PLANNED_MODES)
    return PolicySteps(
        errors=server.total(samples, "vllm_hybrid_policy_errors_total"),
        contended=server.total(samples, steps, contended="true") or 0,
        planned=sum(planned),
    )
