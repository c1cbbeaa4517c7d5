"""Room at the front door: 503 and 429 with Retry-After, once per HTTP request, and places always given back."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.overload import Overload
from vllm_hybrid.serving.admission import Admission, NotNow, with_retry_after
from vllm_hybrid.serving.identity import CALL, Call, Caller, Identity
from vllm_hybrid.serving.request_check import settled

RPM = {"preset": "rpm", "presets": {"rpm": {"limit": 2}}}
FULL = {"overload": {"max_requests": 8, "offline_fraction": 0.5}}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def admission(settings: dict[str, Any], clock: Any = None) -> tuple[Admission, CollectorRegistry]:
    registry = CollectorRegistry()
    refused = Counter("refused_requests", "", ["lane", "reason"], registry=registry)
    return Admission(load_config(settings), refused, clock or Clock()), registry


def call(door: Admission, lane: str = "online", prompts: int = 1, client: str = "c") -> Call:
    """A call with so many prompts that came in."""
    made = Call(Caller(), admission=door)
    for _ in range(prompts):
        door.admit(made, Identity(lane, client))
    return made


class TellingMiddleware:
    """The part of our middleware that concerns a call: its context, the header, and its end."""

    def __init__(self, app: Any, door: Admission) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        made = Call(Caller(), admission=self._door)
        CALL.set(made)
        try:
            await self._app(scope, receive, with_retry_after(made, send))
        finally:
            self._door.release(made)


@pytest.fixture
def ask() -> Any:
    """Ask a server with these settings, as a client, with so many prompts in one HTTP request."""

    def served(settings: dict[str, Any]) -> Any:
        async def generate(request: Any) -> Response:
            try:
                for _ in range(int(request.query_params["prompts"])):
                    settled({"client": request.query_params["client"]})
            except NotNow as error:
                answer = create_error_response(error)
                return JSONResponse(answer.model_dump(), status_code=answer.error.code)
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/", generate)])
        app.add_middleware(TellingMiddleware, door=admission(settings)[0])
        client = TestClient(app)
        return lambda who, prompts=1: client.get("/", params={"client": who, "prompts": prompts})

    return served


def test_beyond_its_rate_a_client_is_told_when_to_come_back(ask: Any) -> None:
    get = ask(RPM)
    assert [get("alice").status_code for _ in range(2)] == [200, 200]
    refused = get("alice")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    error = refused.json()["error"]
    assert error["code"] == 429 and "client 'alice' has used up its requests" in error["message"]
    assert get("bob").status_code == 200


def test_an_http_request_counts_once(ask: Any) -> None:
    get = ask(RPM)
    assert [get("alice", prompts=5).status_code for _ in range(3)] == [200, 200, 429]


def test_without_such_settings_nobody_is_refused(ask: Any) -> None:
    get = ask({"preset": "vtc"})
    answers = [get("alice", prompts=50) for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert "retry-after" not in answers[-1].headers


def test_a_caller_without_an_http_request_is_not_limited() -> None:
    for _ in range(50):
        assert settled({"client": "alice"}).client == "alice"


def test_overload_turns_offline_work_away_first() -> None:
    door, registry = admission(FULL)
    calls = [call(door, "offline") for _ in range(4)]
    with pytest.raises(NotNow, match="hands full, of 4 requests: try again in 1 s") as refused:
        call(door, "offline")
    assert refused.value.http_status == 503
    calls += [call(door, "online") for _ in range(4)]
    with pytest.raises(NotNow):
        call(door, "online")
    for ended in calls[:4]:
        door.release(ended)
    call(door, "online")
    with pytest.raises(NotNow):
        call(door, "offline")
    door.release(calls[4])
    door.release(calls[5])
    call(door, "offline")
    assert registry.get_sample_value("refused_requests_total", {"lane": "offline", "reason": "overload"}) == 2
    assert registry.get_sample_value("refused_requests_total", {"lane": "online", "reason": "overload"}) == 1
    assert registry.get_sample_value("refused_requests_total", {"lane": "online", "reason": "rate"}) == 0


def test_a_batch_is_let_in_as_a_whole_and_every_prompt_takes_a_place() -> None:
    door, _ = admission(FULL)
    batch = call(door, prompts=20)
    assert batch.places == 20
    with pytest.raises(NotNow, match="of 20 requests"):
        call(door)
    door.release(batch)
    door.release(batch)  # giving back twice gives back once
    assert [call(door).places for _ in range(8)] == [1] * 8


def test_whoever_was_refused_takes_no_place_and_no_part_of_a_rate() -> None:
    door, _ = admission({**RPM, "overload": {"max_requests": 1}})
    first = call(door)
    for _ in range(5):
        refused = Call(Caller(), admission=door)
        with pytest.raises(NotNow, match="hands full"):
            door.admit(refused, Identity("online", "c"))
        door.release(refused)
        assert refused.places == 0 and refused.retry_after_s == 1
    door.release(first)
    door.release(call(door))
    with pytest.raises(NotNow, match="used up"):
        call(door)


def test_callers_that_come_at_once_never_get_beyond_the_limit() -> None:
    door, _ = admission({"overload": {"max_requests": 10}})
    rng, most = random.Random(0), 0

    async def one() -> None:
        nonlocal most
        made = Call(Caller(), admission=door)
        await asyncio.sleep(0)
        try:
            door.admit(made, Identity(rng.choice(["online", "offline"]), "c"))
            most = max(most, door._overload.taken)
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        except NotNow:
            pass
        finally:
            door.release(made)

    async def everybody() -> None:
        await asyncio.gather(*(one() for _ in range(1000)))

    asyncio.run(everybody())
    assert most == 10 and door._overload.taken == 0


def test_when_to_come_back_follows_how_places_become_free() -> None:
    overload = Overload(4, 0.5)
    for _ in range(4):
        overload.take()
    assert overload.retry_after_s(offline=True) == 1  # nobody has left yet
    for now_s in (10.0, 15.0, 20.0):
        overload.leave(1, now_s)
        overload.take()
    assert overload.retry_after_s(offline=False) == 5
    assert overload.retry_after_s(offline=True) == 15
    overload.leave(1, 1000.0)
    overload.take()
    assert overload.retry_after_s(offline=True) == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_requests": 0}, r"overload\.max_requests = 0: must be greater than 0"),
        ({"max_requests": 4, "offline_fraction": 1.5}, r"overload\.offline_fraction = 1\.5"),
        ({"max_requests": 4, "offline_fraction": True}, r"overload\.offline_fraction = True"),
        ({"offline_fraction": 0.5}, r"overload\.offline_fraction = 0\.5: has no effect without max_requests"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"overload": settings})
