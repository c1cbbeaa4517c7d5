"""Counters shared over replicas: one fairness, nothing charged twice, whatever is lost on the way or dies."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import OFFLINE, ONLINE, examples, plain_counters
from vllm_hybrid.policy.fairness import VirtualCounters, group_name
from vllm_hybrid.policy.remote import SharedCounters
from vllm_hybrid.ray.books import Books

A, B, C = ((ONLINE, name) for name in "abc")
TTL_S = 10.0


@dataclass
class Replica:
    name: str
    counters: VirtualCounters = field(default_factory=plain_counters)
    waiting: set = field(default_factory=set)

    def __post_init__(self):
        self.shared = SharedCounters(self.counters)

    def value(self, key):
        return self.counters.value(key)


class World:
    def __init__(self, replicas=2):
        self.now_s = 0.0
        self.epochs = 0
        self.replicas = [Replica(f"r{i}") for i in range(replicas)]
        self.new_hub()

    def new_hub(self):
        self.epochs += 1
        self.books = Books(f"e{self.epochs}", TTL_S)

    def exchange(self, replica, heard=True, answered=True):
        """One report; on a way that may lose it or its answer."""
        report = replica.shared.report(replica.waiting.__contains__)
        if heard:
            answer = self.books.report(replica.name, report, self.now_s)
            if answered:
                replica.shared.apply(answer)

    def settle(self):
        for _ in range(4):
            for replica in self.replicas:
                self.exchange(replica)


@pytest.fixture
def two():
    world = World()
    world.settle()
    return world, *world.replicas


def test_service_of_one_replica_counts_in_the_other(two):
    world, one, other = two
    one.counters.charge(A, 10, 5)
    other.counters.charge(A, 1, 0)
    world.settle()
    assert one.value(A) == other.value(A) == 21


def test_service_given_while_the_answer_is_under_way_is_kept(two):
    world, one, other = two
    other.counters.charge(A, 100, 0)
    world.exchange(other)
    answer = world.books.report(one.name, one.shared.report(lambda key: False), 0.0)
    one.counters.charge(A, 7, 0)
    one.shared.apply(answer)
    assert one.value(A) == 107


def test_only_clients_that_changed_travel(two):
    world, one, other = two
    for client in "abcdefgh":
        one.counters.charge((ONLINE, client), 5, 0)
    world.settle()
    one.counters.charge(B, 1, 0)
    report = one.shared.report(lambda key: False)
    assert [row[1] for row in report["rows"]] == ["b"]
    one.shared.apply(world.books.report(one.name, report, 0.0))
    answer = world.books.report(other.name, other.shared.report(lambda key: False), 0.0)
    assert [row[1] for row in answer["rows"]] == ["b"]


def test_a_report_sent_again_is_the_same_and_counts_once(two):
    world, one, other = two
    one.counters.charge(A, 10, 0)
    world.exchange(one, answered=False)
    first = one.shared.report(lambda key: False)
    one.counters.charge(A, 5, 0)
    assert one.shared.report(lambda key: False) == first
    world.settle()
    assert one.value(A) == other.value(A) == 15


def test_a_newcomer_is_lifted_to_the_smallest_counter_of_those_that_wait_anywhere(two):
    world, one, other = two
    one.counters.charge(A, 300, 0)
    other.counters.charge(B, 200, 0)
    one.waiting, other.waiting = {A}, {B}
    world.settle()
    one.shared.lift(C, one.value(A))
    assert one.value(C) == 200
    world.settle()
    assert other.value(C) == 200


def test_who_is_backlogged_in_another_replica_is_not_lifted(two):
    world, one, other = two
    one.counters.charge(A, 300, 0)
    other.counters.charge(B, 20, 0)
    one.waiting, other.waiting = {A}, {B}
    world.settle()
    one.shared.lift(B, one.value(A))
    assert one.value(B) == 20


def test_two_replicas_that_lift_a_client_at_once_lift_it_once(two):
    world, one, other = two
    one.counters.charge(A, 500, 0)
    one.waiting = other.waiting = {A}
    world.settle()
    for replica in (one, other):
        replica.shared.lift(C, replica.value(A))
        replica.counters.charge(C, 10, 0)
    world.settle()
    assert one.value(C) == other.value(C) == 520


def test_the_lanes_of_a_client_are_told_apart(two):
    world, one, other = two
    one.counters.charge((OFFLINE, "a"), 10, 0)
    world.settle()
    assert other.value((OFFLINE, "a")) == 10
    assert other.value(A) == 0


def test_a_new_hub_learns_the_counters_and_the_service_of_the_time_without_one(two):
    world, one, other = two
    one.counters.charge(A, 100, 0)
    other.counters.charge(B, 50, 0)
    world.settle()
    for replica in (one, other):
        replica.counters.charge(A, 10, 0)  # unheard by anybody when the hub dies
    world.new_hub()
    world.settle()
    assert one.value(A) == other.value(A) == 120
    assert one.value(B) == other.value(B) == 50


def test_the_report_under_way_when_the_hub_dies_counts_at_most_once(two):
    world, one, other = two
    one.counters.charge(A, 100, 0)
    world.exchange(one, answered=False)  # heard, never answered
    world.exchange(other)  # and the other replica was told
    world.new_hub()
    world.settle()
    assert one.value(A) == other.value(A) == 100


def test_a_report_that_only_the_new_hub_has_seen_is_not_lost(two):
    world, one, other = two
    world.new_hub()
    one.counters.charge(A, 100, 0)
    world.settle()
    assert one.value(A) == other.value(A) == 100


def test_a_replica_that_was_silent_too_long_neither_waits_nor_counts_twice(two):
    world, one, other = two
    one.counters.charge(A, 100, 0)
    one.waiting = {A}
    world.exchange(one, answered=False)
    world.exchange(other)
    assert A in other.shared.elsewhere
    world.now_s += TTL_S + 1
    for _ in range(2):
        world.exchange(other)
    assert A not in other.shared.elsewhere
    one.counters.charge(A, 1, 0)
    world.settle()
    assert one.value(A) == other.value(A) == 101


def test_alone_nobody_is_taken_to_wait_elsewhere_and_all_is_learned_again(two):
    world, one, other = two
    other.counters.charge(B, 20, 0)
    one.counters.charge(A, 300, 0)
    one.waiting, other.waiting = {A}, {B}
    world.settle()
    one.shared.alone()
    one.shared.lift(B, one.value(A))
    assert one.value(B) == 300
    world.settle()
    assert B in one.shared.elsewhere
    assert other.value(B) == 300


def test_a_forgotten_client_that_returns_has_its_counter_of_all_replicas(two):
    world, one, other = two
    one.counters.charge(A, 40, 0)
    other.counters.charge(A, 60, 0)
    one.counters.charge(B, 500, 0)
    one.waiting = {B}
    world.settle()
    one.shared.forget_idle({B}, {ONLINE: one.value(B), OFFLINE: None})
    assert A not in one.counters.values
    one.counters.charge(A, 5, 0)
    world.settle()
    assert one.value(A) == other.value(A) == 105


def test_a_replica_alone_keeps_its_own_counters():
    world = World(replicas=1)
    (one,) = world.replicas
    one.counters.charge(A, 300, 0)
    one.waiting = {A}
    world.settle()
    one.counters.charge(A, 50, 0)
    one.shared.lift(B, one.value(A))
    assert one.value(B) == 350, "the hub's older minimum of its own client gives no credit"


def test_the_books_keep_a_bounded_number_of_clients():
    books = Books("e", TTL_S, most_clients=3)
    replica = Replica("r")
    replica.shared.apply(books.report("r", replica.shared.report(lambda key: False), 0.0))
    for number in range(10):
        replica.counters.charge((ONLINE, str(number)), 1, 0)
        replica.shared.apply(books.report("r", replica.shared.report(lambda key: key[1] == "0"), 0.0))
    assert books.totals()["clients"] == 3
    assert books.totals()["smallest"] == [[ONLINE, "", 1.0]], "who waits is kept"


def test_clients_of_a_group_are_lifted_within_it_and_the_group_within_its_lane():
    world = World()
    grouped = {"a": group_name("g"), "b": group_name("g")}
    for replica in world.replicas:
        replica.counters = VirtualCounters(1.0, 2.0, {}, groups=grouped)
        replica.shared = SharedCounters(replica.counters)
    world.settle()
    one, other = world.replicas
    one.counters.charge(A, 300, 0)
    other.counters.charge(C, 900, 0)
    one.waiting, other.waiting = {A, (ONLINE, group_name("g"))}, {C}
    world.settle()
    assert other.value((ONLINE, group_name("g"))) == 300
    other.shared.lift(B, None)
    assert other.value(B) == 300, "to the other client of its group, not to that of the lane"


def test_who_changes_its_group_has_a_new_account(two):
    world, one, other = two
    one.counters.charge(A, 300, 0)
    world.settle()
    for replica in (one, other):
        replica.counters.set_shares({}, {"a": group_name("g")})
    one.counters.charge(A, 10, 0)
    world.settle()
    assert one.value(A) == other.value(A) == 10


REPLICAS = st.integers(0, 2)
EVENTS = st.one_of(
    st.tuples(st.just("charge"), REPLICAS, st.sampled_from("abc"), st.integers(1, 50)),
    st.tuples(st.just("exchange"), REPLICAS, st.booleans(), st.booleans()),
)
DEATHS = st.one_of(EVENTS, st.tuples(st.just("death")), st.tuples(st.just("silence")))


def play(events):
    """The world after `events`, and what each client was really served."""
    world, served = World(replicas=3), dict.fromkeys("abc", 0)
    world.settle()
    for event in events:
        match event:
            case ("charge", at, client, units):
                world.replicas[at].counters.charge((ONLINE, client), units, 0)
                served[client] += units
            case ("exchange", at, heard, answered):
                world.exchange(world.replicas[at], heard, answered)
            case ("death",):
                world.new_hub()
            case ("silence",):
                world.now_s += TTL_S + 1
        for client, units in served.items():
            for replica in world.replicas:
                assert replica.value((ONLINE, client)) <= units + 1e-6, "charged twice"
    world.settle()
    return world, served


@examples(200)
@given(st.lists(EVENTS, max_size=40))
def test_in_the_life_of_a_hub_every_unit_counts_exactly_once(events):
    world, served = play(events)
    for client, units in served.items():
        assert [r.value((ONLINE, client)) for r in world.replicas] == pytest.approx([units] * 3)


@examples(300)
@given(st.lists(DEATHS, max_size=40))
def test_over_the_lives_of_hubs_no_unit_counts_twice_and_replicas_agree(events):
    world, served = play(events)
    for client, units in served.items():
        values = [r.value((ONLINE, client)) for r in world.replicas]
        assert values == pytest.approx([values[0]] * 3)
        assert values[0] <= units + 1e-6
