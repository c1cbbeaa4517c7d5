"""The limit on requests per client and minute (`preset: rpm`) at the front door: a 429 that says when to come back.

It is asked where identities are checked, before the answer's status goes out, so a stream is refused like any other.
An HTTP request counts once, however many prompts it holds. Each API server process counts what it sees itself: with
several of them the limit is that of one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_hybrid.config import request_identity
from vllm_hybrid.policy.presets import request_rate
from vllm_hybrid.settings import settings_of

_PASSED, _RETRY_AFTER = "hybrid_passed", "hybrid_retry_after"  # notes on the state of a single HTTP request


class TooManyRequests(GracefulHTTPError):
    """A 429 to vLLM's server."""

    def __init__(self, client: str, retry_after_s: int) -> None:
        message = f"client {client!r} has used up its requests of the last minute: try again in {retry_after_s} s"
        super().__init__(message, HTTPStatus.TOO_MANY_REQUESTS)


def install(app: Any) -> None:
    """Limit the requests to this server, if its settings ask for it. Called when the engine client exists."""
    app.state.hybrid_rate = request_rate(settings_of(app.state.engine_client.vllm_config))


def check_rate(extra_args: Mapping[str, Any] | None, raw_request: Any) -> None:
    """Raise TooManyRequests if the client has to wait; once per HTTP request."""
    rate = None if raw_request is None else getattr(raw_request.app.state, "hybrid_rate", None)
    if rate is None or getattr(raw_request.state, _PASSED, False):
        return
    _, client = request_identity(extra_args)
    wait_s = rate.retry_after_s(client, time.monotonic())
    if wait_s is not None:
        retry_after_s = max(1, math.ceil(wait_s))
        setattr(raw_request.state, _RETRY_AFTER, retry_after_s)
        raise TooManyRequests(client, retry_after_s)
    setattr(raw_request.state, _PASSED, True)


def with_retry_after(scope: Any, send: Any) -> Any:
    """An ASGI `send` that adds the Retry-After header to an answer of ours."""

    async def send_and_tell(message: Any) -> None:
        seconds = scope.get("state", {}).get(_RETRY_AFTER)
        if seconds is not None and message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"retry-after", str(seconds).encode())]}
        await send(message)

    return send_and_tell
