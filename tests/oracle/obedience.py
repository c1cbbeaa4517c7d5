"""Holds what vLLM scheduled against the plan it was given: the mistakes that cost pace, not correctness.

An oracle of tokens cannot see a pause that was ignored, a cap that cut a decode, or a budget that was left over: the
outputs are right all the same. `Witness` stands between scheduler and planner, remembers each plan and what every
running request could have used, and recomputes which tokens vLLM's running loop owed to whom. It is independent of the
scheduler's own `check_obedience`, and stricter: it also finds tokens that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.sim.modelfree import EngineLoop


class Disobedience(AssertionError):
    """A step differs from its plan, or left something behind that it should have given back."""


@dataclass(slots=True)
class _Owed:
    """What a running request could use in a step."""

    tokens: int
    prefilling: bool
    may_be_done: bool  # async: the step in flight may bring its last token

    @classmethod
    def of(cls, request: Request) -> _Owed:
        under_way = request.num_output_placeholders
        return cls(
            tokens=request.num_tokens_with_spec + under_way - request.num_computed_tokens,
            prefilling=request.num_tokens - request.num_computed_tokens > 1,
            may_be_done=under_way > 0
            and request.num_computed_tokens + 2 - under_way >= request.num_prompt_tokens + request.max_tokens,
        )


class Witness:
    """A planner that passes on another's plans and checks what became of them."""

    def __init__(self, loop: EngineLoop) -> None:
        scheduler = loop.scheduler
        self._scheduler = scheduler
        self._planner = scheduler.planner
        scheduler.planner = self
        loop.on_schedule = self.check
        self._full_budget = scheduler.max_num_scheduled_tokens
        self._policy = scheduler.policy
        self._plan: StepPlan | None = None
        self._owed: dict[str, _Owed] = {}
        self._kept: dict[str, int] = {}  # requests that were parked: the tokens whose blocks they keep
        self.checked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)

    def plan(self, view: StepView) -> StepPlan:
        self._plan = self._planner.plan(view)
        self._owed = {v.request_id: _Owed.of(v.handle) for v in view.running}
        self._kept |= {v.request_id: v.handle.num_computed_tokens for v in self._plan.park}
        return self._plan

    def check(self, step: SchedulerOutput) -> None:
        """Raise Disobedience if `step` is not what the plan says. To be called right after `schedule()`."""
        plan, self._plan = self._plan, None
        self._check_given_back()
        if plan is None:
            return
        self.checked += 1
        self._check_nobody_else(plan, step)
        left = self._check_running(plan, step)
        self._check_admitted(plan, step, left)

    def _check_given_back(self) -> None:
        scheduler = self._scheduler
        if scheduler.max_num_scheduled_tokens != self._full_budget:
            raise Disobedience("the token budget was not given back")
        if scheduler.policy != self._policy or "_reserve_prefill_lookahead" in vars(scheduler):
            raise Disobedience("vLLM's policy or hook was not given back")
        if list(scheduler.waiting) and not scheduler.waiting:
            raise Disobedience("the waiting queue still hides requests")
        if len(scheduler.kv_holding_waiting) and not scheduler.kv_holding_waiting:
            raise Disobedience("the parking queue still hides requests")

    def _check_nobody_else(self, plan: StepPlan, step: SchedulerOutput) -> None:
        for group in (plan.paused, plan.preempt, plan.park):
            for view in group:
                if view.request_id in step.num_scheduled_tokens:
                    raise Disobedience(f"{view.request_id} got tokens though paused, preempted or parked")
        for view in (*plan.preempt, *plan.park):
            if view.handle in self._scheduler.running and view.handle.num_in_flight_tokens == 0:
                raise Disobedience(f"{view.request_id} still runs")
        if step.total_num_scheduled_tokens > plan.token_budget:
            raise Disobedience(f"{step.total_num_scheduled_tokens} tokens, budget {plan.token_budget}")

    def _check_running(self, plan: StepPlan, step: SchedulerOutput) -> int:
        """Every running request got exactly what its turn in the order left for it; returns the tokens left."""
        planned_out = {v.request_id for v in (*plan.preempt, *plan.park, *plan.drop)}
        short_of_blocks = bool((step.preempted_req_ids or set()) - planned_out)
        left = plan.token_budget
        paused = set(plan.paused)
        for view in plan.order:
            if view in paused:
                continue
            owed = self._owed[view.request_id]
            due = min(owed.tokens, left)
            if owed.prefilling:
                due = min(due, plan.caps.get(view.request_id, due))
            tokens = step.num_scheduled_tokens.get(view.request_id, 0)
            if tokens != due and not (tokens == 0 and (short_of_blocks or owed.may_be_done)):
                raise Disobedience(f"{view.request_id} got {tokens} tokens, {due} were due")
            left -= tokens
        return left

    def _check_admitted(self, plan: StepPlan, step: SchedulerOutput, left: int) -> None:
        """Who came in was asked for, in the order asked for, within caps and budget."""
        ran = {v.request_id for v in plan.order}
        admitted = [request_id for request_id in step.num_scheduled_tokens if request_id not in ran]
        unparked = {v.request_id for v in plan.unpark}
        offered = iter(getattr(self._planner, "offered", self._scheduler.plan_queue.offered))
        computed = _computed_tokens(step)
        for request_id in admitted:
            tokens = step.num_scheduled_tokens[request_id]
            own = tokens - len(step.scheduled_spec_decode_tokens.get(request_id, ()))
            if own > plan.caps.get(request_id, own):
                raise Disobedience(f"{request_id} was admitted with {own} tokens, cap {plan.caps[request_id]}")
            if request_id in unparked and computed[request_id] != self._kept[request_id]:
                raise Disobedience(f"{request_id} kept {self._kept[request_id]} tokens, got {computed[request_id]}")
            if request_id not in unparked and request_id not in offered:  # `in` moves the iterator on: order counts
                raise Disobedience(f"{request_id} was admitted out of turn")
            left -= tokens
        if left < 0:
            raise Disobedience(f"{-left} tokens above the budget")


def _computed_tokens(step: SchedulerOutput) -> dict[str, int]:
    """Where each request of a step goes on."""
    cached = step.scheduled_cached_reqs
    new = {data.req_id: data.num_computed_tokens for data in step.scheduled_new_reqs}
    return new | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
