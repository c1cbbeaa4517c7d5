"""Deadlines of online tokens, and the seconds a step may take so that none is missed.

The first token of a request is due `ttft_s` after arrival; the next one `tbt_s` after the later of the last one's
deadline and its delivery (gap = "deadline": an early token is credit) or after its delivery (gap = "strict"). The
slack of a step is the time to the earliest deadline among the online requests that decode; the step may take slack /
(1 + margin), where the margin is the predictor's own error, learned (QoServe divides by a fixed 1.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from vllm_hybrid.config import SloConfig
from vllm_hybrid.policy.request import RequestView


class Deadlines:
    """Keeps `deadline_s` of online requests up to date."""

    __slots__ = ("_strict", "_tbt_s", "_ttft_s")

    def __init__(self, slo: SloConfig) -> None:
        self._ttft_s = math.inf if slo.online.ttft_s is None else slo.online.ttft_s
        self._tbt_s = math.inf if slo.online.tbt_s is None else slo.online.tbt_s
        self._strict = slo.online.gap == "strict"

    @property
    def between_tokens(self) -> bool:
        """Whether decodes have deadlines."""
        return self._tbt_s < math.inf

    def first_token(self, view: RequestView) -> float:
        """When the first token of a request is due; inf without a TTFT target."""
        return view.arrival_s + self._ttft_s

    def earliest(self, decodes: Iterable[RequestView], last_output_s: float, returns_s: float) -> float:
        """Earliest deadline among the tokens that a step over `decodes` would produce.

        last_output_s: when the last tokens were delivered; returns_s: when those of the steps under way will be.
        """
        tbt_s, strict = self._tbt_s, self._strict
        earliest = math.inf
        for view in decodes:
            fresh = view.output_tokens - view.dated_tokens
            if fresh or view.deadline_s != view.deadline_s:
                self._advance(view, fresh, last_output_s if fresh else returns_s)
            if not view.in_flight:
                due = view.deadline_s
            elif strict:
                due = returns_s + tbt_s
            else:
                due = max(view.deadline_s, returns_s) + tbt_s * view.in_flight
            if due < earliest:
                earliest = due
        return earliest

    def _advance(self, view: RequestView, fresh: int, delivered_s: float) -> None:
        """Account for `fresh` tokens delivered since the last look; the youngest at `delivered_s`."""
        if fresh:
            view.last_token_s = delivered_s
        if view.dated_tokens == 0:
            view.deadline_s = view.arrival_s + self._ttft_s
        if self._strict or math.isinf(view.deadline_s):  # without a TTFT target the clock starts at the first look
            view.deadline_s = delivered_s + (self._tbt_s if fresh else 0.0)
        elif fresh:
            early = view.deadline_s + self._tbt_s * (fresh - 1)
            view.deadline_s = max(early, delivered_s) + self._tbt_s
        view.dated_tokens = view.output_tokens
