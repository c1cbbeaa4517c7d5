"""Coefficients with the least relative error: what the live predictor and a profile are fitted with.

Errors count relative to the step, because a deadline is missed as easily in a short step as in a long one, and large
ones count linearly, so that a few disturbed steps do not bend the rest. Coefficients are not negative (Lawson and
Hanson's active sets on the normal equations, `numpy` only).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDS = 15  # of reweighting
_LEAST_ERROR = 0.003  # errors below count as squares: nobody measures better
_TIE = 1e-3  # pull of a segment towards its neighbour, relative to what was seen of the pair
_TOLERANCE = 1e-10


def fit_relative(
    rows: Sequence[Sequence[float]] | Floats,
    seconds: Sequence[float] | Floats,
    neighbours: Sequence[tuple[int, int]] = (),
    *,
    signed: bool = False,
) -> list[float]:
    """Coefficients of `rows` for `seconds`, all positive. signed: coefficients may be negative (for other models)."""
    y = np.asarray(seconds, float)
    ratios = np.asarray(rows, float) / y[:, None]
    scale = np.abs(ratios).max(axis=0)
    scale[scale == 0.0] = 1.0
    ratios /= scale
    weights = np.ones(len(y))
    solution = np.zeros(ratios.shape[1])
    for _ in range(_ROUNDS):
        weighted = ratios * weights[:, None]
        if signed:
            solution = np.linalg.lstsq(np.sqrt(weights)[:, None] * ratios, np.sqrt(weights), rcond=None)[0]
        else:
            gram = weighted.T @ ratios
            tie(gram, neighbours, scale)
            solution = nnls(gram, weighted.sum(axis=0), solution)
        weights = 1.0 / np.maximum(np.abs(ratios @ solution - 1.0), _LEAST_ERROR)
        weights /= weights.max()
    return [float(value) for value in solution / scale]


def tie(gram: Floats, neighbours: Sequence[tuple[int, int]], scale: Any = None) -> None:
    """Pull the prices of neighbouring segments together, faintly: it decides only where one of them was never seen."""
    for i, j in neighbours:
        si, sj = (1.0, 1.0) if scale is None else (scale[i], scale[j])
        pull = _TIE * max(gram[i, i] * si * si, gram[j, j] * sj * sj)
        gram[i, i] += pull / (si * si)
        gram[j, j] += pull / (sj * sj)
        gram[i, j] -= pull / (si * sj)
        gram[j, i] -= pull / (si * sj)


def nnls(gram: Floats, moment: Floats, start: Floats) -> Floats:
    """The x >= 0 that minimises x'Gx / 2 - m'x. start: a guess; a good one saves all but one of the solutions."""
    x, free = start.copy(), start > 0.0
    floor = _TOLERANCE * (np.abs(moment).max() or 1.0)
    for _ in range(3 * len(x)):
        x, free = _solve_free(gram, moment, x, free)
        slope = moment - gram @ x
        slope[free] = 0.0
        steepest = int(slope.argmax())
        if slope[steepest] <= floor:
            break
        free[steepest] = True
    return x


def _solve_free(gram: Floats, moment: Floats, x: Floats, free: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """The least-squares solution over the free coordinates, as far as it can be walked to without a negative one."""
    free = free.copy()
    while free.any():
        target = np.zeros_like(x)
        chosen = np.flatnonzero(free)
        target[chosen] = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moment[chosen], rcond=None)[0]
        if target[chosen].min() > 0.0:
            return target, free
        blocked = chosen[target[chosen] <= 0.0]
        step = float((x[blocked] / (x[blocked] - target[blocked] + 1e-300)).min())
        x = np.maximum(0.0, x + step * (target - x))
        hit = blocked[x[blocked] <= 1e-15 * max(1e-300, x.max())]
        free[hit if len(hit) else blocked] = False
        x[~free] = 0.0
    return np.zeros_like(x), free
