"""What serving a waiting request is still worth, and the order that follows from it inside one client's line.

A request whose first token can still come in time is worth something, and all of these are worth the same: so those
that take the least memory go first (Apt-Serve's density, arXiv 2504.07494, with what a request is worth in the place of
how long it has waited). One that is late whatever is done is relegated: it stands behind all that are not, in order of
arrival, and is served from spare capacity, but at least as every `LATE_SHARE`-th admission. A request that was started
is worth what it was, however long it runs: nothing here takes its memory away.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_hybrid.policy.request import RequestView

LATE_SHARE = 16  # of the admissions while requests that are late wait, one is the longest waiting of them


@dataclass(slots=True)
class Urgency:
    """What decides whether a waiting request is late; kept up to date by the planner.

    token_s: seconds that a prompt token takes at the least.
    """

    ttft_s: float = math.inf
    now_s: float = -math.inf
    token_s: float = 0.0

    def latest_start_s(self, view: RequestView) -> float:
        """From then on the request's first token is late."""
        return view.arrival_s + self.ttft_s - self.token_s * view.missing_tokens


_Entry = tuple[float, int, RequestView]


class ValueLine:
    """One client's requests: those that can be in time, the smallest first; then those that are late, by arrival."""

    __slots__ = ("_expiry", "_fresh", "_heap", "_late", "_tick", "_urgency")

    def __init__(self, urgency: Urgency) -> None:
        self._urgency = urgency
        self._fresh: dict[str, RequestView] = {}
        self._late: OrderedDict[str, RequestView] = OrderedDict()
        self._heap: list[_Entry] = []  # of the fresh ones, by size; deletion is lazy
        self._expiry: list[_Entry] = []  # the same, by the moment at which they are late
        self._tick = itertools.count()

    def add(self, view: RequestView) -> None:
        if view.late:
            self._late[view.request_id] = view
            return
        self._fresh[view.request_id] = view
        tick = next(self._tick)
        size = view.missing_tokens if self._urgency.ttft_s < math.inf else 0
        heapq.heappush(self._heap, (size, tick, view))
        due_s = self._urgency.latest_start_s(view)
        if due_s < math.inf:
            heapq.heappush(self._expiry, (due_s, tick, view))

    def prepend(self, view: RequestView) -> None:
        self.add(view)
        if view.late:
            self._late.move_to_end(view.request_id, last=False)
        elif self._urgency.ttft_s == math.inf:
            heapq.heappush(self._heap, (-1, -next(self._tick), view))

    def discard(self, view: RequestView) -> bool:
        if self._late.pop(view.request_id, None) is not None:
            return True
        if self._fresh.pop(view.request_id, None) is None:
            return False
        if len(self._heap) > 2 * len(self._fresh) + 64:
            self._heap = [entry for entry in self._heap if self._is_fresh(entry[2])]
            self._expiry = [entry for entry in self._expiry if self._is_fresh(entry[2])]
            heapq.heapify(self._heap)
            heapq.heapify(self._expiry)
        return True

    def _is_fresh(self, view: RequestView) -> bool:
        return self._fresh.get(view.request_id) is view

    def _relegate(self) -> None:
        expiry, now_s = self._expiry, self._urgency.now_s
        while expiry and expiry[0][0] <= now_s:
            view = heapq.heappop(expiry)[2]
            if self._is_fresh(view):
                del self._fresh[view.request_id]
                view.late, view.late_s = True, now_s
                self._late[view.request_id] = view

    def head(self) -> RequestView:
        return self.first(1)[0]

    def first(self, count: int) -> list[RequestView]:
        self._relegate()
        taken: dict[str, _Entry] = {}
        while self._heap and len(taken) < count:
            entry = heapq.heappop(self._heap)
            if self._is_fresh(entry[2]) and entry[2].request_id not in taken:
                taken[entry[2].request_id] = entry
        for entry in taken.values():
            heapq.heappush(self._heap, entry)
        views = [entry[2] for entry in taken.values()]
        return views + list(itertools.islice(self._late.values(), count - len(views)))

    def first_late(self) -> RequestView | None:
        """The one that is late and has waited longest."""
        self._relegate()
        return next(iter(self._late.values()), None)

    def late_behind(self) -> int:
        """Those that are late and not the first."""
        self._relegate()
        return len(self._late) if self._fresh else max(0, len(self._late) - 1)

    def __contains__(self, view: RequestView) -> bool:
        return view.request_id in self._fresh or view.request_id in self._late

    def __len__(self) -> int:
        return len(self._fresh) + len(self._late)

    def __iter__(self) -> Iterator[RequestView]:
        return iter(self.first(len(self)))
