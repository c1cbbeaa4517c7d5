"""The waiting requests: per lane and client one line, and a walk over them in fair order.

Inside a client requests stand in order of arrival (or by vLLM's `priority`); between the clients of a lane the one
with the smallest virtual counter is next (VTC), and where clients form groups, first between groups, then inside.
Adding costs O(log clients), removing any request O(1) (amortised O(log n) with priorities), a walk O(log clients) per
request it yields: nothing scans the queue.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping

from vllm_hybrid.policy.fairness import Parent, VirtualCounters
from vllm_hybrid.policy.lines import ArrivalLine, PriorityLine
from vllm_hybrid.policy.prefix_order import PrefixLine
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.policy.value import Urgency, ValueLine

_CHUNK = 16  # requests of one client looked at together


Line = ArrivalLine | PriorityLine | ValueLine | PrefixLine


class WaitingRequests:
    """All waiting requests of both lanes.

    counters: decides between clients. by_priority: vLLM's `--scheduling-policy priority` orders inside a client.
    by_prefix: else a client's offline requests stand with those that begin alike.
    slots_left: how many more requests of a client may run; None: any number.
    urgency: orders online requests by value inside a client (`value.py`); late ones count, when clients are compared,
    as if their client had been served `allowed_gap` more.
    """

    def __init__(
        self,
        counters: VirtualCounters,
        by_priority: bool = False,
        urgency: Urgency | None = None,
        by_prefix: bool = False,
    ) -> None:
        self.counters = counters
        self._by_priority = by_priority
        self._by_prefix = by_prefix
        self.urgency = urgency
        self.allowed_gap = 0.0
        self.since_late = 0  # online admissions since a late one
        self._lines: dict[ClientKey, Line] = {}
        self._length = dict.fromkeys(Lane, 0)
        self._clients_waiting = dict.fromkeys(Lane, 0)
        # Requests that already ran and lost their memory: they come back before anything new of their lane.
        self._resuming: dict[Lane, OrderedDict[str, RequestView]] = {lane: OrderedDict() for lane in Lane}
        # One entry per client with a waiting request, and per group with such a client, where it is compared (in its
        # lane, or in its group), keyed by a counter that may have grown since (never shrunk).
        self._heap: dict[Parent, list[tuple[float, int, ClientKey]]] = {lane: [] for lane in Lane}
        self._in_heap: set[ClientKey] = set()
        self._members: Counter[ClientKey] = Counter()  # clients with a waiting request, by group
        self._tick = itertools.count()
        self.slots_left: Callable[[ClientKey], float] | None = None

    # -- a container ---------------------------------------------------------------------------------------------
    def add(self, view: RequestView) -> None:
        """Append a request to its client's line."""
        self._line(view).add(view)
        self._entered(view)

    def prepend(self, view: RequestView) -> None:
        """Put a request that was taken out before at the front of its client's line."""
        self._line(view).prepend(view)
        self._entered(view)

    def discard(self, view: RequestView) -> bool:
        """Take a request out, wherever it stands; False if it does not wait."""
        line = self._lines.get(view.key)
        if line is None or not line.discard(view):
            return False
        lane = view.key[0]
        self._length[lane] -= 1
        self._resuming[lane].pop(view.request_id, None)
        if not line:
            del self._lines[view.key]
            self._clients_waiting[lane] -= 1
            self.counters.left(view.key)
            self._member_left(view.key)
        return True

    def _member_left(self, key: ClientKey) -> None:
        group = self.counters.parent(key)
        if not isinstance(group, Lane):
            self._members[group] -= 1
            if not self._members[group]:
                del self._members[group]
                self.counters.left(group)

    def _new_line(self, lane: Lane) -> Line:
        if self._by_priority:
            return PriorityLine()
        if self.urgency is not None and lane is Lane.ONLINE:
            return ValueLine(self.urgency)
        if self._by_prefix and lane is Lane.OFFLINE:
            return PrefixLine()
        return ArrivalLine()

    def _line(self, view: RequestView) -> Line:
        line = self._lines.get(view.key)
        if line is None:
            line = self._lines[view.key] = self._new_line(view.key[0])
            self._clients_waiting[view.key[0]] += 1
            group = self.counters.parent(view.key)
            if not isinstance(group, Lane):
                self._members[group] += 1
        assert view not in line, f"{view.request_id} waits already"
        return line

    def _entered(self, view: RequestView) -> None:
        key = view.key
        self._length[key[0]] += 1
        if view.started:
            self._resuming[key[0]][view.request_id] = view
        self._queue_up(key)

    def _queue_up(self, key: ClientKey) -> None:
        """Enter a client with a waiting request where it is compared, and its group where that is."""
        node: Parent = key
        while not isinstance(node, Lane):
            parent = self.counters.parent(node)
            if node not in self._in_heap:
                self._in_heap.add(node)
                heap = self._heap.setdefault(parent, [])
                heapq.heappush(heap, (self.counters.value(node), next(self._tick), node))
                if len(heap) > 64 + 4 * len(self._lines):
                    self._compact(heap)
            node = parent

    def _compact(self, heap: list[tuple[float, int, ClientKey]]) -> None:
        """Drop the entries of those that do not wait any more: names come from outside."""
        self._in_heap.difference_update(key for _, _, key in heap if not self.waits(key))
        heap[:] = [entry for entry in heap if self.waits(entry[2])]
        heapq.heapify(heap)

    def regroup(self) -> None:
        """The settings gave clients other groups."""
        self._heap = {lane: [] for lane in Lane}
        self._in_heap.clear()
        self._members.clear()
        for key in self._lines:
            group = self.counters.parent(key)
            if not isinstance(group, Lane):
                self._members[group] += 1
        known = [key for key in self._lines if key in self.counters.values]
        for key in known:
            self._queue_up(key)
        for key in self._lines.keys() - set(known):  # newcomers in their groups
            self.lift(key)
            self._queue_up(key)

    def __contains__(self, view: RequestView) -> bool:
        line = self._lines.get(view.key)
        return line is not None and view in line

    def __len__(self) -> int:
        return self._length[Lane.ONLINE] + self._length[Lane.OFFLINE]

    def __iter__(self) -> Iterator[RequestView]:
        for key in self._keys_in_order():
            yield from self._lines[key]

    def _keys_in_order(self) -> Iterable[ClientKey]:
        return sorted(self._lines, key=lambda key: (key[0], self.counters.standing(key)))

    def head(self) -> RequestView | None:
        """The request that is next if no plan says otherwise; None if nothing waits."""
        if not self._lines:
            return None
        if len(self._lines) == 1:
            return next(iter(self._lines.values())).head()
        for lane in Lane:
            top = self._top(lane)
            while top is not None and top[2] in self._members:
                top = self._top(top[2])
            if top is not None:
                return self._lines[top[2]].head()
        raise AssertionError("a client waits, but its lane's heap is empty")

    # -- what fairness asks --------------------------------------------------------------------------------------
    def lane_length(self, lane: Lane) -> int:
        """Requests that wait in a lane."""
        return self._length[lane]

    def waits(self, key: ClientKey) -> bool:
        """Whether the client, or a client of the group, has a waiting request."""
        return key in self._lines or key in self._members

    def first_of(self, key: ClientKey) -> RequestView | None:
        """The first of the client's line."""
        line = self._lines.get(key)
        return None if line is None else line.head()

    def length_of(self, key: ClientKey) -> int:
        """Requests that wait in the client's line."""
        return len(self._lines.get(key, ()))

    def newcomers_of(self, key: ClientKey) -> int:
        """Those of them that have not run yet."""
        ran = sum(view.key == key for view in self._resuming[key[0]].values())
        return self.length_of(key) - ran

    def clients_waiting(self, lane: Lane) -> int:
        """How many clients of the lane have a waiting request."""
        return self._clients_waiting[lane]

    def clients(self, lane: Lane) -> list[ClientKey]:
        """The clients of a lane that have a waiting request, in the order in which they came. O(clients)."""
        return [key for key in self._lines if key[0] is lane]

    def lift(
        self,
        key: ClientKey,
        promised: Mapping[ClientKey, float] | None = None,
        lift: Callable[[ClientKey, float | None], None] | None = None,
    ) -> None:
        """Before a request of the client enters: idleness earns no credit, neither to the client nor to its group.

        promised: as for `smallest_counter`. lift: what raises a counter, if not the counters themselves.
        """
        lift = lift or self.counters.lift
        node: Parent = key
        while not isinstance(node, Lane) and (node not in self._in_heap or not self.waits(node)):
            parent = self.counters.parent(node)
            lift(node, self.smallest_counter(parent, promised))
            node = parent

    def smallest_counters(self) -> dict[Parent, float | None]:
        """The smallest counter among those that wait, of each lane and group."""
        return {parent: self.smallest_counter(parent) for parent in list(self._heap)}

    def smallest_counter(self, parent: Parent, promised: Mapping[ClientKey, float] | None = None) -> float | None:
        """Smallest counter among those that wait in a lane or group and may run; None if nobody does.

        promised: service to add to the counters of some clients. O(clients in it, and at their limit) beyond finding
        the smallest.
        """
        top = self._top(parent)
        if top is None or not (promised or self.slots_left):
            return None if top is None else top[0]
        counters, heap = self.counters, self._heap[parent]
        smallest = math.inf
        for key, more in (promised or {}).items():
            if self._may_run(key) and counters.parent(key) == parent:
                smallest = min(smallest, counters.value(key) + more)
        # The others: from the heap's root downwards, only as deep as somebody smaller may be found.
        front = [(heap[0][0], 0)]
        while front and front[0][0] < smallest:
            at = heapq.heappop(front)[1]
            key = heap[at][2]
            if self._may_run(key) and not (promised and key in promised):
                smallest = min(smallest, counters.value(key))
            for below in range(2 * at + 1, min(2 * at + 3, len(heap))):
                heapq.heappush(front, (heap[below][0], below))
        return None if smallest == math.inf else smallest

    def _may_run(self, key: ClientKey) -> bool:
        """Whether it waits and is not at its limit: then it has no claim that others could be measured by."""
        return self.waits(key) and (self.slots_left is None or key in self._members or self.slots_left(key) > 0)

    def resuming(self, lane: Lane) -> list[RequestView]:
        """Requests of the lane that ran before and lost their memory, the earliest victim first."""
        return sorted(self._resuming[lane].values(), key=lambda v: v.disturbed_s)

    def _top(self, parent: Parent) -> tuple[float, int, ClientKey] | None:
        heap = self._heap.get(parent, ())
        assert isinstance(heap, list) or not heap
        while heap:
            value, tick, key = heap[0]
            if key not in self._lines and key not in self._members:
                heapq.heappop(heap)
                self._in_heap.discard(key)
            elif self.counters.value(key) > value:
                heapq.heapreplace(heap, (self.counters.value(key), tick, key))
            else:
                return heap[0]
        return None

    def walk(
        self, lane: Lane, outstanding: Mapping[ClientKey, float], closed: Collection[ClientKey]
    ) -> Generator[RequestView, None, None]:
        """Requests of a lane that have not run yet, in fair order, each charged in thought when it is yielded.

        outstanding: service already promised to a client but not charged yet (prompts being computed). closed:
        clients to pass over; may grow during the walk. Requests may be taken out during the walk; at most one walk
        per lane at a time; close it when done.
        """
        return self._walk(lane, outstanding, closed)

    def _walk(
        self, parent: Parent, outstanding: Mapping[ClientKey, float], closed: Collection[ClientKey]
    ) -> Generator[RequestView, None, None]:
        heap = self._heap.get(parent, [])
        local: list[tuple[float, int, ClientKey, Generator[RequestView, None, None], RequestView | None]] = []
        touched: list[ClientKey] = []
        late: set[ClientKey] = set()
        try:
            while True:
                top = self._top(parent)
                if top is not None and (not local or top[:2] < local[0][:2]):
                    heapq.heappop(heap)
                    value, tick, key = top
                    touched.append(key)
                    value += outstanding.get(key, 0.0)
                    source = (
                        self._walk(key, outstanding, closed) if key in self._members else self.newcomers(key, closed)
                    )
                    heapq.heappush(local, (value, tick, key, source, None))
                    continue
                if not local:
                    return
                value, tick, key, source, held_back = local[0]
                view = next(source, None) if held_back is None or held_back.key in closed else held_back
                if view is None:
                    heapq.heappop(local)
                    continue
                if view.late and key not in late:  # all that follow it are late too
                    late.add(key)
                    heapq.heapreplace(local, (value + self.allowed_gap, tick, key, source, view))
                    continue
                value += self.counters.promise(view, view.missing_tokens) / self.counters.weight(key)
                heapq.heapreplace(local, (value, tick, key, source, None))
                yield view
        finally:
            for _, _, _, source, _ in local:
                source.close()
            for key in touched:
                self._in_heap.discard(key)
                if self.waits(key):
                    self._in_heap.add(key)
                    heapq.heappush(heap, (self.counters.value(key), next(self._tick), key))

    def newcomers(self, key: ClientKey, closed: Collection[ClientKey] = ()) -> Generator[RequestView, None, None]:
        """The client's requests that have not run yet, as many as may run beside those that do."""
        left = math.inf if self.slots_left is None else self.slots_left(key)
        line = self.line(key)
        while left > 0 and key not in closed:
            view = next((v for v in line if not v.started), None)
            if view is None:
                return
            left -= 1
            yield view

    def longest_late(self) -> RequestView | None:
        """The late online request that has waited longest, of the client that was served least. O(clients)."""
        keys = sorted(self.clients(Lane.ONLINE), key=self.counters.value)
        lines = (self._lines[key] for key in keys)
        found = (line.first_late() for line in lines if isinstance(line, ValueLine))
        return next((view for view in found if view is not None and not view.started), None)

    def relegated(self) -> int:
        """Late online requests that stand behind others of their client. O(clients)."""
        return sum(line.late_behind() for line in self._lines.values() if isinstance(line, ValueLine))

    def line(self, key: ClientKey) -> Iterator[RequestView]:
        """One client's line from its head, correct while requests are taken out of it."""
        passed: set[RequestView] = set()
        count = _CHUNK
        while (line := self._lines.get(key)) is not None:
            chunk = [v for v in line.first(count + len(passed)) if v not in passed]
            if not chunk:
                return
            count *= 2
            for view in chunk:
                if view in line:
                    yield view
                    passed.add(view)
            passed = {v for v in passed if v in line}
