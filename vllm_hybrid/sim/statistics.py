"""Spreads of seconds under the keys of `vllm bench serve`, and numbers that are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vllm_hybrid.sim.answers import Seconds

PERCENTILES = (50, 90, 95, 99)
_DIGITS = 9  # summing in another order, as another CPU may, changes the digits after these

_STATISTICS: Mapping[str, Callable[[Seconds], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "std": np.std,
    "max": np.max,
}


def spread(name: str, seconds: Iterable[float], unit: str = "ms") -> dict[str, float | None]:
    """Mean, median, deviation, percentiles and maximum under the keys of `vllm bench serve`; None of nothing."""
    values = np.asarray(seconds if isinstance(seconds, np.ndarray) else list(seconds), dtype=np.float64)
    values = values * (1000 if unit == "ms" else 1)
    if not len(values):
        return {f"{key}_{name}_{unit}": None for key in (*_STATISTICS, *(f"p{p}" for p in PERCENTILES))}
    figures = {key: float(figure(values)) for key, figure in _STATISTICS.items()}
    figures |= {f"p{p}": float(q) for p, q in zip(PERCENTILES, np.percentile(values, PERCENTILES))}
    return {f"{key}_{name}_{unit}": figure for key, figure in figures.items()}


def tidy(value: Any) -> Any:
    """Plain Python numbers of nine digits, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def ratio(part: float, whole: float) -> float | None:
    """None where there is no whole."""
    return part / whole if whole > 0 else None
