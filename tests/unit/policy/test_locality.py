"""Locality for fairness: a longer cached prefix first, within a quantum of credit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import ONLINE, examples, plain_counters, request, waiting
from vllm_hybrid.policy.locality import longest_prefix_first

A, B = (ONLINE, "a"), (ONLINE, "b")


def ordered(queue, cached: dict, quantum: float, promised: dict | None = None) -> list:
    promised = promised or {}
    walk = queue.walk(ONLINE, promised, set())
    return list(longest_prefix_first(walk, queue.counters, promised, quantum, lambda v: cached.get(v, 0), set()))


def queue_of(*views, **counters: float):
    queue = waiting(views, plain_counters())
    for client, value in counters.items():
        queue.counters.charge((ONLINE, client), value, 0)
    return queue


def test_with_credit_the_longer_prefix_is_first_and_without_it_is_not():
    a, b = request("a", prompt_tokens=50), request("b", prompt_tokens=50)
    assert ordered(queue_of(a, b, b=100), {b: 40}, quantum=150) == [b, a]
    assert ordered(queue_of(a, b, b=100), {b: 40}, quantum=100) == [a, b]


def test_what_is_admitted_on_credit_uses_it_up():
    a = request("a", prompt_tokens=50)
    bs = [request("b", prompt_tokens=50) for _ in range(6)]
    order = ordered(queue_of(a, *bs), dict.fromkeys(bs, 10), quantum=100)
    assert order.index(a) == 3  # 40 tokens of each are to be computed: the third takes b to 120


def test_a_cached_prefix_uses_up_no_credit():
    a = request("a", prompt_tokens=50)
    bs = [request("b", prompt_tokens=50) for _ in range(6)]
    assert ordered(queue_of(a, *bs), dict.fromkeys(bs, 50), quantum=100)[-1] is a


def test_what_runs_counts_against_credit():
    a, b = request("a"), request("b")
    assert ordered(queue_of(a, b), {b: 9}, quantum=50, promised={B: 60.0}) == [a, b]


@pytest.mark.parametrize("quantum", [0.5, 100.0, 1e9])
def test_a_request_is_not_passed_for_ever_by_others_of_its_client(quantum):
    head = request("a")
    queue = queue_of(head, request("b"))
    served: list = []
    while head not in served:
        view = request("a")
        queue.add(view)
        served.append(ordered(queue, {view: 60}, quantum)[0])
        queue.discard(served[-1])
        assert len(served) <= 67


sent = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.floats(0, 1)), max_size=60)


@given(sent, st.floats(0.1, 500))
@examples(100)
def test_everybody_is_yielded_once_and_nobody_is_passed_beyond_the_quantum(requests, quantum):
    views, cached = [], {}
    for client, tokens, part in requests:
        view = request(client, prompt_tokens=tokens)
        views.append(view)
        cached[view] = int(part * (tokens - 1))
    order = ordered(waiting(views, plain_counters()), cached, quantum)
    assert sorted(map(id, order)) == sorted(map(id, views))
    got = dict.fromkeys("abc", 0)
    for at, view in enumerate(order):
        others = {v.client for v in order[at:]}
        assert got[view.client] - min(got[c] for c in others) <= quantum + 60
        got[view.client] += view.prompt_tokens - cached[view]
