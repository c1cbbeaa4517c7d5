"""Who is admitted next: in order of arrival, or the client that was served least.

A request that was admitted before and lost its memory comes first in every order, as in vLLM: none of these policies
preempts, and all of them mean an admission to be final.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.locality import longest_prefix_first
from vllm_hybrid.policy.plan import StepView, cached_tokens
from vllm_hybrid.policy.request import Lane, RequestView


def by_arrival(view: StepView, lane: Lane = Lane.ONLINE) -> Generator[RequestView, None, None]:
    """First come, first served: the order of a policy that tells no clients apart."""
    yield from sorted(view.waiting.resuming(lane), key=lambda v: v.arrival_s)
    with contextlib.closing(view.waiting.walk(lane, {}, ())) as walk:
        yield from walk


class LeastServed:
    """The client with the smallest counter next: VTC, or least counter first, as the counters have it."""

    def __init__(self, counters: VirtualCounters, quantum: float = 0.0) -> None:
        self._counters = counters
        self._quantum = quantum

    def __call__(self, view: StepView) -> Generator[RequestView, None, None]:
        """The paper charges a prompt at admission; what is not computed yet is therefore added to the counters."""
        yield from view.waiting.resuming(Lane.ONLINE)
        promised = Groups.of(view.running).promised(self._counters)
        walk = view.waiting.walk(Lane.ONLINE, promised, ())
        if self._quantum:
            walk = longest_prefix_first(walk, self._counters, promised, self._quantum, cached_tokens(view), ())
        with contextlib.closing(walk):
            yield from walk
