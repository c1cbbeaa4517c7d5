"""Watches a run for stalls (empty steps while somebody could run) and thrashing (preempted again and again).

Every request of these loads fits into the pool alone, so while one is unfinished there is work: two empty steps in a
row mean that a plan held back everybody. One may be empty: in async mode all last tokens can be under way.
"""

from __future__ import annotations

from collections import defaultdict

from vllm.v1.core.sched.output import SchedulerOutput

from tests.oracle.workload import StallError
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.sim.modelfree import EngineLoop


class ProgressWatch:
    """To be attached to a loop before its first step."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._before = loop.on_schedule
        loop.on_schedule = self.check
        self._empty_in_a_row = 0
        self._preemptions: dict[str, int] = defaultdict(int)
        self.preempted_s: dict[str, list[float]] = defaultdict(list)  # request id -> when it lost its memory
        self.planned_rests_s: list[float] = []  # how long each victim of a plan had been left alone before
        self.empty_steps = 0
        planner = loop.scheduler.planner
        self._plan, planner.plan = planner.plan, self.plan

    def plan(self, view: StepView) -> StepPlan:
        """The planner's plan; whom it takes memory from is noted."""
        plan = self._plan(view)
        for victim in (*plan.preempt, *plan.drop):
            before_s = self.preempted_s[victim.request_id]
            if before_s:
                self.planned_rests_s.append(view.now_s - before_s[-1])
        return plan

    def check(self, step: SchedulerOutput) -> None:
        self._before(step)
        scheduler = self._loop.scheduler
        for request in scheduler.requests.values():
            lost = request.num_preemptions - self._preemptions[request.request_id]
            self.preempted_s[request.request_id] += [self._loop.now_s] * lost
            self._preemptions[request.request_id] += lost
        if step.total_num_scheduled_tokens or not scheduler.has_unfinished_requests():
            self._empty_in_a_row = 0
            return
        self.empty_steps += 1
        self._empty_in_a_row += 1
        if self._empty_in_a_row > 1:
            running, waiting = scheduler.get_request_counts()
            raise StallError(
                f"step {self._loop.steps}: nobody runs twice in a row; {running} running, {waiting} waiting"
            )

    def shortest_rest_s(self, request_ids: set[str]) -> float:
        """The shortest time between two preemptions of one request."""
        gaps = [b - a for r in request_ids for a, b in zip(self.preempted_s[r], self.preempted_s[r][1:])]
        return min(gaps, default=float("inf"))
