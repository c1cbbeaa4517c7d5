"""Admission: which waiting requests are offered to a step, in which order, with which chunk.

Online before offline. In a lane: first those that ran before and lost their memory, then VTC order. A request that
does not fit closes its client's line for the step and lets other clients pass, as long as they are not ahead of its
client by more than its own cost, and at most `MAX_BYPASSES` times: from then on it stops the lane until it fits, so a
large prompt waits for a bounded amount of smaller ones. An online
request that does not fit stops all offline admissions. An offline victim comes back after its rest
(`preempt_interval_s`) where it can keep its memory for as long again, or when nothing else would run.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from vllm_hybrid.policy.comeback import Comeback
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.locality import longest_prefix_first
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS, Budget
from vllm_hybrid.policy.plan import StepPlan, StepView, cached_tokens
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.policy.value import LATE_SHARE
from vllm_hybrid.policy.waits import Reason

MAX_BYPASSES = 64
_SHUT_STEPS = 10  # without another look at requests that found no memory, while nobody leaves; as in VTC's engine
_MAX_MISFITS = 4  # requests that did not fit, per lane and step: each costs a prefix-cache lookup
_LEAST_OFFLINE_CHUNK = 16  # tokens: crumbs of a step would fill the slots with prompts that hardly advance
_OFFLINE_RESERVE = 0.05  # of the pool: offline work leaves it to the growth of what runs


@dataclass
class Admission:
    """Offers waiting requests one at a time; the engine admits or passes over each before it asks for the next."""

    view: StepView
    plan: StepPlan
    predictor: StepTimePredictor
    promised: dict[ClientKey, float]
    online: Budget
    offline: Budget | None  # None: no offline admission in this step
    reserve_blocks: int
    interval_s: float
    online_waits: bool  # an online request waits that could come in
    quantum: float = 0.0  # of locality
    burst_blocks: int = 0  # that offline work leaves to online requests that will come
    offline_first: bool = False  # nobody online comes in before an offline request did
    admitted: int = 0
    only_memory: bool = True  # so far nothing but memory kept a request out

    def __iter__(self) -> Iterator[RequestView]:
        yield from self._both_lanes()
        reasons = self.plan.held.values()
        if self.only_memory and Reason.MEMORY in reasons and {*reasons} <= {Reason.MEMORY, Reason.ONLINE_FIRST}:
            self.plan.shut_steps = _SHUT_STEPS

    def _both_lanes(self) -> Generator[RequestView, None, None]:
        if self.offline_first and self.offline is not None and self.view.waiting.lane_length(Lane.OFFLINE):
            yield from self._lane(Lane.OFFLINE, self.offline, self.reserve_blocks)
            if not self.admitted and self._something_runs():
                self.plan.held[Lane.ONLINE] = Reason.MEMORY
                return
        online_is_in = yield from self._lane(Lane.ONLINE, self.online, self.reserve_blocks)
        if self.offline is None or not online_is_in:
            self.plan.held[Lane.OFFLINE] = Reason.ONLINE_FIRST
        else:
            reserve = self.reserve_blocks + max(self.burst_blocks, int(_OFFLINE_RESERVE * self.view.total_blocks))
            yield from self._lane(Lane.OFFLINE, self.offline, reserve)

    def _lane(self, lane: Lane, budget: Budget, reserve: int) -> Generator[RequestView, None, bool]:
        """Offer a lane's requests; returns whether no request of the lane stayed out for want of room or budget."""
        if not self.view.waiting.lane_length(lane):
            return True
        passed: list[RequestView] = []
        closed: set[ClientKey] = set()
        counters = self.view.waiting.counters
        # Closed at once when the step ends, also by an exception: an open walk keeps clients out of the next one.
        with contextlib.closing(self._newcomers(lane, closed)) as newcomers:
            for request in self._in_line(lane, newcomers):
                if passed and passed[-1].started and request.started and lane is Lane.OFFLINE:
                    continue  # victims come back one after the other
                barred = request.bypassed >= MAX_BYPASSES
                if barred:
                    self.plan.reserve_blocks = None
                rest = self._comeback.reserve_blocks(request) if self._comes_back(request) else 0
                waited_for = lane is Lane.ONLINE and request.started  # somebody waits for its next token
                tokens = self.view.admissible_tokens(request, rest + (0 if barred or waited_for else reserve))
                if not tokens:
                    if not self.view.ready(request):
                        self.only_memory = False
                        continue  # could not run anyway: it stops nobody
                    passed.append(request)
                    if not rest:  # else its client's other requests may use what it must not
                        closed.add(request.key)
                    self.plan.held[lane] = Reason.MEMORY
                    if barred or len(passed) >= _MAX_MISFITS:
                        return False
                    continue
                done_tokens = max(0, request.missing_tokens - tokens)
                tokens = min(tokens, self.view.max_chunk_tokens)
                chunk = min(tokens, budget.prefill_tokens(self.predictor, done_tokens))
                least = min(tokens, _LEAST_OFFLINE_CHUNK) if lane is Lane.OFFLINE else 1
                if chunk < least:
                    if self._something_runs():
                        self.plan.held[lane] = Reason.BUDGET
                        return False
                    chunk = min(tokens, UNTRAINED_TOKENS)
                if passed and not self._may_pass(request, passed):
                    return False
                if chunk < tokens:
                    self.plan.caps[request.request_id] = chunk
                self.only_memory = False
                try:
                    yield request
                finally:  # the engine does not ask again when this one filled the step
                    if taken := self.view.admitted_tokens(request):
                        chunk = min(chunk, taken)  # less, if a KV connector had more of it
                        self.admitted += 1
                        self._note_late(request)
                        budget.spend_chunk(self.predictor, chunk, done_tokens)
                        self._bypass(passed)
                        counters.add_promise(self._promised, request, request.missing_tokens)
                        if self._comes_back(request):
                            self._comeback.admitted(request)
                if any(other.bypassed >= MAX_BYPASSES for other in passed):
                    return False
        return not passed

    def _in_line(self, lane: Lane, newcomers: Iterator[RequestView]) -> Iterator[RequestView]:
        resuming = self._resuming(lane)
        behind = [v for v in resuming if v.stands_back_s > self.view.now_s]
        before = [v for v in resuming if v not in behind] if behind else resuming
        return itertools.chain(before, self._aged(lane), newcomers, behind)

    def _aged(self, lane: Lane) -> list[RequestView]:
        """A late request whose turn it is whatever it is worth."""
        waiting = self.view.waiting
        if lane is Lane.OFFLINE or waiting.urgency is None or waiting.since_late < LATE_SHARE:
            return []
        longest = waiting.longest_late()
        return [] if longest is None else [longest]

    def _note_late(self, request: RequestView) -> None:
        waiting = self.view.waiting
        if request.key[0] is Lane.ONLINE:
            waiting.since_late = 0 if request.late else waiting.since_late + 1

    def _newcomers(self, lane: Lane, closed: set[ClientKey]) -> Generator[RequestView, None, None]:
        walk = self.view.waiting.walk(lane, self.promised, closed)
        if not self.quantum:
            return walk
        counters, cached = self.view.waiting.counters, cached_tokens(self.view)
        return longest_prefix_first(walk, counters, self.promised, self.quantum, cached, closed)

    @functools.cached_property
    def _comeback(self) -> Comeback:
        return Comeback(self.view, self.plan.order, self.predictor, self.interval_s)

    @functools.cached_property
    def _promised(self) -> dict[ClientKey, float]:
        """`promised`, and what came in during the step."""
        return dict(self.promised)

    def _may_pass(self, request: RequestView, passed: list[RequestView]) -> bool:
        """Whether the request may come in past those that did not fit.

        Not once its client is ahead of theirs by what they cost: else a stream of small requests would keep every
        large one out of a full pool, at the price of `MAX_BYPASSES` requests for one.
        """
        counters, promised = self.view.waiting.counters, self._promised
        return all(
            counters.lead(request.key, other.key, promised) <= counters.promise(other, other.missing_tokens)
            for other in passed
        )

    @staticmethod
    def _comes_back(request: RequestView) -> bool:
        return request.disturbed_s > -math.inf and request.key[0] is Lane.OFFLINE

    @staticmethod
    def _bypass(passed: list[RequestView]) -> None:
        """Note that somebody was admitted past these."""
        for request in passed:
            request.bypassed += 1

    def _resuming(self, lane: Lane) -> list[RequestView]:
        victims = self.view.waiting.resuming(lane)
        if lane is Lane.ONLINE or not victims:
            return victims
        rested_s = self.view.now_s - self.interval_s
        rested = [v for v in victims if v.disturbed_s <= rested_s]
        if rested or self._something_else():
            if len(rested) < len(victims):
                self.plan.held[lane] = Reason.REST
            return rested
        return victims[:1]

    def _something_runs(self) -> bool:
        return self.admitted > 0 or len(self.plan.order) > len(self.plan.paused) or bool(self.plan.unpark)

    def _something_else(self) -> bool:
        """Whether the step has other work than offline requests that still rest."""
        waiting = self.view.waiting
        if self._something_runs() or self.online_waits:
            return True
        return waiting.lane_length(Lane.OFFLINE) > len(waiting.resuming(Lane.OFFLINE))
