"""HyGen's batch-latency predictor (arXiv 2501.14808, section 4.1): linear in the counts of a batch.

Seconds from the prefill tokens and their square, the context that decodes read, and the numbers of both kinds of
requests. Coefficients come from a profile, or are learned while the engine runs, as those of our own predictor are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.latency_fit import Floats

FEATURES = ("constant", "prefill_tokens", "context_tokens", "prefill_tokens_squared", "prefills", "decodes")


class HygenPredictor(StepTimePredictor):
    """coefficients: seconds per unit of each of `FEATURES`, or None to learn them."""

    feature_count = len(FEATURES)
    neighbours = ()

    def __init__(self, coefficients: Sequence[float] | None = None) -> None:
        super().__init__()
        self._profiled = coefficients is not None
        if coefficients is not None:
            self.coefficients = list(coefficients)

    @property
    def ready(self) -> bool:
        """Whether the coefficients can be budgeted by."""
        return self._profiled or super().ready

    def inputs(self, work: StepWork) -> tuple[float, ...]:
        """The model's inputs, in the order of `FEATURES`."""
        tokens = float(work.prefill_tokens)
        return 1.0, tokens, float(work.context_tokens), tokens * tokens, float(work.prefills), float(work.decodes)

    def figures(self, work: StepWork) -> Sequence[float]:
        """The model's inputs already."""
        return self.inputs(work)

    def rows(self, figures: Sequence[Sequence[float]]) -> Floats:
        """As they are."""
        return np.array(figures, float)

    def seconds(self, work: StepWork) -> float:
        """Predicted seconds of a step."""
        return sum([c * x for c, x in zip(self.coefficients, self.inputs(work))])

    def _adopt(self) -> None:
        """The coefficients are all there is."""

    def _solve(self) -> None:
        if not self._profiled:
            super()._solve()

    def _correct(self) -> None:
        if not self._profiled:  # the paper's stay as they are
            super()._correct()


@dataclass(slots=True)
class Batch:
    """A batch under construction."""

    predictor: HygenPredictor
    work: StepWork

    @property
    def seconds(self) -> float:
        """Predicted seconds so far."""
        return self.predictor.seconds(self.work)

    def add_decode(self, context_tokens: int) -> None:
        """One more decode."""
        self.work.decodes += 1
        self.work.context_tokens += context_tokens

    def add_chunk(self, tokens: int) -> None:
        """One more prefill chunk."""
        self.work.prefills += 1
        self.work.prefill_tokens += tokens

    def decode_fits(self, context_tokens: int, budget_s: float) -> bool:
        """Whether one more decode keeps the batch within the budget."""
        c = self.predictor.coefficients
        return budget_s == math.inf or self.seconds + c[2] * context_tokens + c[5] <= budget_s

    def chunk_within(self, budget_s: float) -> float:
        """Most tokens of one more chunk within the budget; inf if the model sees no cost in them."""
        if budget_s == math.inf:
            return math.inf
        c = self.predictor.coefficients
        left_s = budget_s - self.seconds - c[4]
        if left_s < 0:
            return 0.0
        # a (s + n)^2 + b (s + n) grows by a n^2 + (b + 2 a s) n; the root in the form that stays exact for a -> 0.
        a, slope = c[3], c[1] + 2 * c[3] * self.work.prefill_tokens
        discriminant = slope * slope + 4 * a * left_s
        if discriminant < 0 or (slope <= 0 and a <= 0):
            return math.inf
        divisor = slope + math.sqrt(discriminant)
        return 2 * left_s / divisor if divisor > 0 else -slope / a
