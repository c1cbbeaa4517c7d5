"""Requests per minute: the limit that most providers set, as compared with in the VTC paper (arXiv 2401.00588).

A request is refused at its arrival if its client had `limit` requests accepted within the last minute. Those accepted
are served in order of arrival, whoever sent them. The limit is the same at every load: it refuses work that an idle
machine could do, and lets everybody wait for whoever stays below it.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import by_arrival

WINDOW_S = 60.0


class RequestRate:
    """Counts accepted requests per client. Memory: one time per request accepted within the last minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._accepted: OrderedDict[str, deque[float]] = OrderedDict()  # the client accepted last stands last

    def retry_after_s(self, client: str, now_s: float) -> float | None:
        """Take a request in (None), or say in how many seconds the client may try again. `now_s` never goes back."""
        self._forget(now_s)
        times = self._accepted.setdefault(client, deque())
        while times and now_s - times[0] > WINDOW_S:
            times.popleft()
        if len(times) >= self._limit:
            return WINDOW_S - (now_s - times[0])
        times.append(now_s)
        self._accepted.move_to_end(client)
        return None

    def _forget(self, now_s: float) -> None:
        while self._accepted:
            client, times = next(iter(self._accepted.items()))
            if now_s - times[-1] <= WINDOW_S:
                return
            del self._accepted[client]


class RpmPlanner(BatchPlanner):
    """In order of arrival; refusing is done before a request reaches the engine."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(by_arrival)
