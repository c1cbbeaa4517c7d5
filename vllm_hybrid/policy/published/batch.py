"""The batch of Sarathi-Serve (OSDI'24, arXiv 2403.02310), for every policy that only decides who is admitted next.

A step holds at most a fixed number of tokens. Running decodes always run, and run first; then prefills that were
started, in the order of their admission; what is left admits waiting requests in the order the policy gives, the last
one perhaps with a part of its prompt. The head of that order stops all admissions while it does not fit: no looking
ahead to a smaller one.

Different from the paper: a step whose decodes exceed the budget grows to hold them (the paper's batch limit rules
that out), and a request that lost its memory comes back before anybody new, as in vLLM.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from typing import Protocol

from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import RequestView


class Order(Protocol):
    """The waiting requests of a step in the order of their admission, each yielded before it is admitted."""

    def __call__(self, view: StepView) -> Generator[RequestView, None, None]: ...


class BatchPlanner:
    """Plans steps of a fixed number of tokens.

    token_budget: None for vLLM's own. decodes_first: else requests run in the order of their admission, as in vLLM.
    """

    always = True

    def __init__(self, order: Order, token_budget: int | None = None, decodes_first: bool = True) -> None:
        self._order = order
        self._decodes_first = decodes_first
        self.step_tokens = math.inf if token_budget is None else token_budget

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        running = list(view.running)
        if self._decodes_first:
            running.sort(key=lambda v: v.prefilling)
        budget = view.max_tokens
        if self.step_tokens < budget:
            decode_tokens = sum(not v.prefilling for v in running) * view.decode_tokens
            budget = min(budget, max(int(self.step_tokens), decode_tokens))
        plan = StepPlan(budget, running)
        if len(view.waiting):
            plan.candidates = self._admission(view, plan)
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """While everybody decodes and nobody can come in there is nothing to decide."""
        return True

    def _admission(self, view: StepView, plan: StepPlan) -> Iterator[RequestView]:
        # Closed at once when the step ends, also by an exception: an open order may keep clients out of the next one.
        with contextlib.closing(self._order(view)) as order:
            for request in order:
                if not view.ready(request):
                    continue  # could not run anyway: it stops nobody
                if not view.admissible_tokens(request, 0):
                    plan.shut_by = request
                    return
                yield request
