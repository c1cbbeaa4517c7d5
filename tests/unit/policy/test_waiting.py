"""The waiting requests against a naive model: after any sequence of events the walk is VTC's order, the books agree."""

import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import OFFLINE, ONLINE, examples, plain_counters, request
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waiting import WaitingRequests

CLIENTS = "abcd"


class NaiveQueue:
    """What `WaitingRequests` promises, by scanning everything."""

    def __init__(self, by_priority: bool) -> None:
        self.by_priority = by_priority
        self.lines: dict[tuple[Lane, str], list[RequestView]] = defaultdict(list)

    def line(self, key: tuple[Lane, str]) -> list[RequestView]:
        line = self.lines[key]
        return sorted(line, key=lambda v: (v.priority, v.order_s)) if self.by_priority else line

    def discard(self, view: RequestView) -> None:
        self.lines[view.key].remove(view)

    def all(self) -> list[RequestView]:
        return [view for line in self.lines.values() for view in line]

    def waiting_keys(self, lane: Lane) -> list[tuple[Lane, str]]:
        return [key for key, line in self.lines.items() if line and key[0] is lane]


class Trial:
    """Both queues, fed with the same events."""

    def __init__(self, seed: int, by_priority: bool) -> None:
        self.rng = random.Random(seed)
        self.counters = plain_counters(b=2.0, c=0.5)
        self.queue = WaitingRequests(self.counters, by_priority)
        self.naive = NaiveQueue(by_priority)
        self.taken: list[RequestView] = []

    def arrive(self) -> None:
        lane, client = self.rng.choice([ONLINE, OFFLINE]), self.rng.choice(CLIENTS)
        view = request(client, lane, self.rng.randrange(1, 200), priority=self.rng.randrange(3))
        if not self.queue.waits(view.key):
            self.counters.lift(view.key, self.queue.smallest_counter(lane))
        self.queue.add(view)
        self.naive.lines[view.key].append(view)

    def charge(self) -> None:
        key = (self.rng.choice([ONLINE, OFFLINE]), self.rng.choice(CLIENTS))
        self.counters.charge(key, self.rng.randrange(300), self.rng.randrange(100))

    def abort(self) -> None:
        if views := self.naive.all():
            self.take(self.rng.choice(views))

    def take(self, view: RequestView) -> None:
        assert self.queue.discard(view)
        self.naive.discard(view)
        self.taken.append(view)

    def preempt(self) -> None:
        if self.taken:
            view = self.taken.pop(self.rng.randrange(len(self.taken)))
            view.started = True
            self.queue.prepend(view)
            self.naive.lines[view.key].insert(0, view)

    def walk(self) -> None:
        """Take some, pass over others, close lines, and stop anywhere."""
        lane = self.rng.choice([ONLINE, OFFLINE])
        promised = {(lane, c): self.rng.uniform(0, 400) for c in self.rng.sample(CLIENTS, 2)}
        thought = defaultdict(float, promised)
        passed: set[RequestView] = set()
        closed: set[tuple[Lane, str]] = set()
        walk = self.queue.walk(lane, promised, closed)
        for view in walk:
            self.is_next(view, lane, thought, passed, closed)
            thought[view.key] += self.counters.cost(view.key, view.missing_tokens, 0)
            choice = self.rng.random()
            if choice < 0.5:
                self.take(view)
            else:
                passed.add(view)
            if choice > 0.8:
                closed.add(view.key)
            if choice > 0.9:
                break
        else:
            left = [v for v in self.naive.all() if v.lane is lane and v.key not in closed and v not in passed]
            assert all(v.started for v in left), "the walk ended early"
        walk.close()

    def is_next(self, view, lane, thought, passed, closed) -> None:
        """VTC: the smallest counter of those that still have something new, and the first new one of that client."""
        keys = self.naive.waiting_keys(lane)
        rest = {key: [v for v in self.naive.line(key) if v not in passed and not v.started] for key in keys}
        values = {key: self.counters.value(key) + thought[key] for key in rest if rest[key] and key not in closed}
        assert values[view.key] <= min(values.values()) * (1 + 1e-12)
        assert view is rest[view.key][0]

    def check(self) -> None:
        """Everything a caller can ask agrees with the naive model; one heap entry for each client that waits."""
        queue, naive = self.queue, self.naive
        assert len(queue) == len(naive.all()) == len(list(queue))
        for lane in Lane:
            keys = naive.waiting_keys(lane)
            views = [v for key in keys for v in naive.line(key)]
            assert queue.lane_length(lane) == len(views)
            assert set(queue.resuming(lane)) == {v for v in views if v.started}
            assert queue.smallest_counter(lane) == min((self.counters.value(key) for key in keys), default=None)
            promised = {key: 7.0 * i for i, key in enumerate(naive.waiting_keys(lane)) if i % 2} | {
                (lane, "nobody"): 1.0
            }
            values = [self.counters.value(key) + promised.get(key, 0.0) for key in keys]
            assert queue.smallest_counter(lane, promised) == min(values, default=None)
            entries = [entry[2] for entry in queue._heap[lane]]
            assert len(entries) == len(set(entries))
            assert set(keys) <= set(entries)
        assert queue._in_heap == {entry[2] for heap in queue._heap.values() for entry in heap}
        for key in naive.lines:
            assert queue.waits(key) == bool(naive.lines[key])
            assert [v for v in queue if v.key == key] == naive.line(key)
        head = queue.head()
        assert (head is None) == (len(queue) == 0)
        if head is not None:
            lane = min(key[0] for key in naive.lines if naive.lines[key])
            assert head is naive.line(head.key)[0]
            assert self.counters.value(head.key) == queue.smallest_counter(lane)


