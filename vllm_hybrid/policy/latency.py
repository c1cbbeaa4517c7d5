"""Step-time predictor: the seconds a step takes, from what it computes, learned while the engine runs.

The model of `latency_features`; relative errors are minimised, old steps fade, disturbed ones count little. Where real
and predicted times part for good (another model on the GPU, a clock that was lowered) it says so, corrects the level at
once and budgets with its widest margin until it has learned anew. It is not `ready`, and nobody budgets by it, before
it has seen enough, while times stop making sense, and while its coefficients do. After HyGen (arXiv 2501.14808), whose
predictor is fitted once and stays.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from vllm_hybrid.policy.latency_features import FEATURES, NEIGHBOURS, StepWork, feature_rows, features_of, figures_of
from vllm_hybrid.policy.latency_fit import Floats
from vllm_hybrid.policy.latency_memory import Memory
from vllm_hybrid.policy.latency_model import NOTHING, StepTimeModel

__all__ = ["StepTimePredictor", "StepWork"]

_WINDOW_STEPS = 8  # learned from together
_READY_WINDOWS = 6
_EAGER_WINDOWS = 16  # after each of these the model is solved anew, later after every eighth
_QUANTILE = 0.9
_QUANTILE_STEP = 0.03  # of the margin
_LEAST_MARGIN, _FIRST_MARGIN, _MOST_MARGIN = 0.05, 0.25, 1.0
_STRANGE_WINDOWS = 4  # in a row: not an accident
_DRIFT = 1.5  # median of predicted / real, or its inverse
_KEPT_AT_DRIFT = 0.1  # of the past
_LEARNED = 1.2  # the same of steps that were learned from
_LEAST_LEVEL = 1e-3
_SEED_ROUNDS = 5
_BLIND_STEPS = 64  # without one usable time


class StepTimePredictor:
    """Predicts step seconds; learns from `observe`. Not usable for budgets before `ready`."""

    feature_count = len(FEATURES)
    neighbours: Sequence[tuple[int, int]] = NEIGHBOURS

    def __init__(self) -> None:
        self.windows = 0
        self.error_ratio: float | None = None  # running mean of |predicted - real| / real
        self.predicted_s = self.real_s = 0.0  # of all steps that were predicted
        self.margin = _FIRST_MARGIN  # 0.9-quantile of real / predicted - 1, learned step by step
        self.drifts = 0
        self.coefficients = [0.0] * self.feature_count  # seconds per unit of each feature
        self._memory = Memory(self.feature_count, self.neighbours)
        self._figures: list[Sequence[float]] = []  # of the steps of this window
        self._seconds: list[float] = []
        self._overlapping = False
        self._strange: list[Floats] = []  # the last windows, if they were far off
        self._blind = 0

    # -- predicting --------------------------------------------------------------------------------------------------
    @property
    def coefficients(self) -> list[float]:
        """Of the model in use."""
        return self._coefficients

    @coefficients.setter
    def coefficients(self, values: Sequence[float]) -> None:
        self._coefficients = list(values)
        self._array = np.array(self._coefficients)
        self._sane = all(map(math.isfinite, values)) and any(values)
        self._adopt()

    def _adopt(self) -> None:
        self._model = StepTimeModel(self._coefficients)

    @property
    def ready(self) -> bool:
        """Whether it can be budgeted by."""
        return self.windows >= _READY_WINDOWS and self._sane and self._blind < _BLIND_STEPS

    def inputs(self, work: StepWork) -> Sequence[float]:
        """The features of the model."""
        return features_of(work)

    def figures(self, work: StepWork) -> Sequence[float]:
        """What is kept of a step until its window is learned."""
        return figures_of(work)

    def rows(self, figures: Sequence[Sequence[float]]) -> Floats:
        """The features of the steps that these are the figures of, a row each."""
        return feature_rows(figures)

    def seconds(self, work: StepWork) -> float:
        """Predicted seconds of a step."""
        return self._model.seconds(work)

    def decode_seconds(self, context_tokens: float, beside: StepWork = NOTHING) -> float:
        """What one more decode with this context adds to the step `beside`."""
        return self._model.decode_seconds(context_tokens, beside)

    def prefill_seconds(self, tokens: float, done_tokens: float, beside: StepWork = NOTHING) -> float:
        """What a prefill chunk of `tokens` after `done_tokens` adds to the step `beside`."""
        return self._model.prefill_seconds(tokens, done_tokens, beside)

    def prefill_tokens_within(self, seconds: float, done_tokens: float, beside: StepWork = NOTHING) -> float:
        """Most prefill tokens that add at most `seconds` to the step `beside`; inf if the model sees no cost in them.

        Inverse of `prefill_seconds` in its first argument.
        """
        return self._model.prefill_tokens_within(seconds, done_tokens, beside)

    # -- learning --------------------------------------------------------------------------------------------------
    def observe(self, work: StepWork, seconds: float, alone: bool = True) -> None:
        """Learn from a step that took `seconds`. Values that are not positive and finite only count as such.

        alone: no other step was under way, so that the time is this step's own; otherwise only sums are trusted,
        because outputs of overlapping steps can come in pairs, the first one late.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            self._blind += 1
            return
        self._blind = 0
        if self.ready:
            self._judge(self.seconds(work), seconds)
        self._figures.append(self.figures(work))
        self._seconds.append(seconds)
        self._overlapping |= not alone
        if len(self._figures) >= _WINDOW_STEPS:
            self._close_window()

    def learn(self, steps: Sequence[tuple[StepWork, float]]) -> None:
        """Start from steps that were measured before, as if they had just been observed; what follows refines them."""
        ratios = np.array([self.inputs(work) for work, _ in steps], float)
        ratios /= np.array([[seconds] for _, seconds in steps])
        self._memory.add(ratios, np.ones(len(ratios)))
        self._solve()
        for _ in range(_SEED_ROUNDS):  # disturbed steps count less once it is known which they are
            errors = np.abs(ratios @ self._array - 1.0)
            self.error_ratio = float(np.median(errors))
            self._memory = Memory(self.feature_count, self.neighbours)
            self._memory.add(ratios, np.minimum(1.0, self._usual_error / np.maximum(errors, 1e-9)))
            self._solve()
        self.windows = max(self.windows, _READY_WINDOWS)

    def _close_window(self) -> None:
        rows, seconds = self.rows(self._figures), np.array(self._seconds)
        if self._overlapping:
            rows, seconds = rows.sum(axis=0, keepdims=True), seconds.sum(keepdims=True)
        self._figures, self._seconds, self._overlapping = [], [], False
        if not np.isfinite(rows).all():
            return
        self.windows += 1
        self._learn(rows / seconds[:, None])

    def _learn(self, ratios: Floats) -> None:
        """Learn from a window. ratios: features per second."""
        if self.ready and not 1 / _DRIFT < self._level(ratios) < _DRIFT:
            self._strange.append(ratios)  # nothing is made of it before it is known whether the next ones are too
            if len(self._strange) >= _STRANGE_WINDOWS:
                self._correct()
            return
        for window in (*self._strange, ratios):
            self._memory.add(window, self._weights(window))
        self._strange.clear()
        if self.windows <= _EAGER_WINDOWS or self.windows % 8 == 0 or not self._sane:
            self._solve()

    def _weights(self, ratios: Floats) -> Floats:
        """How far each step can be trusted."""
        if not self.ready:
            return np.ones(len(ratios))
        predicted = ratios @ self._array  # as a multiple of the real time
        weights = np.minimum(1.0, self._usual_error / np.maximum(np.abs(predicted - 1.0), 1e-9))
        weights /= np.maximum(1.0, predicted) ** 2  # a time that is far too short would outweigh all others
        return weights

    @property
    def _usual_error(self) -> float:
        """Larger ones count linearly."""
        return max(0.05, 2.0 * (self.error_ratio or 0.0))

    def _judge(self, predicted: float, real: float) -> None:
        self.predicted_s += predicted
        self.real_s += real
        error = min(abs(predicted - real) / real, 10.0)
        self.error_ratio = error if self.error_ratio is None else 0.99 * self.error_ratio + 0.01 * error
        late = predicted <= 0 or real / predicted - 1 > self.margin
        step = _QUANTILE_STEP * max(self.margin, 2 * _LEAST_MARGIN)
        self.margin += step * (_QUANTILE if late else _QUANTILE - 1)
        self.margin = min(_MOST_MARGIN, max(_LEAST_MARGIN, self.margin))

    def _solve(self) -> None:
        present = self._array if self._sane else np.zeros(self.feature_count)
        self.coefficients = [float(value) for value in self._memory.solve(np.maximum(0.0, present))]

    # -- drift --------------------------------------------------------------------------------------------------
    def _level(self, ratios: Floats) -> float:
        """Predicted / real of these steps, the median."""
        return statistics.median((ratios @ self._array).tolist())

    def _correct(self) -> None:
        """Several windows in a row are far off: learn them, or else forget and take their level. Careful until then."""
        strange = np.concatenate(self._strange)
        self._strange.clear()
        self.margin = _MOST_MARGIN
        before = self._memory.copy()
        self._memory.add(strange, np.ones(len(strange)))
        self._solve()
        if 1 / _LEARNED < self._level(strange) < _LEARNED:  # it was only work not known so far
            return
        self.drifts += 1
        self._memory = before
        self._solve()
        self._memory.slow_down(1 / max(self._level(strange), _LEAST_LEVEL), _KEPT_AT_DRIFT)
        self._memory.add(strange, np.ones(len(strange)))
        self._solve()
