"""Limits of single clients, whatever the load: what they may run, what they may leave waiting, tokens per minute.

They need no theory of fairness and give no share; they keep what one client can do to a server small. Running requests
are limited where requests are admitted, the others where they arrive.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from vllm_hybrid.config import HybridConfig

WINDOW_S = 60.0
_SLICE_S = 1.0  # tokens of so many seconds are remembered together


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit."""

    max_running: int | None = None
    max_waiting: int | None = None
    tokens_per_minute: int | None = None

    @property
    def at_the_front(self) -> tuple[int | None, int | None]:
        """Those that are kept where requests arrive."""
        return self.max_waiting, self.tokens_per_minute


def limits_of(config: HybridConfig, client: str) -> Limits:
    """The client's own limits, and the general ones where it has none."""
    given = config.fairness.limits.model_dump(exclude_none=True)
    if client in config.clients:
        given |= config.clients[client].limits.model_dump(exclude_none=True)
    return Limits(**given)


def limits_running(config: HybridConfig) -> bool:
    """Whether anybody's running requests are limited."""
    everybody = (config.fairness.limits, *(client.limits for client in config.clients.values()))
    return any(limits.max_running is not None for limits in everybody)


def limits_arriving(config: HybridConfig) -> bool:
    """Whether anybody's requests may be refused at their arrival."""
    everybody = (config.fairness.limits, *(client.limits for client in config.clients.values()))
    return any((limits.max_waiting or limits.tokens_per_minute) is not None for limits in everybody)


class TokenRate:
    """Tokens of each client within the last minute, by the second. Memory: clients of the last minute."""

    def __init__(self) -> None:
        self._slices: OrderedDict[str, deque[list[float]]] = OrderedDict()  # the client counted last stands last
        self._totals: dict[str, float] = {}

    def add(self, client: str, tokens: int, now_s: float) -> None:
        """The client used tokens. `now_s` never goes back."""
        self._forget(now_s)
        slices = self._slices.setdefault(client, deque())
        if not slices or now_s - slices[-1][0] >= _SLICE_S:
            slices.append([now_s, 0])
        slices[-1][1] += tokens
        self._totals[client] = self._totals.get(client, 0) + tokens
        self._slices.move_to_end(client)

    def retry_after_s(self, client: str, limit: int, now_s: float) -> float | None:
        """None if the client used less than `limit` within the last minute, else in how many seconds it will have."""
        self._forget(now_s)
        self._expire(client, now_s)
        total = self._totals.get(client, 0)
        for began_s, tokens in self._slices.get(client, ()):
            if total < limit:
                break
            total -= tokens
            until_s = began_s + WINDOW_S + _SLICE_S - now_s
            if total < limit:
                return until_s
        return None

    def _expire(self, client: str, now_s: float) -> None:
        slices = self._slices.get(client)
        while slices and now_s - slices[0][0] >= WINDOW_S + _SLICE_S:
            self._totals[client] -= slices.popleft()[1]

    def _forget(self, now_s: float) -> None:
        while self._slices:
            client = next(iter(self._slices))
            self._expire(client, now_s)
            if self._slices[client]:
                return
            del self._slices[client], self._totals[client]
