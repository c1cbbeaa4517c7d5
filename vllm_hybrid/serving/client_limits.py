"""The limits on waiting requests and on tokens per minute (`limits`), where requests arrive: HTTP and Python alike.

What goes to the engines and what comes back passes vLLM's `OutputProcessor`; there the requests without a first token
and the tokens of every client are counted. A request beyond a limit is refused before anything is done for it: to
vLLM's server a 429 with Retry-After, also for a stream; to a Python caller a ValueError. An HTTP request is looked at
once, however many prompts it holds, so a batch may exceed the limit by its own size. Each process counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.limits import TokenRate, limits_arriving, limits_of
from vllm_hybrid.serving.identity import CALL, Call
from vllm_hybrid.serving.latency import owner_of

_MANY_CLIENTS = 1024  # kept before those who hung up are looked for
_WAITING_RETRY_S = 1.0  # nobody knows when the next of its requests will be served


class LimitReached(ValueError):
    """The refusal, to a Python caller."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that a client has reached. reason: as the metrics call it."""

    reason: str
    message: str
    retry_after_s: float


class ClientBooks:
    """What the clients of this process have waiting, and the tokens they used."""

    def __init__(self, config: HybridConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._waiting: defaultdict[str, dict[str, Any]] = defaultdict(dict)  # client -> request -> its processor
        self._tokens = TokenRate()
        self._sweep_at = _MANY_CLIENTS

    def reached(self, client: str, ticket: str | None = None) -> Limit | None:
        """The limit that keeps the client from sending another request now.

        ticket: a name under which the request waits, if it may come, until it is known by its own.
        """
        limits = limits_of(self._config, client)
        if limits.tokens_per_minute is not None:
            retry_after_s = self._tokens.retry_after_s(client, limits.tokens_per_minute, self._clock())
            if retry_after_s is not None:
                used = f"client {client!r} has used up its {limits.tokens_per_minute} tokens of the last minute"
                return Limit("client_tokens", f"{used} (limits.tokens_per_minute)", retry_after_s)
        if limits.max_waiting is not None:
            if self._count(client) >= limits.max_waiting:
                full = f"client {client!r} has {limits.max_waiting} requests waiting, as many as it may"
                return Limit("client_waiting", f"{full} (limits.max_waiting)", _WAITING_RETRY_S)
            if ticket is not None:
                self._waiting[client][ticket] = None
        return None

    def _count(self, client: str) -> int:
        waiting = self._waiting.get(client)
        if not waiting:
            return 0
        gone = [i for i, processor in waiting.items() if processor is not None and i not in processor.request_states]
        for request_id in gone:  # ended, or aborted, before a first token
            del waiting[request_id]
        return len(waiting)

    def _forget_gone(self) -> None:
        """Bound what is kept of clients who hung up and never came again: ids come from outside."""
        if len(self._waiting) >= self._sweep_at:
            for client in [client for client in self._waiting if not self._count(client)]:
                del self._waiting[client]
            self._sweep_at = max(_MANY_CLIENTS, 2 * len(self._waiting))

    def entered(self, client: str, request_id: str, prompt_tokens: int, processor: Any) -> None:
        """A request goes to the engine."""
        self._forget_gone()
        self._waiting[client][request_id] = processor
        self._tokens.add(client, prompt_tokens, self._clock())

    def started(self, client: str, request_id: str) -> None:
        """The request has its first token."""
        waiting = self._waiting.get(client)
        if waiting is not None:
            waiting.pop(request_id, None)
            if not waiting:
                del self._waiting[client]

    def used(self, client: str, tokens: int) -> None:
        """The client's requests got output tokens."""
        self._tokens.add(client, tokens, self._clock())


_books: ClientBooks | None = None


def install(config: HybridConfig) -> None:
    """Keep the limits of these settings in this process; settings without any, of another engine, leave them alone."""
    global _books
    if limits_arriving(config):
        _books = ClientBooks(config)
        _watch_output_processors()


def check_limits(client: str) -> None:
    """Raise LimitReached if the client has reached a limit: for the Python API."""
    found = None if _books is None else _books.reached(client)
    if found is not None:
        raise LimitReached(f"{found.message}: try again in {math.ceil(found.retry_after_s)} s")


def reached(call: Call, client: str) -> Limit | None:
    """The limit that keeps the client from sending this HTTP request now; it waits from here on."""
    if _books is None:
        return None
    ticket = f"call {id(call)}"
    found = _books.reached(client, ticket)
    if found is None:
        call.ticket = (client, ticket)
    return found


def leave(call: Call) -> None:
    """The HTTP request is known by its prompts now, or it is over."""
    if _books is not None and call.ticket is not None:
        _books.started(*call.ticket)


@cache
def _watch_output_processors() -> None:
    """Count what goes to the engines and what comes back."""
    from vllm.v1.engine.output_processor import OutputProcessor

    add_request, update = OutputProcessor.add_request, OutputProcessor._update_stats_from_output

    @wraps(add_request)
    def add_and_count(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = add_request(self, request, *args, **kwargs)
        if _books is not None:
            client = owner_of(request)[1]
            state = self.request_states.get(request.request_id)
            if state is not None:
                _books.entered(client, request.request_id, state.prompt_len, self)
                state.hybrid_client = client
            call = CALL.get()
            if call is not None:
                leave(call)
        return result

    @wraps(update)
    def update_and_count(self: Any, state: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        if _books is not None and (client := getattr(state, "hybrid_client", None)) is not None:
            _books.started(client, state.request_id)
            _books.used(client, len(output.new_token_ids))
        return update(self, state, output, *args, **kwargs)

    OutputProcessor.add_request = add_and_count
    OutputProcessor._update_stats_from_output = update_and_count
