"""Overload at the front: a server that holds all it should holds nothing more, and offline work is turned away first.

Every prompt in the server's hands takes a place until its HTTP request ends. Whoever comes while `most` places are
taken is refused, an offline request already at `offline_fraction` of them; so an offline backlog, however long, leaves
the rest of the places to online requests. Looking and taking is one act, so callers that come at once cannot slip in
beyond the limit. One HTTP request is let in or refused as a whole, and a batch may overshoot by its own prompts: a
batch larger than `most` would otherwise never get in.
"""

from __future__ import annotations

import math

_MEMORY = 0.9  # of the smoothed time between two departures
_LEAST_S, _MOST_S = 1.0, 60.0  # when to come back


class Overload:
    """The places of one API server. Times are seconds on a clock that never goes back."""

    def __init__(self, most: int | None, offline_fraction: float) -> None:
        self._most = math.inf if most is None else float(most)
        self._most_offline = max(1.0, math.floor(self._most * offline_fraction)) if most is not None else math.inf
        self._gap_s = math.nan  # between two departures, smoothed
        self._last_left_s = math.nan
        self.taken = 0

    def retry_after_s(self, offline: bool) -> float | None:
        """None if there is a place, else in how many seconds there may be one, going by how places become free."""
        most = self._most_offline if offline else self._most
        if self.taken < most:
            return None
        wanted_s = (self.taken - most + 1) * self._gap_s
        return _LEAST_S if math.isnan(wanted_s) else min(_MOST_S, max(_LEAST_S, wanted_s))

    def take(self) -> None:
        """A prompt came in."""
        self.taken += 1

    def leave(self, places: int, now_s: float) -> None:
        """An HTTP request with so many prompts ended."""
        if not places:
            return
        self.taken -= places
        gap_s = (now_s - self._last_left_s) / places
        if not math.isnan(gap_s):
            self._gap_s = gap_s if math.isnan(self._gap_s) else _MEMORY * self._gap_s + (1 - _MEMORY) * gap_s
        self._last_left_s = now_s
