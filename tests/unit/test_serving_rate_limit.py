"""The limit at the front door: a 429 with Retry-After, counted per HTTP request, only under the preset that asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from vllm_hybrid.serving.rate_limit import TooManyRequests, check_rate, install, with_retry_after


class TellingMiddleware:
    """The part of our middleware that concerns the header."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, with_retry_after(scope, send))


@pytest.fixture
def ask() -> Any:
    """Ask a server with these settings, as a client, with so many prompts in one HTTP request."""

    def served(settings: dict[str, Any]) -> Any:
        async def generate(request: Any) -> Response:
            try:
                for _ in range(int(request.query_params["prompts"])):
                    check_rate({"client": request.query_params["client"]}, request)
            except TooManyRequests as error:
                answer = create_error_response(error)
                return JSONResponse(answer.model_dump(), status_code=answer.error.code)
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/", generate)])
        app.add_middleware(TellingMiddleware)
        app.state.engine_client = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={"hybrid": settings}))
        install(app)
        client = TestClient(app)
        return lambda who, prompts=1: client.get("/", params={"client": who, "prompts": prompts})

    return served


def test_beyond_the_limit_a_client_is_told_when_to_come_back(ask: Any) -> None:
    get = ask({"preset": "rpm", "presets": {"rpm": {"limit": 2}}})
    assert [get("alice").status_code for _ in range(2)] == [200, 200]
    refused = get("alice")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    error = refused.json()["error"]
    assert error["code"] == 429 and "client 'alice' has used up its requests" in error["message"]
    assert get("bob").status_code == 200


def test_an_http_request_counts_once(ask: Any) -> None:
    get = ask({"preset": "rpm", "presets": {"rpm": {"limit": 2}}})
    assert [get("alice", prompts=5).status_code for _ in range(3)] == [200, 200, 429]


def test_no_other_preset_limits(ask: Any) -> None:
    get = ask({"preset": "vtc"})
    answers = [get("alice") for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert "retry-after" not in answers[-1].headers


def test_a_caller_without_an_http_request_is_not_limited() -> None:
    check_rate({"client": "alice"}, None)
