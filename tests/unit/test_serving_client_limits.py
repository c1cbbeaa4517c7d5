"""Limits where requests arrive: who waits too much, or used up its tokens, is told when to come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from vllm_hybrid.config import load_config
from vllm_hybrid.serving import client_limits
from vllm_hybrid.serving.admission import Admission, NotNow
from vllm_hybrid.serving.client_limits import ClientBooks
from vllm_hybrid.serving.identity import Call, Caller, Identity

PROCESSOR = SimpleNamespace(request_states={f"r{i}": None for i in range(9)})


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def books(clock: Clock | None = None, **settings: Any) -> ClientBooks:
    return ClientBooks(load_config(settings), clock or Clock())


def test_a_client_with_too_many_waiting_is_refused_and_others_are_not() -> None:
    limited = books(fairness={"limits": {"max_waiting": 2}}, clients={"alice": {"limits": {"max_waiting": 1}}})
    assert limited.reached("alice") is None
    limited.entered("alice", "r0", 10, PROCESSOR)
    reached = limited.reached("alice")
    assert reached.message == "client 'alice' has 1 requests waiting, as many as it may (limits.max_waiting)"
    limited.entered("bob", "r1", 10, PROCESSOR)
    assert limited.reached("bob") is None
    limited.started("alice", "r0")
    assert limited.reached("alice") is None


def test_a_request_waits_from_its_check_on_and_not_beyond_its_end() -> None:
    limited = books(fairness={"limits": {"max_waiting": 1}})
    assert limited.reached("alice", "call 1") is None
    assert limited.reached("alice", "call 2").reason == "client_waiting"
    limited.started("alice", "call 1")
    assert limited.reached("alice") is None
    limited.entered("alice", "gone", 10, PROCESSOR)  # ended without a first token: its processor has forgotten it
    assert limited.reached("alice") is None


def test_tokens_of_the_last_minute_are_counted_in_and_out() -> None:
    clock = Clock()
    limited = books(clock, clients={"alice": {"limits": {"tokens_per_minute": 100}}})
    limited.entered("alice", "r0", 60, PROCESSOR)
    clock.now_s = 20.0
    assert limited.reached("alice") is None
    limited.used("alice", 40)
    refused = limited.reached("alice")
    assert refused.reason == "client_tokens"
    clock.now_s += refused.retry_after_s
    assert limited.reached("alice") is None


def test_a_server_answers_429_once_per_call_and_a_python_caller_gets_a_value_error(monkeypatch: Any) -> None:
    limited = books(fairness={"limits": {"max_waiting": 1}})
    monkeypatch.setattr(client_limits, "_books", limited)
    registry = CollectorRegistry()
    refused = Counter("refused_requests", "", ["lane", "reason"], registry=registry)
    door = Admission(load_config({}), refused, Clock())
    first, second = Call(Caller(), admission=door), Call(Caller(), admission=door)
    for _ in range(3):
        door.admit(first, Identity("online", "alice"))
    with pytest.raises(NotNow, match="client 'alice' has 1 requests waiting") as error:
        door.admit(second, Identity("online", "alice"))
    assert create_error_response(error.value).error.code == 429
    assert second.retry_after_s == 1
    labels = {"lane": "online", "reason": "client_waiting"}
    assert registry.get_sample_value("refused_requests_total", labels) == 1
    with pytest.raises(ValueError, match=r"max_waiting\): try again in 1 s"):
        client_limits.check_limits("alice")
    door.release(first)
    client_limits.check_limits("alice")


def test_a_minute_later_a_client_is_forgotten() -> None:
    clock = Clock()
    limited = books(clock, fairness={"limits": {"tokens_per_minute": 100}})
    for number in range(1000):
        limited.entered(f"c{number}", "r0", 10, PROCESSOR)
        limited.started(f"c{number}", "r0")
    clock.now_s = 100.0
    limited.entered("last", "r0", 10, PROCESSOR)
    assert len(limited._tokens._slices) == len(limited._waiting) == 1


def test_ids_that_come_once_and_hang_up_are_forgotten() -> None:
    limited, processor = books(fairness={"limits": {"max_waiting": 3}}), SimpleNamespace(request_states={})
    limited.entered("alice", "r0", 1, PROCESSOR)
    for number in range(20_000):
        limited.entered(f"c{number}", f"r{number}", 1, processor)
    assert len(limited._waiting) < 3000 and "alice" in limited._waiting
