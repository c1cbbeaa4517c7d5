"""Orca (OSDI'22), as Sarathi-Serve compares with it: whole prompts join the running decodes at any iteration.

A request reserves memory for the longest sequence there may be, so that few run at a time; nobody is ever preempted.
An emulation for comparisons: a step must be able to hold whole prompts.
"""

from __future__ import annotations

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.published.whole_prompts import whole_prompts


class OrcaPlanner:
    """Plans iterations of decodes and whole prompts."""

    always = True

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        self._options = config.presets.orca

    def plan(self, view: StepView) -> StepPlan:
        """Decide one iteration."""
        tokens = view.max_tokens - sum(v.missing_tokens if v.prefilling else view.decode_tokens for v in view.running)
        fit = self._batch_requests(view) - len(view.running)
        return StepPlan(
            token_budget=view.max_tokens,
            order=list(view.running),
            candidates=whole_prompts(view, tokens, fit, something_runs=bool(view.running)) if fit > 0 else (),
        )

    def _batch_requests(self, view: StepView) -> int:
        """How many requests the pool holds at full length, up to the largest batch."""
        reserved_blocks = -(-self._options.reserve_tokens // view.block_tokens)
        return max(1, min(self._options.batch_requests, view.total_blocks // reserved_blocks))

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """While the same requests decode, the plan is the same."""
        return True
