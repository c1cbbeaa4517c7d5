"""vLLM as it was before chunked prefill (and as Sarathi-Serve compares with it): waiting prompts go before decodes.

Where prompts wait and fit, an iteration computes them whole and nothing else; only otherwise do the running requests
decode. An emulation for comparisons: a step must be able to hold whole prompts.
"""

from __future__ import annotations

import contextlib

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.published.orders import by_arrival
from vllm_hybrid.policy.published.whole_prompts import whole_prompts
from vllm_hybrid.policy.request import RequestView


class PrefillFirstPlanner:
    """Plans iterations that prefill or decode."""

    always = True

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        pass

    def plan(self, view: StepView) -> StepPlan:
        """Decide one iteration."""
        decodes = [v for v in view.running if not v.prefilling]
        started = [v for v in view.running if v.prefilling]  # prompts longer than a step
        head = self._head(view)
        if not started and (head is None or not view.admissible_tokens(head, 0)):
            return StepPlan(token_budget=view.max_tokens, order=decodes, shut_by=head)
        tokens = view.max_tokens - sum(v.missing_tokens for v in started)
        return StepPlan(
            token_budget=view.max_tokens,
            order=started + decodes,
            paused=decodes,
            candidates=whole_prompts(view, tokens, view.free_slots, something_runs=bool(started)),
        )

    @staticmethod
    def _head(view: StepView) -> RequestView | None:
        """Who would come in next, if there is a slot."""
        if view.free_slots < 1:
            return None
        with contextlib.closing(by_arrival(view)) as line:
            return next(filter(view.ready, line), None)

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """While the same requests decode and nobody can come in, the plan is the same."""
        return True
