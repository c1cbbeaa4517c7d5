"""What a step computes, and the features from which its seconds are predicted.

Three quantities cost differently where they are few and where they are many: new tokens (reading the weights is paid
once, arithmetic per token), decodes, and the KV tokens that decodes read (a small read hides behind the kernel's own
latency). Each is cut into segments, and a segment has a price of its own; prices are never negative, so that a step
with more in it is never predicted to be shorter, and they need not grow, because on real GPUs they do not. The rest is
linear: prefill tokens, chunks, the KV they read, their query-key pairs, and what decodes cost more beside a chunk.
HyGen (arXiv 2501.14808) has the counts and a square instead (`published/hygen_predictor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TOKEN_KNOTS = (64, 128, 256, 512, 1024)
DECODE_KNOTS = (8, 32, 128)
CONTEXT_KNOTS = (8_192, 65_536)


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
    done_tokens: float = 0.0  # computed before their chunks, summed over these

    def features(self) -> tuple[float, float, float, float, float]:
        """The inputs of the linear device model (`sim/device_fit.py`), the constant first."""
        return 1.0, float(self.decodes), float(self.prefill_tokens), float(self.context_tokens), self.pairs


def _segment_names(name: str, knots: Sequence[int]) -> tuple[str, ...]:
    return (*(f"{name}_to_{knot}" for knot in knots), f"{name}_beyond")


_GROUPS = (
    ("constant",),
    _segment_names("tokens", TOKEN_KNOTS),
    _segment_names("decodes", DECODE_KNOTS),
    _segment_names("context", CONTEXT_KNOTS),
    ("prefill_tokens", "prefills", "done_tokens", "pairs"),
    ("mixed", "mixed_decodes", "mixed_context"),
)
FEATURES: tuple[str, ...] = tuple(name for group in _GROUPS for name in group)
"""Names of `features_of`, in its order. mixed: 1 where a step has both decodes and chunks."""

NEIGHBOURS: tuple[tuple[int, int], ...] = tuple(
    (i, i + 1)
    for i, name in enumerate(FEATURES[:-1])
    if name.rpartition("_to_")[0] and FEATURES[i + 1].split("_")[0] == name.split("_")[0]
)
"""Segments that follow each other: one that was never seen is priced as the one before it."""


def segments(amount: float, knots: Sequence[int]) -> list[float]:
    """How much of `amount` lies in each segment; one more than there are knots."""
    parts, low = [], 0
    for knot in knots:
        parts.append(min(max(amount - low, 0.0), float(knot - low)))
        low = knot
    parts.append(max(amount - low, 0.0))
    return parts


_KNOTS = (TOKEN_KNOTS, DECODE_KNOTS, CONTEXT_KNOTS)
_LOWS = tuple(np.array((0, *knots), float) for knots in _KNOTS)
_WIDTHS = tuple(np.array((*(high - low for low, high in pairwise((0, *knots))), np.inf)) for knots in _KNOTS)


def figures_of(work: StepWork) -> tuple[float, ...]:
    """What `feature_rows` needs of a step."""
    return work.decodes, work.prefill_tokens, work.context_tokens, work.prefills, work.done_tokens, work.pairs


def feature_rows(figures: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """`features_of` of several steps at once, a row each."""
    decodes, chunks, context, prefills, done, pairs = np.array(figures, float).T
    rows = np.empty((len(decodes), len(FEATURES)))
    rows[:, 0], column = 1.0, 1
    for amounts, lows, widths in zip((decodes + chunks, decodes, context), _LOWS, _WIDTHS):
        end = column + len(lows)
        np.minimum(np.maximum(amounts[:, None] - lows, 0.0), widths, out=rows[:, column:end])
        column = end
    mixed = (decodes > 0) & (chunks > 0)
    rows[:, column:] = np.array((chunks, prefills, done, pairs, mixed, mixed * decodes, mixed * context)).T
    return rows


def features_of(work: StepWork) -> list[float]:
    """The inputs of the default model, in the order of `FEATURES`."""
    decodes, context, chunks = work.decodes, float(work.context_tokens), work.prefill_tokens
    mixed = 1.0 if decodes and chunks else 0.0
    return [
        1.0,
        *segments(decodes + chunks, TOKEN_KNOTS),
        *segments(decodes, DECODE_KNOTS),
        *segments(context, CONTEXT_KNOTS),
        float(chunks),
        float(work.prefills),
        float(work.done_tokens),
        work.pairs,
        mixed,
        mixed * decodes,
        mixed * context,
    ]