events = st.lists(st.sampled_from(["arrive"] * 5 + ["charge", "abort", "preempt", "walk", "walk"]), max_size=80)


@given(seed=st.integers(0, 2**32), by_priority=st.booleans(), history=events)
@examples(250)
def test_any_history_walks_in_vtc_order(seed, by_priority, history):
    trial = Trial(seed, by_priority)
    for event in history:
        getattr(trial, event)()
        trial.check()


def test_a_walk_that_nobody_closes_is_closed_when_it_is_dropped():
    queue = WaitingRequests(plain_counters())
    for client in CLIENTS:
        queue.add(request(client))
    assert next(queue.walk(ONLINE, {}, ())).client == "a"
    assert [v.client for v in queue.walk(ONLINE, {}, ())].count("a") == 1


def test_preempted_requests_stand_before_arrivals_of_their_client_and_first_in_the_lane():
    queue = WaitingRequests(plain_counters())
    waiting_first, victim = request("a"), request("a", started=True)
    queue.add(waiting_first)
    queue.prepend(victim)
    assert list(queue) == [victim, waiting_first]
    assert queue.resuming(ONLINE) == [victim]
    assert queue.resuming(OFFLINE) == []


def test_priority_orders_inside_a_client_but_not_between_clients():
    counters = plain_counters()
    counters.charge((ONLINE, "urgent"), 100, 0)
    queue = WaitingRequests(counters, by_priority=True)
    late, soon = request("calm", priority=5), request("calm", priority=1)
    urgent = request("urgent", priority=-9)
    for view in (late, soon, urgent):
        queue.add(view)
    assert list(queue.walk(ONLINE, {}, ())) == [soon, late, urgent]


def test_the_last_abort_of_a_client_leaves_its_counter_as_the_measure():
    counters = plain_counters()
    queue = WaitingRequests(counters)
    view = request("a")
    queue.add(view)
    counters.charge(view.key, 80, 0)
    queue.discard(view)
    counters.lift((ONLINE, "b"), queue.smallest_counter(ONLINE))
    assert counters.value((ONLINE, "b")) == 80


def test_an_id_that_is_used_again_is_a_request_of_its_own():
    queue = WaitingRequests(plain_counters(), by_priority=True)
    first, aborted, again = request(order_s=-1.0), request(order_s=0.0), request(order_s=0.0)
    again.request_id = aborted.request_id
    queue.add(first)
    queue.add(aborted)
    queue.discard(aborted)
    queue.add(again)
    queue.discard(first)
    assert queue.head() is again
    assert list(queue) == [again]


def test_who_does_not_wait_cannot_be_taken_out():
    queue = WaitingRequests(plain_counters())
    assert not queue.discard(request("a"))
    assert queue.head() is None
    assert list(queue) == []
