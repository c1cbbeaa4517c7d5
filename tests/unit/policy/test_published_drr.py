"""Deficit round robin: turns, debts, what an empty queue loses, and shares that come out even."""

import random

import pytest

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import ONLINE, request, step_view, waiting
from vllm_hybrid.policy.published.drr import Deficits, RoundRobin

A, B, C = ((ONLINE, name) for name in "abc")


def ring(views, quantum=100.0, weights=None):
    deficits = Deficits(1.0, 2.0, weights or {})
    return deficits, RoundRobin(deficits, quantum), waiting(views, deficits)


def served(order, queue, count=100, **view):
    """Admit what the order offers, as an engine with room for `count` requests would."""
    admitted = []
    taken = set()
    offered = order(step_view(queue=queue, admitted_tokens=lambda v: v.missing_tokens if v in taken else 0, **view))
    for v in offered:
        queue.discard(v)
        taken.add(v)
        admitted.append(v)
        if len(admitted) >= count:
            break
    offered.close()
    return admitted


def test_each_turn_serves_a_quantum():
    views = [request(client, prompt_tokens=50) for client in "aaaabbbb"]
    _, order, queue = ring(views)
    assert [v.client for v in served(order, queue)] == list("aabbaabb")


def test_a_large_request_uses_the_turns_to_come():
    views = [request("a", prompt_tokens=250), request("a", prompt_tokens=50)]
    views += [request("b", prompt_tokens=100) for _ in range(4)]
    _, order, queue = ring(views)
    assert [v.client for v in served(order, queue)] == list("abbabb")


def test_output_tokens_leave_a_debt_that_later_turns_pay_off():
    deficits, order, queue = ring([request(client, prompt_tokens=100) for client in "ab"])
    served(order, queue)
    deficits.charge(A, 100, 100)  # the prompt that was admitted, and 100 tokens after it
    deficits.charge(B, 100, 0)
    for client in "aabbb":
        queue.add(request(client, prompt_tokens=100))
    assert [v.client for v in served(order, queue, 3)] == list("bba")


def test_a_client_whose_queue_empties_keeps_no_credit():
    deficits, order, queue = ring([request("a", prompt_tokens=10)])
    served(order, queue)
    deficits.charge(A, 10, 0)
    assert deficits.deficit(A) == 0
    assert not deficits.ring


def test_a_request_that_does_not_fit_keeps_its_client_in_front():
    views = [request("a", prompt_tokens=40), request("a", prompt_tokens=40), request("b", prompt_tokens=40)]
    _, order, queue = ring(views)
    assert served(order, queue, 1) == views[:1]
    assert served(order, queue) == views[1:]


def test_a_quantum_is_worth_the_weight_of_the_client():
    views = [request(client, prompt_tokens=50) for client in "aaaaaabb"]
    _, order, queue = ring(views, weights={"a": 2.0})
    assert [v.client for v in served(order, queue)] == list("aaaabbaa")


def test_accounts_of_clients_that_are_gone_are_dropped():
    deficits, order, queue = ring([request(f"c{i}") for i in range(50)])
    for v in served(order, queue):
        deficits.charge(v.key, 64, 1)
    deficits.forget_idle({(ONLINE, "c7")}, {})
    assert set(deficits.values) == set(deficits.granted) == {(ONLINE, "c7")}


@pytest.mark.parametrize("quantum", [None, 50, 2000])
def test_clients_that_both_wait_get_equal_service(quantum):
    options = {"presets": {"drr": {"quantum": quantum}}} if quantum else {}
    engine = PresetEngine(Machine(blocks=60, slots=8, step_tokens=128), {"preset": "drr", **options})
    rng = random.Random(3)
    for i in range(300):
        greedy = i % 3
        engine.add(request("b" if greedy else "a", prompt_tokens=rng.randrange(10, 60)), rng.randrange(5, 40))
    while engine.queue.waits(A) and engine.queue.waits(B):
        engine.step()
    total = engine.service[A] + engine.service[B]
    assert abs(engine.service[A] / total - 0.5) < 0.02 + (quantum or 0) / total
