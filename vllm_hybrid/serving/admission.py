"""The second question at the front door, asked once it is known for whom a request comes: is there room for it now?

If not it is answered at once, with a Retry-After and before the answer's status goes out, so a stream is refused like
any other: 503 where the server has its hands full (`overload`), offline requests first, or where a first token would
come too late (`hopeless.py`); 429 where the client has used up what it may send (`preset: rpm`, `limits`). Asking and
taking a place is one act on the server's event loop. The question is asked once per HTTP request, however many prompts
it holds; each of them takes a place until the HTTP request ends.

Each API server process counts what it sees itself: with several of them a limit is that of one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_hybrid.config import LANES, HybridConfig
from vllm_hybrid.policy.overload import Overload
from vllm_hybrid.policy.presets import request_rate
from vllm_hybrid.serving import client_limits
from vllm_hybrid.serving.hopeless import Hopeless
from vllm_hybrid.serving.identity import Call, Identity

REASONS = ("overload", "ttft", "hopeless", "rate", "client_waiting", "client_tokens")


class NotNow(GracefulHTTPError):
    """A 503 or 429 to vLLM's server."""


class Admission:
    """Who comes in, of one API server. refused: a counter of prometheus_client with the labels lane and reason."""

    def __init__(self, config: HybridConfig, refused: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._overload = Overload(config.overload.max_requests, config.overload.offline_fraction)
        self._rate = request_rate(config)
        self._clock = clock
        self.hopeless = Hopeless(config, clock)
        self._refused = refused
        for lane in LANES:
            for reason in REASONS:
                refused.labels(lane, reason)  # 0 until it happens

    def admit(self, call: Call, identity: Identity) -> None:
        """Take a prompt of this HTTP request in, or raise NotNow."""
        if not call.places:
            self._ask(call, identity)
            self.hopeless.begin(call, identity, self._refused.labels(identity.lane, "hopeless").inc)
        call.places += 1
        self._overload.take()

    def release(self, call: Call) -> None:
        """The HTTP request has ended."""
        client_limits.leave(call)
        self.hopeless.release(call)
        self._overload.leave(call.places, self._clock())
        call.places = 0

    def _ask(self, call: Call, identity: Identity) -> None:
        wait_s = self._overload.retry_after_s(identity.lane == "offline")
        if wait_s is not None:
            message = f"the server has its hands full, of {self._overload.taken} requests"
            self._refuse(call, identity, "overload", HTTPStatus.SERVICE_UNAVAILABLE, message, wait_s)
        wait_s = self.hopeless.too_long_s(identity)
        if wait_s is not None:
            message = "a first token would come too late (overload.reject_ttft_s)"
            self._refuse(call, identity, "ttft", HTTPStatus.SERVICE_UNAVAILABLE, message, min(wait_s, 60.0))
        limit = client_limits.reached(call, identity.client)
        if limit is not None:
            self._refuse(call, identity, limit.reason, HTTPStatus.TOO_MANY_REQUESTS, limit.message, limit.retry_after_s)
        wait_s = None if self._rate is None else self._rate.retry_after_s(identity.client, self._clock())
        if wait_s is not None:
            message = f"client {identity.client!r} has used up its requests of the last minute"
            self._refuse(call, identity, "rate", HTTPStatus.TOO_MANY_REQUESTS, message, wait_s)

    def _refuse(
        self, call: Call, identity: Identity, reason: str, status: HTTPStatus, message: str, wait_s: float
    ) -> None:
        call.retry_after_s = max(1, math.ceil(wait_s))
        self._refused.labels(identity.lane, reason).inc()
        raise NotNow(f"{message}: try again in {call.retry_after_s} s", status)


def with_retry_after(call: Call, send: Any) -> Any:
    """An ASGI `send` that adds the Retry-After header to the answer of a call that was refused."""

    async def send_and_tell(message: Any) -> None:
        if call.retry_after_s is not None and message["type"] == "http.response.start":
            header = (b"retry-after", str(call.retry_after_s).encode())
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return send_and_tell
