"""A clean end: on SIGTERM nobody new comes in, and who is in gets its answer or one clear error in time.

vLLM stops the engine first and looks after its connections later: new callers get a 500, those in flight may hang, and
``/health`` says 200 all the while. Here the moment vLLM begins to shut the engine client down is held back until the
requests in flight have ended, at most for ``--shutdown-timeout``; whoever is left then is told so, with a 503, or with
an error event where a stream has begun.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from vllm_hybrid.serving.door import Refusal, error_body

_MESSAGE = "the server is shutting down: try another one, or again later"
_POLL_S = 0.02
_GOODBYE_S = 3.0  # of the timeout, for the errors to those who are left
RETRY_AFTER_S = 5


class Drain:
    """Knows the requests in flight of one API server, and ends them."""

    def __init__(self) -> None:
        self.begun = False
        self._over = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def hold_back(self, engine_client: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Let those in flight end before this engine client is shut down."""
        shutdown, server_thread = engine_client.shutdown, threading.get_ident()

        @wraps(shutdown)
        def drain_and_shutdown(timeout: float | None = None) -> Any:
            # vLLM calls this in a thread on SIGTERM, and once more in the server's own at the very end.
            if not self.begun and threading.get_ident() != server_thread:
                began_s = time.monotonic()
                self._drain(timeout or 0.0, loop)
                timeout = None if timeout is None else max(1.0, timeout - (time.monotonic() - began_s))
            return shutdown(timeout=timeout)

        engine_client.shutdown = drain_and_shutdown

    def _drain(self, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.begun = True
        # Over several API servers stands a parent that kills them when the time is up, so the errors go out before.
        self._wait(timeout_s - min(_GOODBYE_S, timeout_s / 4))
        loop.call_soon_threadsafe(self._end)
        self._wait(_GOODBYE_S)

    def _wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while self._tasks and time.monotonic() < until_s:
            time.sleep(_POLL_S)

    def _end(self) -> None:
        self._over = True
        for task in self._tasks:
            task.cancel()

    def refusal(self) -> Refusal:
        """What everybody new is told."""
        headers = ((b"retry-after", str(RETRY_AFTER_S).encode()), (b"connection", b"close"))
        return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, _MESSAGE, headers)

    async def serve(
        self, app: Any, scope: Any, receive: Any, send: Any, given_up: Callable[[], Refusal | None] = lambda: None
    ) -> None:
        """Serve a request that came in, to its end or to ours. Raises Refusal where no answer has begun by then.

        given_up: what to tell the caller of a request that was cancelled for its own sake; None: it was not.
        """
        begun: dict[str, bytes] = {}

        async def note_and_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                begun.update({"type": b"", **{name.lower().decode("latin-1"): v for name, v in message["headers"]}})
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await app(scope, receive, note_and_send)
        except asyncio.CancelledError:
            refusal = self.refusal() if self._over else given_up()
            if refusal is None or scope["type"] != "http":
                raise
            if not begun:
                raise refusal from None
            await send({"type": "http.response.body", "body": _last_words(begun, refusal), "more_body": False})
        finally:
            self._tasks.discard(task)


def _last_words(headers: dict[str, bytes], refusal: Refusal) -> bytes:
    if not headers.get("content-type", b"").startswith(b"text/event-stream"):
        return b""
    error = json.dumps(error_body(refusal.status, refusal.message))
    return f"data: {error}\n\ndata: [DONE]\n\n".encode()
