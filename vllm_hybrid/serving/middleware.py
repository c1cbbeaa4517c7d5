"""Our foot in vLLM's API server: a middleware that lets every request pass and lives as long as the server.

vLLM imports the middlewares it is told of (``--middleware``) when it builds the application, after the engine
client exists.  The first call a middleware gets is the ASGI lifespan, which ends when the server stops: the
metrics are collected during that call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

from vllm_hybrid.serving import rate_limit
from vllm_hybrid.serving.drain import DrainPoller
from vllm_hybrid.serving.metrics import HybridMetrics
from vllm_hybrid.serving.rate_limit import with_retry_after
from vllm_hybrid.serving.request_check import install_in_server


class HybridMiddleware:
    def __init__(self, app: Any) -> None:
        self._app = app
        install_in_server()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            limited = scope["type"] == "http" and getattr(scope["app"].state, "hybrid_rate", None) is not None
            await self._app(scope, receive, with_retry_after(scope, send) if limited else send)
            return
        rate_limit.install(scope["app"])
        async with _collecting(scope["app"].state.engine_client):
            await self._app(scope, receive, send)


@asynccontextmanager
async def _collecting(engine_client: Any) -> AsyncIterator[None]:
    poller = DrainPoller(engine_client.engine_core, _metrics())
    task = asyncio.create_task(poller.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@cache
def _metrics() -> HybridMetrics:
    """One set per process: prometheus_client refuses to register a name twice."""
    return HybridMetrics()
