"""Shadow mode: the policy decides every step, stock vLLM's decision is carried out, and the difference is counted.

For trying the policy on real traffic before it has a say. The waiting requests stand twice: in vLLM's own queue, which
is the one that vLLM reads, and in ours, which the policy reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from vllm_hybrid.engine.queue import PlanQueue
from vllm_hybrid.policy.plan import StepPlan
from vllm_hybrid.policy.request import RequestView

DIFFERENCES = ("none", "admission", "pause", "preemption", "budget")


class ShadowQueue(PlanQueue):
    """vLLM's own queue to vLLM, `WaitingRequests` to the policy."""

    def __init__(self, policy: SchedulingPolicy, *args: Any) -> None:
        super().__init__(*args)
        self._stock = create_request_queue(policy)

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self._stock.add_request(request)

    def prepend_request(self, request: Request) -> None:
        super().prepend_request(request)
        self._stock.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        super().prepend_requests(requests)
        self._stock.prepend_requests(requests)

    def remove_request(self, request: Request) -> None:
        super().remove_request(request)
        self._stock.remove_request(request)

    def peek_request(self) -> Request:
        return self._stock.peek_request()

    def pop_request(self) -> Request:
        request = self._stock.pop_request()
        super().remove_request(request)
        return request

    def __bool__(self) -> bool:
        return bool(self._stock)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._stock)


def differences(
    plan: StepPlan, first: RequestView | None, output: SchedulerOutput, admitted: Iterable[str]
) -> list[str]:
    """In what the step that stock took differs from the plan. first: whom the policy would have admitted first."""
    scheduled = output.num_scheduled_tokens
    taken = next(iter(admitted), None)
    found = {
        "admission": (None if first is None else first.request_id) != taken,
        "pause": any(view.request_id in scheduled for view in (*plan.paused, *plan.park)),
        "preemption": any(view.request_id in scheduled for view in plan.preempt),
        "budget": output.total_num_scheduled_tokens > plan.token_budget,
    }
    return [name for name, differs in found.items() if differs] or ["none"]
