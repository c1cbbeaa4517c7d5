"""Who is told that it is too late: when it comes, by a prediction, or when its time is up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.first_tokens import FirstTokens
from vllm_hybrid.serving.admission import Admission, NotNow
from vllm_hybrid.serving.door import Refusal
from vllm_hybrid.serving.hopeless import Hopeless, refusal
from vllm_hybrid.serving.identity import CALL, Call, Caller, Identity
from vllm_hybrid.serving.shutdown import Drain

REJECT = {"slo": {"online": {"ttft_s": 0.1}}, "overload": {"on_hopeless": "reject"}}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def paced(gap_s: float) -> FirstTokens:
    """First tokens came every `gap_s`; nobody waits now."""
    tokens = FirstTokens()
    for _ in range(20):
        tokens.entered("a", 0.0)
    for i in range(20):
        tokens.started("a", gap_s * (i + 1))
    return tokens


def door(settings: dict[str, Any], clock: Any = None) -> tuple[Admission, CollectorRegistry]:
    registry = CollectorRegistry()
    refused = Counter("refused_requests", "", ["lane", "reason"], registry=registry)
    return Admission(load_config(settings), refused, clock or Clock()), registry


def count(registry: CollectorRegistry, reason: str) -> float:
    value = registry.get_sample_value("refused_requests_total", {"lane": "online", "reason": reason})
    assert value is not None
    return value


# -- the prediction ----------------------------------------------------------------------------------------------------
def test_nothing_is_predicted_before_a_first_token_came() -> None:
    tokens = FirstTokens()
    tokens.entered("a", 0.0)
    assert tokens.predicted_s("a") == 0.0


def test_the_wait_is_the_queue_times_the_pace() -> None:
    tokens = paced(0.5)
    assert tokens.predicted_s("a") == pytest.approx(0.5)
    for _ in range(9):
        tokens.entered("a", 20.0)
    assert tokens.predicted_s("a") == pytest.approx(5.0)
    assert tokens.predicted_s("b") == pytest.approx(1.0)  # its turn comes after one of a's


def test_first_tokens_of_one_step_share_its_time() -> None:
    tokens = FirstTokens()
    for _ in range(60):
        tokens.entered("a", 0.0)
    for step in range(1, 7):
        for _ in range(10):
            tokens.started("a", float(step))
    assert tokens.predicted_s("a") == pytest.approx(0.1)


def test_time_in_which_nobody_waited_does_not_count() -> None:
    tokens = paced(0.5)
    tokens.entered("a", 1000.0)
    tokens.started("a", 1000.5)
    assert tokens.predicted_s("a") == pytest.approx(0.5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("in", "first", "gone")), st.floats(0, 5)), max_size=60)
)
def test_predictions_are_finite_and_grow_with_the_queue(events: list[tuple[str, str, float]]) -> None:
    tokens, waiting, now_s = FirstTokens(), dict.fromkeys("abc", 0), 0.0
    for client, what, passed_s in events:
        now_s += passed_s
        if what == "in":
            before = tokens.predicted_s(client)
            tokens.entered(client, now_s)
            waiting[client] += 1
            assert tokens.predicted_s(client) >= before
        elif waiting[client]:
            waiting[client] -= 1
            tokens.started(client, now_s) if what == "first" else tokens.left(client)
        assert 0.0 <= tokens.predicted_s(client) < 1e6


# -- at the front ------------------------------------------------------------------------------------------------------
def test_who_would_wait_too_long_is_refused_and_counted() -> None:
    clock = Clock()
    admission, registry = door({"overload": {"reject_ttft_s": 2.0}}, clock)
    calls = [Call(Caller(), admission=admission) for _ in range(6)]
    for i, call in enumerate(calls):
        admission.admit(call, Identity("online", "a"))
        admission.hopeless.entered(call, f"r{i}", True, "online", "a")
    clock.now_s = 1.0
    admission.hopeless.started(calls[0], "r0")
    with pytest.raises(NotNow, match="too late"):
        admission.admit(Call(Caller()), Identity("online", "a"))
    assert count(registry, "ttft") == 1
    admission.admit(Call(Caller()), Identity("offline", "a"))
    admission.admit(Call(Caller()), Identity("online", "b"))  # its turn comes in time
    for call in calls:
        admission.release(call)
    admission.admit(Call(Caller()), Identity("online", "a"))


def served(seconds: float, first_token_s: float, stream: bool = False, lane: str = "online") -> tuple[Any, Any, float]:
    """What the caller of a server that takes so long was sent, the Refusal if there was one, and how many counted."""
    sent: list[Any] = []

    async def main() -> tuple[Refusal | None, float]:
        admission, registry = door(REJECT)
        call = Call(Caller(), admission=admission, task=asyncio.current_task())

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            admission.admit(call, Identity(lane, "a"))
            admission.hopeless.entered(call, "r", True, lane, "a")
            start = {"type": "http.response.start", "headers": [(b"content-type", b"text/event-stream")]}
            if stream:
                await send(start)
            await asyncio.sleep(first_token_s)
            admission.hopeless.started(call, "r")
            await asyncio.sleep(seconds - first_token_s)
            if not stream:
                await send(start)
            await send({"type": "http.response.body", "body": b"done"})

        told = None
        try:
            await Drain().serve(app, {"type": "http"}, None, send, lambda: refusal(call))
        except Refusal as error:
            told = error
        finally:
            admission.release(call)
        await asyncio.sleep(0.12)  # the time of those that ended before is up now: nothing may happen
        return told, count(registry, "hopeless")

    told, refused = asyncio.run(main())
    return sent, told, refused


def test_a_request_without_a_first_token_in_time_is_given_up() -> None:
    sent, told, refused = served(5.0, 5.0)
    assert not sent and refused == 1
    assert told is not None and told.status == 503 and dict(told.headers)[b"retry-after"] == b"1"


def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    sent, told, refused = served(5.0, 5.0, stream=True)
    assert told is None and refused == 1
    assert b"no first token" in sent[-1]["body"] and b"[DONE]" in sent[-1]["body"]


@pytest.mark.parametrize(
    ("seconds", "first_token_s", "lane"), [(0.3, 0.02, "online"), (0.02, 0.01, "online"), (0.3, 0.3, "offline")]
)
def test_others_are_left_alone(seconds: float, first_token_s: float, lane: str) -> None:
    sent, told, refused = served(seconds, first_token_s, lane=lane)
    assert told is None and refused == 0 and sent[-1]["body"] == b"done"


def test_a_cancellation_by_others_stays_one() -> None:
    assert refusal(Call(Caller())) is None


def test_reject_needs_a_target() -> None:
    with pytest.raises(ConfigError, match=r"overload.on_hopeless = 'reject': has no effect without slo.online.ttft_s"):
        load_config({"overload": {"on_hopeless": "reject"}})


def test_requests_are_followed_through_the_output_processor() -> None:
    class Processor:
        def __init__(self) -> None:
            self.request_states: dict[str, Any] = {}

        def add_request(self, request: Any) -> None:
            self.request_states[request.request_id] = SimpleNamespace(request_id=request.request_id)

        def _update_stats_from_output(self, state: Any, output: Any) -> None:
            pass

    hopeless, processor = Hopeless(load_config(REJECT)), Processor()
    hopeless.watch(processor)
    call = Call(Caller())
    token = CALL.set(call)
    params = SimpleNamespace(extra_args={"client": "a"})
    processor.add_request(SimpleNamespace(request_id="r", sampling_params=params))
    CALL.reset(token)
    assert call.unanswered == {"r": "a"}
    state = processor.request_states["r"]
    processor._update_stats_from_output(state, SimpleNamespace(new_token_ids=[]))
    assert not call.answered
    processor._update_stats_from_output(state, SimpleNamespace(new_token_ids=[1]))
    assert call.answered and not call.unanswered
