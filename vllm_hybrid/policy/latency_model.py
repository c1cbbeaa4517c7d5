"""Seconds of a step from its coefficients, and the most prefill tokens that fit into so many seconds.

The arithmetic of `latency_features` once more, without lists: planning asks tens of times per step. All costs are
marginal: what a piece of work adds to a step that does other work already, because the same chunk is cheap beside few
tokens and dear where the GPU is at its limit. The cost of a chunk is a quadratic between two knots and never falls, so
the inverse finds the piece first and then solves it: exact, and monotone in the seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from vllm_hybrid.policy.latency_features import CONTEXT_KNOTS, DECODE_KNOTS, FEATURES, TOKEN_KNOTS, StepWork

NOTHING = StepWork()
_AT = {name: i for i, name in enumerate(FEATURES)}


class _Price:
    """Seconds of an amount that is priced by segments."""

    __slots__ = ("below", "knots", "slopes")

    def __init__(self, knots: Sequence[int], slopes: Sequence[float]) -> None:
        self.knots = (0, *knots)
        self.slopes = tuple(slopes)
        self.below = [0.0]  # seconds up to each knot
        for low, high, slope in zip(self.knots, self.knots[1:], slopes):
            self.below.append(self.below[-1] + slope * (high - low))

    def __call__(self, amount: float) -> float:
        i = bisect_right(self.knots, amount) - 1
        return self.below[i] + self.slopes[i] * (amount - self.knots[i])


class StepTimeModel:
    """The model with these coefficients, in the order of `FEATURES`."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        c = list(coefficients)
        self.coefficients = c
        self._tokens = _Price(TOKEN_KNOTS, c[1 : 2 + len(TOKEN_KNOTS)])
        first = _AT[f"decodes_to_{DECODE_KNOTS[0]}"]
        self._decodes = _Price(DECODE_KNOTS, c[first : first + len(DECODE_KNOTS) + 1])
        first = _AT[f"context_to_{CONTEXT_KNOTS[0]}"]
        self._context = _Price(CONTEXT_KNOTS, c[first : first + len(CONTEXT_KNOTS) + 1])
        self._constant = c[0]
        self._prefill_token, self._prefill, self._done, self._pair = c[first + len(CONTEXT_KNOTS) + 1 : -3]
        self._mixed, self._mixed_decode, self._mixed_context = c[-3:]

    def seconds(self, work: StepWork) -> float:
        """Seconds of a step."""
        decodes, tokens = work.decodes, work.prefill_tokens
        seconds = self._constant + self._tokens(decodes + tokens)
        if decodes:
            seconds += self._decodes(decodes) + self._context(work.context_tokens)
        if tokens:
            seconds += self._prefill_token * tokens + self._prefill * work.prefills
            seconds += self._done * work.done_tokens + self._pair * work.pairs
            if decodes:
                seconds += self._beside(work)
        return seconds

    def _beside(self, work: StepWork) -> float:
        """What the decodes of a step cost more because it has a chunk too."""
        return self._mixed + self._mixed_decode * work.decodes + self._mixed_context * work.context_tokens

    def decode_seconds(self, context_tokens: float, beside: StepWork = NOTHING) -> float:
        """What one more decode with this context adds to the step `beside`."""
        decodes, context, tokens = beside.decodes, beside.context_tokens, beside.decodes + beside.prefill_tokens
        seconds = self._tokens(tokens + 1) - self._tokens(tokens) + self._decodes(decodes + 1) - self._decodes(decodes)
        seconds += self._context(context + context_tokens) - self._context(context)
        if beside.prefill_tokens:
            seconds += self._mixed_decode + self._mixed_context * context_tokens
            if not decodes:
                seconds += self._mixed
        return seconds

    def _opening(self, done_tokens: float, beside: StepWork) -> float:
        """What a chunk adds whatever its length."""
        seconds = self._prefill + self._done * done_tokens
        if beside.decodes and not beside.prefill_tokens:
            seconds += self._beside(beside)
        return seconds

    def prefill_seconds(self, tokens: float, done_tokens: float, beside: StepWork = NOTHING) -> float:
        """What a chunk of `tokens` after `done_tokens` of its prompt adds to the step `beside`."""
        if tokens <= 0:
            return 0.0
        before = beside.decodes + beside.prefill_tokens
        seconds = self._tokens(before + tokens) - self._tokens(before) + self._prefill_token * tokens
        return seconds + self._pair * tokens * (done_tokens + tokens / 2) + self._opening(done_tokens, beside)

    def prefill_tokens_within(self, seconds: float, done_tokens: float, beside: StepWork = NOTHING) -> float:
        """Most prefill tokens that add at most `seconds`; inf if the model sees no cost in them."""
        left_s = seconds - self._opening(done_tokens, beside)
        if left_s <= 0 or seconds <= 0:
            return 0.0
        before, dense = beside.decodes + beside.prefill_tokens, self._tokens
        i, low, low_s = bisect_right(dense.knots, before) - 1, 0.0, 0.0  # the piece, the tokens where it begins,
        base_s = dense(before)  # and what they cost
        for high in dense.knots[i + 1 :]:
            tokens = high - before
            high_s = dense.below[i + 1] - base_s + self._linear(tokens, done_tokens)
            if high_s > left_s:
                break
            i, low, low_s = i + 1, tokens, high_s
        # From there b n + a n^2 seconds more for n more; the root in the form that stays exact for a -> 0.
        a = self._pair / 2
        b = dense.slopes[i] + self._prefill_token + self._pair * (done_tokens + low)
        if a <= 0 and b <= 0:
            return math.inf
        rest_s = left_s - low_s
        root = b + math.sqrt(b * b + 4 * a * rest_s)
        return low + (2 * rest_s / root if root > 0 else 0.0)

    def _linear(self, tokens: float, done_tokens: float) -> float:
        return self._prefill_token * tokens + self._pair * tokens * (done_tokens + tokens / 2)
