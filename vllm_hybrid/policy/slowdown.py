"""How much offline work may slow online decodes down, relative to the same online requests alone (HyGen's form of SLO).

What a step would take without offline work is predicted; what it really took is the gap that its online tokens saw.
Every online token earns `limit` of its own time alone and pays for what its gap was longer, so the mean gap ends up
that much longer. The balance is spent where it buys most. A step with few online decodes may be filled; one with many
takes only prefill tokens that cost next to nothing beside them, below the point where the GPU turns compute-bound. The
price between the two follows the balance, so it settles by itself. Online prompts that are not waiting long are
computed in such cheap chunks too: what their neighbours gain is earned.

Different from HyGen (arXiv 2501.14808): no budget is profiled for a workload; it follows the load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.latency_features import TOKEN_KNOTS

_HORIZON_S = 8.0  # the balance that is kept is about what was earned in so many seconds
_MOST_PRICE = 2.0  # of a step's own decodes, or of _MANY_DECODES: more is not saved up
_MANY_DECODES = 8
_CHEAP = 0.7  # of the seconds of full work: below the point where a chunk turns compute-bound
_TAIL_TOKENS = 64  # the last of a step, which cost what full work costs
_RICH = 1.5  # from so much on a chunk may cost what it costs


@dataclass(slots=True)
class Grant:
    """What offline work may add to a step. decodes: whether its decodes are worth their time, or only a chunk is.

    chunk_worth: what a second of full work is worth, relative to one of this step; None: no chunk is too dear.
    """

    decodes: bool = True
    chunk_worth: float | None = None


class Slowdown:
    """Keeps the balance of one engine. limit: 0.05 is 5 % longer."""

    def __init__(self, limit: float, predictor: StepTimePredictor) -> None:
        self._limit = limit
        self._predictor = predictor
        self._balance_s = 0.0  # seconds times online tokens
        self._seen_s = math.nan  # when the last tokens were delivered, as of the last plan
        self._tokens, self._alone_s = 0, 0.0  # of the last plan

    def settle(self, last_output_s: float) -> None:
        """Before a plan: what did the last one do to online gaps?"""
        gap_s = last_output_s - self._seen_s
        if self._tokens and gap_s > 0:
            most_s = _MOST_PRICE * self._limit * _HORIZON_S * max(_MANY_DECODES, self._tokens)
            earned_s = (1 + self._limit) * self._alone_s - gap_s
            self._balance_s = min(most_s, self._balance_s + self._tokens * earned_s)
        self._seen_s = last_output_s

    def note(self, tokens: int, context_tokens: float, prefill_tokens: int, most_tokens: int) -> None:
        """The online part of the step being planned: decodes with their context, and tokens of its prefill chunks.

        Slowed down, online requests stay longer and are more at a time: alone there would be fewer of them. And alone
        their prompts would be computed in the longest chunks that a step can hold.
        """
        self._tokens = tokens
        if not tokens:
            return
        stay = 1 + self._limit
        alone = StepWork(decodes=tokens, context_tokens=context_tokens / stay)
        self._alone_s = self._predictor.seconds(alone)
        if prefill_tokens:
            chunk = max(1, most_tokens - tokens)
            self._alone_s += self._predictor.prefill_seconds(chunk, 0, alone) * prefill_tokens / chunk / stay

    def grant(self) -> Grant:
        """For offline work in the step that was noted."""
        if not self._tokens:
            return Grant()
        worth = max(0.0, self._balance_s / (self._limit * _HORIZON_S)) / self._tokens
        return Grant(decodes=worth >= 1, chunk_worth=worth if worth >= _RICH else min(_CHEAP, worth))

    def online_chunk(self, step: StepWork, most_tokens: int, done_tokens: int) -> int:
        """Tokens of an online prompt that are cheap beside the decodes of `step`."""
        return self.best_chunk(_CHEAP, step, most_tokens, done_tokens)

    def best_chunk(self, worth: float, step: StepWork, most_tokens: int, done_tokens: int) -> int:
        """Tokens of the chunk with the largest gain; a second of full work (a step's last tokens) is worth `worth`.

        done_tokens: computed of the prompt before.
        """
        cost = self._predictor.prefill_seconds
        if worth <= 0 or most_tokens < 1:
            return 0
        before, tail = step.decodes + step.prefill_tokens, min(_TAIL_TOKENS, most_tokens)
        full_s = (cost(most_tokens, 0, step) - cost(most_tokens - tail, 0, step)) / tail
        best_tokens, best_gain = 0, 0.0
        for tokens in (*(knot - before for knot in TOKEN_KNOTS if before < knot < before + most_tokens), most_tokens):
            gain = worth * full_s * tokens - cost(tokens, done_tokens, step)
            if gain > best_gain:
                best_tokens, best_gain = tokens, gain
        return best_tokens
