"""Our foot in vLLM's API server: a middleware that knows every caller and lives as long as the server.

vLLM imports the middlewares it is told of (``--middleware``) when it builds the application, after the engine
client exists.  The first call a middleware gets is the ASGI lifespan, which ends when the server stops: the
metrics are collected during that call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Literal

from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.serving import client_limits, hopeless, status
from vllm_hybrid.serving.admission import Admission, with_retry_after
from vllm_hybrid.serving.door import Door, Refusal, refuse
from vllm_hybrid.serving.drain import DrainPoller
from vllm_hybrid.serving.identity import CALL
from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.latency_metrics import LatencyMetrics
from vllm_hybrid.serving.metrics import HybridMetrics
from vllm_hybrid.serving.request_check import install_in_server, mark_requests
from vllm_hybrid.serving.shutdown import Drain
from vllm_hybrid.settings import settings_of

STILL_ANSWERED = frozenset({"/metrics", "/version"})  # while the server drains


class HybridMiddleware:
    """One per API server."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._door: Door | None = None
        self._admission: Admission | None = None
        self._drain = Drain()
        install_in_server()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._serve(scope, receive, send)
            return
        if self._door is None or self._admission is None:
            raise RuntimeError("the server answers before its lifespan began: nobody can be let in")
        try:
            await self._let_in(self._door, self._admission, scope, receive, send)
        except Refusal as refusal:
            await refuse(scope, send, refusal)

    async def _let_in(self, door: Door, admission: Admission, scope: Any, receive: Any, send: Any) -> None:
        if self._drain.begun and scope["path"] not in STILL_ANSWERED:
            raise self._drain.refusal()
        call = door.admit(scope)
        call.admission, call.task = admission, asyncio.current_task()
        token = CALL.set(call)
        try:
            sent = with_retry_after(call, send)
            await self._drain.serve(self._app, scope, receive, sent, lambda: hopeless.refusal(call))
        finally:
            CALL.reset(token)
            admission.release(call)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The server's whole life."""
        app = scope["app"]
        engine_client = app.state.engine_client
        config = settings_of(engine_client.vllm_config)
        self._door = Door.of(config)
        mark_requests(engine_client, config.identity.private_prefixes)
        status.attach(app, engine_client.engine_core, config.status.open)
        self._drain.hold_back(engine_client, asyncio.get_running_loop())
        client_limits.install(config)
        self._admission = Admission(config, _metrics(config.metrics.clients)[0].refused)
        self._admission.hopeless.watch(engine_client.output_processor)
        async with _collecting(engine_client, config.metrics):
            await self._app(scope, receive, send)


@asynccontextmanager
async def _collecting(engine_client: Any, settings: MetricsConfig) -> AsyncIterator[None]:
    poller = DrainPoller(engine_client.engine_core, *_metrics(settings.clients))
    poller.latencies.watch(engine_client.output_processor)
    task = asyncio.create_task(poller.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@cache
def _metrics(style: Literal["hashed", "names", "none"]) -> tuple[HybridMetrics, ClientLabels, LatencyMetrics]:
    """One set per process: prometheus_client refuses to register a name twice."""
    return HybridMetrics(), ClientLabels(MetricsConfig(clients=style)), LatencyMetrics()
