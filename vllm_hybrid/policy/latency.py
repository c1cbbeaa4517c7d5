"""Batch-latency predictor: the seconds a step takes, from what it computes (after HyGen, arXiv 2501.14808).

A linear model over five figures of a step, fitted while the engine runs: relative errors are minimised, old steps
fade, coefficients are never negative, so more work is never predicted to take less time and the inverse (seconds ->
most prefill tokens) is exact. Different from HyGen: decode cost follows the *context* read, prefill cost the
query-key pairs, and nothing is profiled beforehand. Steps are summed over short windows before they are fitted,
because single step times are noisy under async scheduling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_WINDOW_STEPS = 8  # steps summed before one fit
_FADE = 0.99  # weight of the past per window: half of it is gone after 69 windows
_RIDGE = 1e-4  # pull towards the present coefficients, so that what is not exercised is not forgotten
_SWEEPS = 8  # coordinate-descent sweeps per fit, from the last solution
_READY_WINDOWS = 6
_QUANTILE = 0.9
_QUANTILE_STEP = 0.005


@dataclass(slots=True)
class StepWork:
    """What one step computes.

    context_tokens: KV tokens read by decodes. pairs: query-key pairs of prefill chunks, sum of n * (done + n / 2).
    """

    decodes: int = 0
    prefill_tokens: int = 0
    context_tokens: float = 0.0
    pairs: float = 0.0
    prefills: int = 0  # requests with a chunk

    def features(self) -> tuple[float, float, float, float, float]:
        """The model's inputs, the constant first."""
        return 1.0, float(self.decodes), float(self.prefill_tokens), float(self.context_tokens), self.pairs


class StepTimePredictor:
    """Predicts step seconds; learns from `observe`. Not usable for budgets before `ready`."""

    def __init__(self, features: int = 5) -> None:
        self.coefficients = [0.0] * features  # seconds per unit of each feature
        self.windows = 0
        self.error_ratio: float | None = None  # running mean of |predicted - real| / real
        self.margin = 0.25  # 0.9-quantile of real / predicted - 1, learned step by step
        self._gram = [[0.0] * features for _ in range(features)]
        self._moment = [0.0] * features
        self._sum = [0.0] * features
        self._seconds = 0.0
        self._steps = 0

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen to budget by."""
        return self.windows >= _READY_WINDOWS

    def inputs(self, work: StepWork) -> tuple[float, ...]:
        """The features of the model."""
        return work.features()

    def seconds(self, work: StepWork) -> float:
        """Predicted seconds of a step."""
        c = self.coefficients
        return c[0] + c[1] * work.decodes + c[2] * work.prefill_tokens + c[3] * work.context_tokens + c[4] * work.pairs

    def decode_seconds(self, context_tokens: int) -> float:
        """What one more decode with this context adds to a step."""
        return self.coefficients[1] + self.coefficients[3] * context_tokens

    def prefill_seconds(self, tokens: int, done_tokens: int) -> float:
        """What a prefill chunk of `tokens` after `done_tokens` adds to a step."""
        return self.coefficients[2] * tokens + self.coefficients[4] * tokens * (done_tokens + tokens / 2)

    def prefill_tokens_within(self, seconds: float, done_tokens: int) -> float:
        """Most prefill tokens that add at most `seconds`; inf if the model sees no cost in them.

        Inverse of `prefill_seconds` in its first argument.
        """
        if seconds <= 0:
            return 0.0
        a = self.coefficients[4] / 2
        b = self.coefficients[2] + self.coefficients[4] * done_tokens
        if b <= 0 and a <= 0:
            return math.inf
        # The root of a n^2 + b n = seconds, in the form that stays exact for a -> 0.
        return 2 * seconds / (b + math.sqrt(b * b + 4 * a * seconds))

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from a step that took `seconds`. Values that are not positive and finite are ignored."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        if self.ready:
            self._judge(self.seconds(work), seconds)
        for i, x in enumerate(self.inputs(work)):
            self._sum[i] += x
        self._seconds += seconds
        self._steps += 1
        if self._steps >= _WINDOW_STEPS:
            self._close_window()

    def _close_window(self) -> None:
        x, y = self._sum, self._seconds
        self._sum, self._seconds, self._steps = [0.0] * len(x), 0.0, 0
        for i, xi in enumerate(x):
            row = self._gram[i]
            for j, xj in enumerate(x):
                row[j] = _FADE * row[j] + xi * xj / (y * y)
            self._moment[i] = _FADE * self._moment[i] + xi / y
        self._solve()
        self.windows += 1

    def _judge(self, predicted: float, real: float) -> None:
        error = abs(predicted - real) / real
        self.error_ratio = error if self.error_ratio is None else 0.99 * self.error_ratio + 0.01 * error
        late = predicted <= 0 or real / predicted - 1 > self.margin
        self.margin += _QUANTILE_STEP * (_QUANTILE if late else _QUANTILE - 1)
        self.margin = min(1.0, max(0.05, self.margin))

    def _solve(self) -> None:
        """Non-negative least squares by coordinate descent, warm-started."""
        c, gram, moment = self.coefficients, self._gram, self._moment
        anchor = list(c)
        for _ in range(_SWEEPS):
            for i in range(len(c)):
                diagonal = gram[i][i]
                if diagonal <= 0.0:
                    continue
                rest = sum(gram[i][j] * c[j] for j in range(len(c))) - diagonal * c[i]
                pull = _RIDGE * diagonal
                c[i] = max(0.0, (moment[i] - rest + pull * anchor[i]) / (diagonal + pull))
