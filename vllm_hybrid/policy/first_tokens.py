"""When a request that comes now will have its first token, told from outside the engine: by who waits, and the pace.

First tokens come at a pace that is measured while somebody waits for one. Between clients the engine shares fairly, so
before a client's n-th waiting request every other client has at most n of its own served: a light client is not told
to go away because a heavy one has a long queue.
"""

from __future__ import annotations

import math
from collections import Counter

_MEMORY = 0.9  # per moment at which first tokens came
_SAME_MOMENT_S = 0.001  # the first tokens of one step


class FirstTokens:
    """The requests of an API server that wait for their first token. Times: seconds on a clock that never goes back."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()  # by client
        self._since_s = math.nan  # the last first token came, or somebody began to wait
        self._seconds = self._tokens = 0.0  # of the pace, both smoothed

    def entered(self, client: str, now_s: float) -> None:
        """A request of the client goes to the engine."""
        if not self._waiting:
            self._since_s = now_s
        self._waiting[client] += 1

    def started(self, client: str, now_s: float) -> None:
        """One of the client's requests has its first token."""
        passed_s = now_s - self._since_s
        if passed_s >= _SAME_MOMENT_S:
            self._seconds, self._tokens = _MEMORY * self._seconds + passed_s, _MEMORY * self._tokens
            self._since_s = now_s
        self._tokens += 1.0
        self.left(client)

    def left(self, client: str) -> None:
        """One of the client's requests went without a first token."""
        self._waiting[client] -= 1
        if self._waiting[client] <= 0:
            del self._waiting[client]

    def predicted_s(self, client: str) -> float:
        """Seconds until a request of the client that comes now has its first token; 0 while no pace is known."""
        if not self._tokens:
            return 0.0
        own = self._waiting[client]
        before = sum(min(count, own + 1) for other, count in self._waiting.items() if other != client)
        return (own + before + 1) * self._seconds / self._tokens
