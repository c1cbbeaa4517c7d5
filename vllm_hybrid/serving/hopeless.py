"""Online requests for which it is too late: refused when they come (`reject_ttft_s`), or given up (`on_hopeless`).

Both look at the requests of this API server that wait for a first token, as they pass vLLM's `OutputProcessor`. Who is
predicted to wait too long gets a 503 with Retry-After before anything is done for it. Whose first token did not come
within the target is given up, if the settings say so: the HTTP request is cancelled, which makes vLLM abort it, and is
answered with the same 503, or an error event where its stream has begun. Of an HTTP request with several prompts the
first first token counts. The settings of the start are in force.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.first_tokens import FirstTokens
from vllm_hybrid.serving.door import Refusal
from vllm_hybrid.serving.identity import CALL, Call, Identity
from vllm_hybrid.serving.latency import owner_of

_LEAST_S, _MOST_S = 1, 60  # when to come back


class Hopeless:
    """Of one API server. clock: seconds that never go back."""

    def __init__(self, config: HybridConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = config.overload.reject_ttft_s
        gives_up = config.overload.on_hopeless == "reject"
        self._ttft_s = config.slo.online.ttft_s if gives_up else None
        self._clock = clock
        self._pace = FirstTokens()
        self.needed = self._limit_s is not None or gives_up

    def watch(self, output_processor: Any) -> None:
        """Listen to what goes through this output processor of vLLM."""
        if not self.needed:
            return
        add_request, update = output_processor.add_request, output_processor._update_stats_from_output

        @wraps(add_request)
        def add_and_wait(request: Any, *args: Any, **kwargs: Any) -> Any:
            result = add_request(request, *args, **kwargs)
            state, call = output_processor.request_states.get(request.request_id), CALL.get()
            if state is not None and call is not None:
                state.hybrid_call = call
                self.entered(call, request.request_id, request.sampling_params is not None, *owner_of(request))
            return result

        @wraps(update)
        def update_and_note(state: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            call = getattr(state, "hybrid_call", None)
            if call is not None and output.new_token_ids:
                self.started(call, state.request_id)
            return update(state, output, *args, **kwargs)

        output_processor.add_request = add_and_wait
        output_processor._update_stats_from_output = update_and_note

    def entered(self, call: Call, request_id: str, generates: bool, lane: str, client: str) -> None:
        """A request of the call goes to the engine."""
        if not generates:
            call.answered = True
        elif lane == "online":
            call.unanswered[request_id] = client
            self._pace.entered(client, self._clock())

    def started(self, call: Call, request_id: str) -> None:
        """The request has its first token, or a later one."""
        client = call.unanswered.pop(request_id, None)
        if client is not None:
            call.answered = True
            self._pace.started(client, self._clock())

    def release(self, call: Call) -> None:
        """The HTTP request has ended."""
        call.answered = True
        for client in call.unanswered.values():
            self._pace.left(client)
        call.unanswered.clear()

    def too_long_s(self, identity: Identity) -> float | None:
        """Seconds by which the first token of a request that comes now would be too late; None if it would not be."""
        if self._limit_s is None or identity.lane != "online":
            return None
        over_s = self._pace.predicted_s(identity.client) - self._limit_s
        return over_s if over_s > 0 else None

    def begin(self, call: Call, identity: Identity, given_up: Callable[[], None]) -> None:
        """The call comes in; `given_up` is told if its first token does not come in time."""
        if self._ttft_s is not None and identity.lane == "online" and call.task is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._ttft_s, self._give_up, call, identity.client, given_up)

    def _give_up(self, call: Call, client: str, given_up: Callable[[], None]) -> None:
        if call.answered or call.task is None:
            return
        wait_s = self._pace.predicted_s(client) - (self._ttft_s or 0.0)
        call.retry_after_s = min(_MOST_S, max(_LEAST_S, math.ceil(wait_s)))
        call.given_up = True
        given_up()
        call.task.cancel()


def refusal(call: Call) -> Refusal | None:
    """What the caller is told if the call was given up."""
    if not call.given_up:
        return None
    message = f"no first token within the target: try again in {call.retry_after_s} s"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, ((b"retry-after", str(call.retry_after_s).encode()),))
