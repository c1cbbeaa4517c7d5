"""Why requests wait: every moment of a wait is put down to one reason, at no cost per waiting request.

A request waits either behind others of its own client (`own_queue`, or `relegated` once it is late), or it is the first
of its client's line, and then what kept its lane back keeps it back: after every step each lane has one `Reason`, and
the books keep the seconds that each lane has spent on each. What a first request waited for is the difference of two
such readings, taken when it became first and when it left. So a step costs O(1), a request O(1) when it enters, becomes
first and leaves, and the reasons of a wait add up to the wait itself, whatever happened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from vllm_hybrid.policy.request import Lane, RequestView


class Reason(StrEnum):
    """What keeps a request waiting."""

    OWN_QUEUE = "own_queue"
    RELEGATED = "relegated"
    FAIR_SHARE = "fair_share"
    BUDGET = "budget"
    MEMORY = "memory"
    SLOTS = "slots"
    ONLINE_FIRST = "online_first"
    REST = "rest"
    NEXT_STEP = "next_step"
    NOT_READY = "not_ready"
    PAUSED = "paused"


REMEDIES: dict[Reason, str] = {
    Reason.OWN_QUEUE: "earlier requests of the same client are admitted, or the client sends less at a time",
    Reason.RELEGATED: "those of the same client that can still be in time are admitted, or it is a late one's turn",
    Reason.FAIR_SHARE: "clients that were served less, for their weight, have been admitted; or a larger weight",
    Reason.BUDGET: "running requests leave tokens or seconds of a step; or a larger latency target",
    Reason.MEMORY: "running requests finish and free KV blocks; or a larger KV cache, or smaller requests",
    Reason.SLOTS: "a running request finishes; or a larger --max-num-seqs",
    Reason.ONLINE_FIRST: "the online requests that wait have been admitted",
    Reason.REST: "its rest is over: it lost its memory within lanes.offline.preempt_interval_s",
    Reason.NEXT_STEP: "the step under way ends",
    Reason.NOT_READY: "its grammar is compiled, or its last output delivered",
    Reason.PAUSED: "the operator resumes the engine",
}

_ROUNDING_S = 1e-9  # of differences between sums: a reason that did not apply must not come out below zero
_SECONDS = dict.fromkeys(Reason, 0.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """When a request became the first of its line, and what its lane had spent on each reason until then."""

    at_s: float
    spent_s: dict[Reason, float]


class WaitBooks:
    """The reasons of both lanes, and the waits of their requests."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._reason = [Reason.NEXT_STEP for _ in Lane]
        self._since_s = [now_s for _ in Lane]
        self._spent_s = [dict(_SECONDS) for _ in Lane]
        self.finished_s: list[dict[Reason, float]] = [dict(_SECONDS) for _ in Lane]  # waits that ended, for the metrics

    def reason(self, lane: Lane) -> Reason:
        """What keeps the first requests of the lane's clients back now."""
        return self._reason[lane]

    def decided(self, lane: Lane, reason: Reason, now_s: float) -> None:
        """A step was scheduled: from now on this keeps the lane back."""
        if reason is not self._reason[lane]:
            self._spent_s[lane][self._reason[lane]] += now_s - self._since_s[lane]
            self._reason[lane], self._since_s[lane] = reason, now_s

    # -- one request -----------------------------------------------------------------------------------------------
    def entered(self, view: RequestView, now_s: float) -> None:
        """The request joins its client's line."""
        if math.isnan(view.left_s):
            view.waited_s = None  # that of an earlier wait
        else:  # it was taken out, but did not come in
            _add(view, Reason.NOT_READY, now_s - view.left_s)
            view.left_s = math.nan
        view.waits_since_s = now_s

    def became_first(self, view: RequestView, now_s: float) -> None:
        """Nobody stands before it in its client's line any more."""
        view.first_mark = Mark(now_s, self._spent(view.key[0], now_s))

    def lost_first(self, view: RequestView, now_s: float) -> None:
        """Somebody was put before it."""
        view.waited_s = self.waited_s(view, now_s)
        view.first_mark, view.waits_since_s = None, now_s

    def left(self, view: RequestView, now_s: float) -> None:
        """The request is taken out of its line."""
        view.waited_s = self.waited_s(view, now_s)
        view.first_mark, view.waits_since_s, view.left_s = None, math.nan, now_s

    def came_in(self, view: RequestView) -> None:
        """The request that was taken out runs now: its wait is over, and stays to be told."""
        view.left_s = math.nan
        for reason, seconds in (view.waited_s or {}).items():
            self.finished_s[view.key[0]][reason] += seconds

    def waited_s(self, view: RequestView, now_s: float) -> dict[Reason, float]:
        """Seconds of the request's wait, or of its last one if it runs, for each reason; they add up to the wait."""
        waited_s = dict(view.waited_s or {})
        if not math.isnan(view.left_s):
            return _plus(waited_s, Reason.NOT_READY, now_s - view.left_s)
        if math.isnan(view.waits_since_s):
            return waited_s
        mark, lane = view.first_mark, view.key[0]
        if mark is None:
            return _behind(waited_s, view, now_s)
        _behind(waited_s, view, mark.at_s)
        for reason, spent_s in self._spent(lane, now_s).items():
            _plus(waited_s, reason, spent_s - mark.spent_s[reason])
        return waited_s

    def _spent(self, lane: Lane, now_s: float) -> dict[Reason, float]:
        """Seconds that the lane has spent on each reason until now."""
        spent_s = dict(self._spent_s[lane])
        spent_s[self._reason[lane]] += now_s - self._since_s[lane]
        return spent_s


def _behind(waited_s: dict[Reason, float], view: RequestView, until_s: float) -> dict[Reason, float]:
    """Its wait behind others of its client: as one of them, and since it was late as one that is relegated."""
    late_s = until_s if math.isnan(view.late_s) else min(until_s, max(view.waits_since_s, view.late_s))
    _plus(waited_s, Reason.OWN_QUEUE, late_s - view.waits_since_s)
    return _plus(waited_s, Reason.RELEGATED, until_s - late_s)


def _add(view: RequestView, reason: Reason, seconds: float) -> None:
    view.waited_s = _plus(view.waited_s or {}, reason, seconds)


def _plus(waited_s: dict[Reason, float], reason: Reason, seconds: float) -> dict[Reason, float]:
    if seconds > _ROUNDING_S:
        waited_s[reason] = waited_s.get(reason, 0.0) + seconds
    return waited_s
