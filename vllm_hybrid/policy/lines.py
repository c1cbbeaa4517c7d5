"""One client's waiting requests: in order of arrival, or by vLLM's `priority`."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator

from vllm_hybrid.policy.request import RequestView


class ArrivalLine:
    """One client's requests in order of arrival."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, RequestView] = OrderedDict()

    def add(self, view: RequestView) -> None:
        self._by_id[view.request_id] = view

    def prepend(self, view: RequestView) -> None:
        self._by_id[view.request_id] = view
        self._by_id.move_to_end(view.request_id, last=False)

    def discard(self, view: RequestView) -> bool:
        return self._by_id.pop(view.request_id, None) is not None

    def head(self) -> RequestView:
        return next(iter(self._by_id.values()))

    def first(self, count: int) -> list[RequestView]:
        return list(itertools.islice(self._by_id.values(), count))

    def __contains__(self, view: RequestView) -> bool:
        return view.request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[RequestView]:
        return iter(list(self._by_id.values()))


_Entry = tuple[int, float, str, int, RequestView]


class PriorityLine:
    """One client's requests by (priority, arrival, id), smallest first, as vLLM orders them; deletion is lazy."""

    __slots__ = ("_by_id", "_heap", "_tick")

    def __init__(self) -> None:
        self._by_id: dict[str, RequestView] = {}
        self._heap: list[_Entry] = []
        self._tick = itertools.count()

    def add(self, view: RequestView) -> None:
        self._by_id[view.request_id] = view
        heapq.heappush(self._heap, self._entry(view))

    prepend = add  # a priority queue has no front to prepend to

    def _entry(self, view: RequestView) -> _Entry:
        return view.priority, view.order_s, view.request_id, next(self._tick), view

    def discard(self, view: RequestView) -> bool:
        if self._by_id.pop(view.request_id, None) is None:
            return False
        if len(self._heap) > 2 * len(self._by_id) + 64:
            self._heap = [self._entry(v) for v in self._by_id.values()]
            heapq.heapify(self._heap)
        return True

    def _clean(self) -> None:
        while self._heap and self._by_id.get(self._heap[0][2]) is not self._heap[0][4]:
            heapq.heappop(self._heap)

    def head(self) -> RequestView:
        self._clean()
        return self._heap[0][4]

    def first(self, count: int) -> list[RequestView]:
        taken: dict[str, _Entry] = {}
        while self._heap and len(taken) < count:
            entry = heapq.heappop(self._heap)
            if self._by_id.get(entry[2]) is entry[4]:
                taken[entry[2]] = entry  # a request that left and came back may have two entries
        for entry in taken.values():
            heapq.heappush(self._heap, entry)
        return [entry[4] for entry in taken.values()]

    def __contains__(self, view: RequestView) -> bool:
        return view.request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[RequestView]:
        return iter([entry[4] for entry in sorted(self._entry(v) for v in self._by_id.values())])
