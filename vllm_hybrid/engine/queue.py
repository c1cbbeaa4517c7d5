"""The two request queues that vLLM's scheduler reads, made to follow a plan.

Outside a step both are ordinary containers that order like vLLM's own. Inside a planned step `PlanQueue` offers the
plan's candidates one by one and `ParkingQueue` hides the parked requests that stay parked. vLLM pops what it peeked
before, though a preemption may have prepended something in between, so a peeked request stays the head until it is
popped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from vllm.v1.core.sched.request_queue import FCFSRequestQueue, PriorityRequestQueue, RequestQueue, SchedulingPolicy
from vllm.v1.request import Request

from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.policy.request import RequestView
from vllm_hybrid.policy.waiting import WaitingRequests
from vllm_hybrid.policy.waits import WaitBooks


class PlanQueue(RequestQueue):
    """vLLM's `waiting` queue on top of `WaitingRequests`."""

    def __init__(
        self,
        waiting: WaitingRequests,
        view_of: Callable[[Request], RequestView],
        waits: WaitBooks,
        clients: ClientTally,
        clock: Callable[[], float],
    ) -> None:
        self._waiting = waiting
        self._view_of = view_of
        self._waits = waits
        self._clients = clients
        self._clock = clock
        self._candidates: Iterator[RequestView] | None = None
        self._excluded: set[RequestView] = set()
        self._pinned: RequestView | None = None
        self.offered: dict[str, RequestView] = {}
        self.error: Exception | None = None  # raised by the policy while candidates were asked for

    # -- a container
    def _refreshed(self, request: Request) -> RequestView:
        view = self._view_of(request)
        view.computed_tokens = request.num_computed_tokens
        view.missing_tokens = request.num_tokens - request.num_computed_tokens
        return view

    def _enter(self, request: Request, put: Callable[[RequestView], None]) -> RequestView:
        view, now_s = self._refreshed(request), self._clock()
        key = view.key
        first = self._waiting.first_of(key)
        put(view)
        self._clients.cell(key).joined(view)
        self._waits.entered(view, now_s)
        if self._waiting.first_of(key) is view:
            if first is not None:
                self._waits.lost_first(first, now_s)
            self._waits.became_first(view, now_s)
        return view

    def _leave(self, view: RequestView) -> None:
        key = view.key
        was_first = self._waiting.first_of(key) is view
        if not self._waiting.discard(view):
            return
        now_s = self._clock()
        self._clients.cell(key).parted(view)
        self._waits.left(view, now_s)
        if was_first and (first := self._waiting.first_of(key)) is not None:
            self._waits.became_first(first, now_s)

    def add_request(self, request: Request) -> None:
        self._enter(request, self._waiting.add)

    def prepend_request(self, request: Request) -> None:
        view = self._enter(request, self._waiting.prepend)
        if self._candidates is not None:
            self._excluded.add(view)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._enter(request, self._waiting.prepend)

    def remove_request(self, request: Request) -> None:
        self._leave(self._view_of(request))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.remove_request(request)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return (view.handle for view in self._waiting)

    def __getitem__(self, index: int) -> Request:
        try:
            return next(itertools.islice(iter(self), index, None))
        except StopIteration:
            raise IndexError(f"request {index} of {len(self)}") from None

    # -- a step
    def begin_step(self, candidates: Iterable[RequestView], excluded: Iterable[RequestView] = ()) -> None:
        """From now on offer `candidates` only, and none of `excluded` (this step's victims)."""
        self._candidates = iter(candidates)
        self._excluded = set(excluded)
        self._pinned = None
        self.offered.clear()
        self.error = None

    def end_step(self) -> None:
        """Back to an ordinary container."""
        close = getattr(self._candidates, "close", None)
        if close is not None:
            close()
        self._candidates = self._pinned = None
        self._excluded.clear()

    def _head(self) -> RequestView | None:
        if self._candidates is None:
            return self._waiting.head()
        if self._pinned is None:
            self._pinned = self._next_candidate()
        return self._pinned

    def _next_candidate(self) -> RequestView | None:
        assert self._candidates is not None
        try:
            for view in self._candidates:
                if view not in self._excluded and view in self._waiting:
                    self.offered[view.request_id] = view
                    return view
        except Exception as error:  # inside vLLM's own loop: the step goes on without further admissions
            self.error = error
        self._candidates = iter(())
        return None

    def __bool__(self) -> bool:
        return len(self._waiting) > 0 if self._candidates is None else self._head() is not None

    def peek_request(self) -> Request:
        view = self._head()
        if view is None:
            raise IndexError("peek from an empty queue")
        return view.handle

    def pop_request(self) -> Request:
        view = self._head()
        if view is None:
            raise IndexError("pop from an empty queue")
        self._pinned = None
        self._leave(view)
        return view.handle


class _Parking:
    """Hides some requests from vLLM's waiting loop, and from nothing else."""

    hidden: frozenset[Request] = frozenset()

    def _visible(self) -> Request | None:
        return next((r for r in self if r not in self.hidden), None)  # type: ignore[attr-defined]

    def __bool__(self) -> bool:
        return self._visible() is not None if self.hidden else len(self) > 0  # type: ignore[arg-type]

    def peek_request(self) -> Request:
        if not self.hidden:
            return super().peek_request()  # type: ignore[misc]
        request = self._visible()
        if request is None:
            raise IndexError("peek from an empty queue")
        return request

    def pop_request(self) -> Request:
        if not self.hidden:
            return super().pop_request()  # type: ignore[misc]
        request = self.peek_request()
        self.remove_request(request)  # type: ignore[attr-defined]
        return request


class _ArrivalParking(_Parking, FCFSRequestQueue):
    pass


class _PriorityParking(_Parking, PriorityRequestQueue):
    pass


ParkingQueue = _ArrivalParking | _PriorityParking
"""vLLM's `kv_holding_waiting` queue: requests that wait while holding blocks."""


def make_parking_queue(policy: SchedulingPolicy) -> ParkingQueue:
    """The queue for requests that hold blocks, ordered as vLLM orders it under `policy`."""
    return _PriorityParking() if policy == SchedulingPolicy.PRIORITY else _ArrivalParking()
