"""The middleware collects as long as the server lives, and lets every request pass."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vllm_hybrid.serving.middleware import HybridMiddleware


class Engines:
    engine_ranks_managed: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.asked = 0

    async def call_utility_all_async(self, method: str, *arguments: Any) -> list[Any]:
        self.asked += 1
        return []


class OutputProcessor:
    """What is listened to; nothing comes back here."""

    add_request = _update_stats_from_output = print


async def add_request(request_id: str, prompt: Any, params: Any) -> None:
    raise AssertionError("nobody sends a request here")


def test_collecting_starts_and_ends_with_the_server() -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = FastAPI(routes=[Route("/", hello)])
    app.add_middleware(HybridMiddleware)
    engines = Engines()
    vllm_config = SimpleNamespace(additional_config={})
    app.state.engine_client = SimpleNamespace(
        engine_core=engines,
        vllm_config=vllm_config,
        add_request=add_request,
        shutdown=print,
        output_processor=OutputProcessor(),
    )
    with TestClient(app) as client:
        while engines.asked < 1:
            time.sleep(0.01)
        assert client.get("/").text == "hello"
        assert client.get("/absent").status_code == 404
    asked = engines.asked
    time.sleep(1.5)  # longer than one interval
    assert engines.asked == asked
