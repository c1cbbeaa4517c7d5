"""What the queue costs, counted in looks at clients and requests, never in seconds: nothing scans the queue."""

import itertools

import pytest

from tests.unit.policy.world import ONLINE, request
from vllm_hybrid.policy.fairness import VirtualCounters, group_name
from vllm_hybrid.policy.waiting import WaitingRequests


class Looks:
    """Counts how often a client's counter or name is looked at."""

    count = 0

    @classmethod
    def of(cls, action) -> int:
        before = cls.count
        action()
        return cls.count - before


class Name(str):
    """A client's name; a table is never asked for it unseen."""

    __slots__ = ()

    def __hash__(self) -> int:
        Looks.count += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        Looks.count += 1
        return str.__eq__(self, other)


class CountedCounters(VirtualCounters):
    __slots__ = ()

    def value(self, key) -> float:
        Looks.count += 1
        return super().value(key)


def queue_of(clients: int, each: int = 1, by_priority: bool = False) -> WaitingRequests:
    queue = WaitingRequests(CountedCounters(1.0, 2.0, {}), by_priority)
    for number, _ in itertools.product(range(clients), range(each)):
        name = Name(f"client-{number}")
        queue.counters.values[ONLINE, name] = float(number)
        queue.add(request(name))
    return queue


def walk(queue: WaitingRequests, count: int) -> None:
    """Take the first `count` requests."""
    requests = queue.walk(ONLINE, {}, set())
    for view in itertools.islice(requests, count):
        queue.discard(view)
    requests.close()


@pytest.mark.parametrize("count", [1, 8, 64])
def test_a_walk_looks_at_the_clients_it_serves_and_not_at_all_that_wait(count):
    queue = queue_of(10_000)
    assert Looks.of(lambda: walk(queue, count)) <= 40 * count + 40


def test_an_abandoned_walk_leaves_the_next_one_as_cheap():
    queue = queue_of(10_000)
    for _ in range(50):
        walk(queue, 1)
    assert Looks.of(lambda: walk(queue, 1)) < 100


@pytest.mark.parametrize("by_priority", [False, True])
def test_adding_taking_out_and_asking_for_the_head_do_not_depend_on_the_queue(by_priority):
    queue = queue_of(10_000, by_priority=by_priority)
    newcomer = request(Name("client-77"))
    assert Looks.of(lambda: queue.add(newcomer)) < 30
    assert Looks.of(lambda: newcomer in queue) < 10
    assert Looks.of(lambda: queue.discard(newcomer)) < 30
    assert Looks.of(queue.head) < 30
    assert Looks.of(lambda: queue.smallest_counter(ONLINE)) < 30


def test_the_counters_of_many_running_clients_make_a_walk_no_dearer():
    queue = queue_of(10_000)
    for number in range(5_000, 10_000):
        queue.counters.charge((ONLINE, Name(f"client-{number}")), 0, 10)
    assert Looks.of(lambda: walk(queue, 8)) < 400


class CountedLine:
    """A line that counts the requests it hands out."""

    def __init__(self, line) -> None:
        self.line = line
        self.handed_out = 0

    def first(self, count: int):
        found = self.line.first(count)
        self.handed_out += len(found)
        return found

    def __getattr__(self, name: str):
        return getattr(self.line, name)

    def __contains__(self, view) -> bool:
        return view in self.line

    def __len__(self) -> int:
        return len(self.line)


@pytest.mark.parametrize("by_priority", [False, True])
def test_a_walk_reads_a_long_line_only_as_far_as_it_is_followed(by_priority):
    queue = queue_of(1, each=10_000, by_priority=by_priority)
    key = next(iter(queue._lines))
    line = queue._lines[key] = CountedLine(queue._lines[key])
    walk(queue, 100)
    assert line.handed_out < 400


def test_passing_over_a_whole_line_stays_linear_in_its_length():
    queue = queue_of(1, each=2_000)
    key = next(iter(queue._lines))
    line = queue._lines[key] = CountedLine(queue._lines[key])
    assert len(list(queue.walk(ONLINE, {}, ()))) == 2_000
    assert line.handed_out < 5 * 2_000


def test_a_thousand_aborts_leave_no_more_behind_than_what_waits():
    queue = queue_of(1, by_priority=True)
    (first,) = queue
    for _ in range(1_000):
        view = request(first.client)
        queue.add(view)
        queue.discard(view)
    line = queue._lines[first.key]
    assert len(line._heap) < 200
    assert list(queue) == [first]


def served(queue: WaitingRequests, count: int) -> None:
    """Admit, charge and let arrive again."""
    for _ in range(count):
        requests = queue.walk(ONLINE, {}, set())
        view = next(requests)
        queue.discard(view)
        requests.close()
        queue.counters.charge(view.key, 100, 30)
        queue.lift(view.key)
        queue.add(view)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_admission_among_ten_thousand_clients_looks_at_hardly_more_than_among_ten(grouped):
    looks = []
    for clients in (10, 10_000):
        queue = queue_of(clients, each=100_000 // clients)
        if grouped:
            groups = {f"client-{n}": group_name(str(n % 10)) for n in range(clients)}
            queue.counters.set_shares({}, groups)
            queue.regroup()
        served(queue, 50)
        looks.append(Looks.of(lambda queue=queue: served(queue, 200)))
    assert looks[1] <= 3 * looks[0]


def test_clients_that_are_gone_leave_nothing_once_their_counter_cannot_matter():
    queue = queue_of(1)
    queue.counters.charge(next(iter(queue)).key, 10_000, 0)
    for number in range(10_000):
        view = request(Name(f"gone-{number}"))
        queue.lift(view.key)
        queue.add(view)
        queue.discard(view)
    ahead = request(Name("ahead"))
    queue.lift(ahead.key)
    queue.counters.charge(ahead.key, 50_000, 0)  # served beyond its share: that is remembered
    queue.counters.forget_idle({next(iter(queue)).key}, queue.smallest_counters())
    assert len(queue.counters.values) <= 3  # who waits, who left last, and who is ahead
    assert ahead.key in queue.counters.values
    assert len(queue._in_heap) == len(queue._heap[ONLINE]) < 100
    assert queue.smallest_counter(ONLINE) == 10_000
