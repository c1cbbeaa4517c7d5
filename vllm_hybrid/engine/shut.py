"""Whether the last plan's admissions are still shut: of those that wait, nobody would find memory now either."""

from __future__ import annotations

from collections.abc import Callable

from vllm_hybrid.policy.plan import StepPlan
from vllm_hybrid.policy.request import RequestView


class Shut:
    """What the last plan said about memory, and how much of it was free then."""

    __slots__ = ("_by", "_free_blocks", "_reserve_blocks", "_steps")

    def __init__(self) -> None:
        self._by: RequestView | None = None
        self._free_blocks = 0
        self._reserve_blocks: int | None = None
        self._steps = 0

    def planned(self, plan: StepPlan, free_blocks: int) -> None:
        """A plan was carried out and left so many blocks free."""
        self._by = plan.shut_by
        self._free_blocks = free_blocks
        self._reserve_blocks = plan.reserve_blocks
        self._steps = plan.shut_steps

    def arrival(self) -> None:
        """Somebody came of whom the plan did not know."""
        self._steps = 0

    def holds(self, free_blocks: int, usable_blocks: int, steps: int, head: Callable[[], RequestView | None]) -> bool:
        """usable_blocks: of the free ones, what vLLM lets admissions take; steps: since the plan; head: who is next."""
        if self._reserve_blocks is not None and usable_blocks <= self._reserve_blocks:
            return True
        if steps <= self._steps:
            return True
        if self._by is None or free_blocks > self._free_blocks:
            return False
        if self._by.started:  # those that ran before come first, and no other can have joined them
            return True
        return head() is self._by
