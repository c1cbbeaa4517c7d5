"""The normal equations of the steps seen so far, old ones faded: what the live predictor is solved from.

Every step counts relative to its own length. What has not occurred for long keeps its price instead of losing it, by a
faint pull towards the present solution; a segment that never occurred is priced as its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_hybrid.policy.latency_fit import Floats, nnls, tie

_FADE = 0.99  # weight of the past per `add`: half of it is gone after 69
_PULL = 1e-4  # towards the present coefficients, relative to the most that was known of each
_UNSEEN = 1e-9


class Memory:
    """Faded sums over steps."""

    def __init__(self, features: int, neighbours: Sequence[tuple[int, int]] = ()) -> None:
        self._neighbours = neighbours
        self._gram = np.zeros((features, features))
        self._moment = np.zeros(features)
        self._known = np.zeros(features)  # the largest diagonal so far

    def add(self, ratios: Floats, weights: Floats) -> None:
        """Learn from steps. ratios: features per second of each step; weights: how far each can be trusted."""
        weighted = ratios * weights[:, None]
        self._gram *= _FADE
        self._gram += weighted.T @ ratios
        self._moment *= _FADE
        self._moment += weighted.sum(axis=0)
        np.maximum(self._known, self._gram.diagonal(), out=self._known)

    def copy(self) -> Memory:
        """The same, to try something on."""
        other = Memory(len(self._known), self._neighbours)
        other._gram, other._moment, other._known = self._gram.copy(), self._moment.copy(), self._known.copy()
        return other

    def slow_down(self, factor: float, keep: float) -> None:
        """As if every past step had taken `factor` times as long, and counted only `keep` of what it did."""
        self._gram *= keep / (factor * factor)
        self._moment *= keep / factor
        self._known *= keep / (factor * factor)

    def solve(self, present: Floats) -> Floats:
        """The coefficients with the least error; `present` ones decide where nothing is known."""
        known = self._known
        gram, moment = self._gram.copy(), self._moment + _PULL * known * present
        gram.flat[:: len(known) + 1] += _PULL * known
        unseen = known <= _UNSEEN * known[0]
        tie(gram, [pair for pair in self._neighbours if unseen[pair[0]] or unseen[pair[1]]])
        scale = np.sqrt(gram.diagonal())
        scale[scale == 0.0] = 1.0
        solution: Floats = nnls(gram / np.outer(scale, scale), moment / scale, present * scale) / scale
        return solution
