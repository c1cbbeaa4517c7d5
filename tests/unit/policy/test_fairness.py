"""Virtual counters: service is charged by weight, idleness earns no credit, over-service is remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import OFFLINE, ONLINE, examples, plain_counters
from vllm_hybrid.policy.fairness import VirtualCounters

A, B, C = ((ONLINE, name) for name in "abc")


def test_a_prompt_token_costs_one_and_a_generated_token_two_divided_by_the_weight():
    counters = plain_counters(b=4.0)
    counters.charge(A, 10, 3)
    counters.charge(B, 10, 3)
    assert counters.value(A) == 16
    assert counters.value(B) == 4


def test_prices_are_those_of_the_settings():
    counters = VirtualCounters(0.5, 7.0, {})
    counters.charge(A, 10, 1)
    assert counters.value(A) == 12


def test_the_lanes_of_a_client_are_charged_apart_and_share_its_weight():
    counters = plain_counters(a=2.0)
    counters.charge((ONLINE, "a"), 10, 0)
    assert counters.value((OFFLINE, "a")) == 0
    assert counters.cost((OFFLINE, "a"), 10, 0) == 5


def test_who_returns_from_idleness_is_lifted_to_the_smallest_that_waits():
    counters = plain_counters()
    counters.charge(A, 100, 0)
    counters.lift(B, 100.0)
    assert counters.value(B) == 100


def test_over_service_is_remembered():
    counters = plain_counters()
    counters.charge(A, 500, 0)
    counters.lift(A, 100.0)
    assert counters.value(A) == 500


def test_a_queue_that_runs_empty_forfeits_what_it_was_owed():
    """Where the promise stops: a client is backlogged only while something of its own waits."""
    counters = plain_counters()
    counters.left(B)
    counters.charge(A, 200, 0)
    counters.lift(B, counters.value(A))
    assert counters.value(B) == counters.value(A)


def test_with_nobody_waiting_the_client_that_left_last_is_the_measure():
    counters = plain_counters()
    counters.charge(A, 300, 0)
    counters.charge(B, 900, 0)
    counters.left(B)
    counters.left(A)
    counters.lift(C, None)
    assert counters.value(C) == 300


def test_what_the_client_that_left_last_still_receives_counts_too():
    counters = plain_counters()
    counters.left(A)
    counters.charge(A, 0, 50)
    counters.lift(C, None)
    assert counters.value(C) == 100


def test_the_first_client_of_all_starts_at_zero():
    counters = plain_counters()
    counters.lift(A, None)
    assert counters.value(A) == 0


def test_the_client_that_left_last_is_remembered_per_lane():
    counters = plain_counters()
    counters.charge((OFFLINE, "a"), 700, 0)
    counters.left((OFFLINE, "a"))
    counters.lift((ONLINE, "c"), None)
    counters.lift((OFFLINE, "c"), None)
    assert counters.value((ONLINE, "c")) == 0
    assert counters.value((OFFLINE, "c")) == 700


keys = st.tuples(st.sampled_from([ONLINE, OFFLINE]), st.sampled_from("abc"))
events = st.one_of(
    st.tuples(st.just("charge"), keys, st.integers(0, 1000), st.integers(0, 1000)),
    st.tuples(st.just("lift"), keys, st.none() | st.floats(0, 1e9)),
    st.tuples(st.just("left"), keys),
)


@given(st.lists(events, max_size=60), st.floats(0.01, 100))
@examples(200)
def test_no_counter_ever_falls(history, weight):
    counters = plain_counters(a=weight)
    for name, *arguments in history:
        before = dict(counters.values)
        getattr(counters, name)(*arguments)
        assert all(counters.values[key] >= value for key, value in before.items())


@given(st.floats(0, 1e9), st.floats(0, 1e9))
@examples(100)
def test_a_lift_goes_exactly_as_far_as_the_rule_says(own, smallest):
    counters = plain_counters()
    counters.values[A] = own
    counters.lift(A, smallest)
    assert counters.value(A) == max(own, smallest)


def test_an_unknown_client_has_received_nothing():
    assert plain_counters().value(A) == 0
    assert plain_counters().cost(A, 3, 1) == pytest.approx(5)


class Shop:
    """Clients come, are served and go; `forgetful` drops the counters of those that are gone now and then."""

    def __init__(self, forgetful: bool) -> None:
        self.forgetful = forgetful
        self.counters = plain_counters()
        self.waits: dict = {}
        self.runs: dict = {}

    def smallest(self) -> float | None:
        return min((self.counters.value(key) for key in self.waits), default=None)

    def arrive(self, client: int) -> None:
        key = (ONLINE, str(client))
        if key not in self.waits:
            self.counters.lift(key, self.smallest())
        self.waits[key] = self.waits.get(key, 0) + 1

    def dispatch(self, client: int) -> None:
        if self.waits:
            key = min(self.waits, key=lambda key: (self.counters.value(key), key))
            self.runs[key] = True
            self.take(key)

    def abort(self, client: int) -> None:
        if (ONLINE, str(client)) in self.waits:
            self.take((ONLINE, str(client)))

    def take(self, key) -> None:
        self.waits[key] -= 1
        if not self.waits[key]:
            del self.waits[key]
            self.counters.left(key)

    def serve(self, client: int) -> None:
        for key in self.runs:
            self.counters.charge(key, 3 * client, 1)

    def finish(self, client: int) -> None:
        self.runs.pop((ONLINE, str(client)), None)

    def forget(self, client: int) -> None:
        if self.forgetful:
            busy = {**self.waits, **self.runs}
            self.counters.forget_idle(busy, {ONLINE: self.smallest(), OFFLINE: None})


deeds = st.sampled_from(["arrive", "arrive", "dispatch", "abort", "serve", "finish", "forget"])


@given(st.lists(st.tuples(deeds, st.integers(0, 5))))
@examples(300)
def test_forgetting_idle_clients_changes_nothing_for_anybody(history):
    remembers, forgets = Shop(False), Shop(True)
    for name, client in history:
        for shop in (remembers, forgets):
            getattr(shop, name)(client)
        for key in {**remembers.waits, **remembers.runs}:
            assert forgets.counters.value(key) == remembers.counters.value(key)


def test_idle_clients_are_forgotten():
    counters = plain_counters()
    for client in range(1_000):
        counters.charge((ONLINE, str(client)), client, 0)
    counters.forget_idle({(ONLINE, "7"): 1}, {ONLINE: 500.0, OFFLINE: None})
    assert len(counters.values) == 500  # those above the smallest that waits, and the one that is busy
