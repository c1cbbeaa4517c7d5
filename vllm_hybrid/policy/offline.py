"""Offline work fills what online work leaves of a step: in tokens, and in predicted seconds.

Between clients the smallest virtual counter goes first; running decodes come before running prefills, which get what
is left in one chunk. Who does not fit is paused: it keeps its blocks, loses nothing, and stands last in line for
them. (HyGen, arXiv 2501.14808, phase 2, with the marginal cost of each decode and chunk.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import RequestView

UNTRAINED_TOKENS = 64  # most offline tokens in a step while the predictor knows nothing and a target is set


@dataclass(slots=True)
class Budget:
    """What is left of a step. floor_tokens: granted whatever the seconds say.

    step: what the step computes already, by which the price of more follows; the budgets of a step share it.
    """

    tokens: int
    seconds: float = math.inf
    floor_tokens: int = 0
    step: StepWork = field(default_factory=StepWork)

    def prefill_tokens(self, predictor: StepTimePredictor, done_tokens: int) -> int:
        """Most prefill tokens that fit, after `done_tokens` of the same request; never negative."""
        if self.seconds == math.inf:
            return max(0, self.tokens)
        within = max(self.floor_tokens, predictor.prefill_tokens_within(self.seconds, done_tokens, self.step))
        return max(0, self.tokens if within >= self.tokens else int(within))

    def spend_chunk(self, predictor: StepTimePredictor, tokens: int, done_tokens: int) -> float:
        """Take a prefill chunk out; returns its seconds, none where no time is kept."""
        seconds = 0.0
        if self.seconds < math.inf:
            seconds = predictor.prefill_seconds(tokens, done_tokens, self.step)
        self.step.prefill_tokens += tokens
        self.step.prefills += 1
        self._spend(tokens, seconds)
        return seconds

    def spend_decode(self, tokens: int, context_tokens: int, seconds: float) -> None:
        """Take a decode out."""
        self.step.decodes += 1
        self.step.context_tokens += context_tokens
        self._spend(tokens, seconds)

    def _spend(self, tokens: int, seconds: float) -> None:
        self.tokens -= tokens
        self.seconds -= seconds
        self.floor_tokens = max(0, self.floor_tokens - tokens)


@dataclass(slots=True)
class Filling:
    """Offline requests that run in a step, and those that pause."""

    run: list[RequestView] = field(default_factory=list)
    paused: list[RequestView] = field(default_factory=list)
    caps: dict[str, int] = field(default_factory=dict)
    tokens: int = 0


class OfflineFiller:
    """Decides which running offline requests get tokens in a step."""

    def __init__(self, predictor: StepTimePredictor, counters: VirtualCounters) -> None:
        self._predictor = predictor
        self._counters = counters

    def fill(
        self,
        decodes: Sequence[RequestView],
        prefills: Sequence[RequestView],
        budget: Budget,
        view: StepView,
        at_least_one: bool,
        with_decodes: bool = True,
        chunk_limit: Callable[[Budget], int] | None = None,
    ) -> Filling:
        """Fill `budget`, spending from it.

        at_least_one: nothing else runs, so the first request runs in any case. with_decodes: else decodes pause.
        chunk_limit: most tokens of chunks, asked for when the decodes are in.
        """
        filling, decode_tokens = Filling(), view.decode_tokens
        if not with_decodes:
            filling.paused.extend(decodes)
            decodes = ()
        if budget.seconds == math.inf and budget.tokens >= len(decodes) * decode_tokens:
            filling.run.extend(decodes)
            filling.tokens = len(decodes) * decode_tokens
            budget.tokens -= filling.tokens
        else:
            self._decodes(filling, self._counters.fairly(decodes), budget, decode_tokens, at_least_one)
        if chunk_limit is not None:
            budget.tokens = min(budget.tokens, chunk_limit(budget))
        self._prefills(filling, self._counters.fairly(prefills), budget, view.max_chunk_tokens, at_least_one)
        return filling

    def _decodes(
        self, filling: Filling, views: Sequence[RequestView], budget: Budget, decode_tokens: int, force: bool
    ) -> None:
        price = self._predictor.decode_seconds if budget.seconds < math.inf else None
        for view in views:
            seconds = price(view.computed_tokens, budget.step) if price else 0.0
            fits = decode_tokens <= budget.tokens and seconds <= budget.seconds
            if fits or (force and not filling.run):
                filling.run.append(view)
                filling.tokens += decode_tokens
                budget.spend_decode(decode_tokens, view.computed_tokens, seconds)
            else:
                filling.paused.append(view)

    def _prefills(
        self, filling: Filling, views: Sequence[RequestView], budget: Budget, limit: int, force: bool
    ) -> None:
        for view in views:
            wanted = min(view.missing_tokens, limit)
            tokens = min(wanted, budget.prefill_tokens(self._predictor, view.computed_tokens))
            if tokens < 1 and force and not filling.run:
                tokens = min(wanted, UNTRAINED_TOKENS)
            if tokens < 1:
                filling.paused.append(view)
                continue
            if tokens < wanted:
                filling.caps[view.request_id] = tokens
            filling.run.append(view)
            filling.tokens += tokens
            budget.spend_chunk(self._predictor, tokens, view.computed_tokens)
