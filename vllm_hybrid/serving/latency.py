"""Times to first token and between tokens, by lane and client, as the API server sees them.

vLLM keeps such times for all requests together. Here every output that comes back from an engine is put down to the
client and lane of its request, streamed or not, and handed to the metrics once a second, when it is known which clients
have time series of their own. With ``--disable-log-stats`` vLLM keeps no times, and neither do we.
"""

from __future__ import annotations

from collections import defaultdict, deque
from functools import wraps
from typing import Any

from vllm_hybrid.config import IdentityError, request_identity

Owner = tuple[str, str]  # lane, client


class Latencies:
    """Times since they were last taken, by (lane, client)."""

    def __init__(self) -> None:
        self._first: defaultdict[Owner, list[float]] = defaultdict(list)
        self._between: defaultdict[Owner, list[float]] = defaultdict(list)

    def take(self) -> tuple[dict[Owner, list[float]], dict[Owner, list[float]]]:
        """Times to first tokens, times between tokens; and begin anew."""
        taken = (dict(self._first), dict(self._between))
        self._first.clear()
        self._between.clear()
        return taken

    def watch(self, output_processor: Any) -> None:
        """Listen to what comes back through this output processor of vLLM."""
        add_request, update = output_processor.add_request, output_processor._update_stats_from_output
        first, between = self._first, self._between

        @wraps(add_request)
        def add_owned(request: Any, *args: Any, **kwargs: Any) -> Any:
            result = add_request(request, *args, **kwargs)
            output_processor.request_states[request.request_id].hybrid_owner = owner_of(request)
            return result

        @wraps(update)
        def update_and_note(state: Any, output: Any, timestamp: Any, iteration_stats: Any) -> Any:
            if iteration_stats is None:
                return update(state, output, timestamp, iteration_stats)
            stats, prefilling, before = state.stats, state.is_prefilling, state.stats.last_token_ts
            result = update(state, output, timestamp, iteration_stats)
            if prefilling:
                first[state.hybrid_owner].append(stats.first_token_latency)
            else:
                between[state.hybrid_owner].append(timestamp - before)
            return result

        output_processor.add_request = add_owned
        output_processor._update_stats_from_output = update_and_note


def owner_of(request: Any) -> Owner:
    """The lane and client of a request on its way to the engine."""
    params = request.sampling_params
    extra = params.extra_args if params is not None else request.pooling_params.extra_kwargs
    try:
        return request_identity(extra)
    except IdentityError:  # the engine serves it, as nobody's, at the back: `Viewer`
        return "offline", "default"


class WorstGap:
    """The longest time between two tokens within the last minute, in slices of ten seconds."""

    SLICES, SLICE_S = 6, 10.0

    def __init__(self) -> None:
        self._slices: deque[tuple[int, float]] = deque()

    def note(self, seconds: float, now_s: float) -> None:
        """A gap of so many seconds ended."""
        at = int(now_s // self.SLICE_S)
        if self._slices and self._slices[-1][0] == at:
            seconds = max(seconds, self._slices.pop()[1])
        self._slices.append((at, seconds))

    def value(self, now_s: float) -> float:
        """The longest gap still remembered."""
        oldest = int(now_s // self.SLICE_S) - self.SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
        return max((seconds for _, seconds in self._slices), default=0.0)
