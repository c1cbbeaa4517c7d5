"""How long an answer will be: predictions that make fairness react before the tokens are generated.

A client is charged for output as it is generated, that is, after its requests were admitted; until then it seems to
have received less than it will, and too many of its requests get in. With a prediction the output that admitted
requests are expected to generate yet counts when clients are compared (length prediction of the VTC paper, arXiv
2401.00588). Nothing is refunded, because nothing is charged in advance: what was expected in vain is forgotten when
the request ends, and what exceeds the prediction is charged as it is generated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from typing import Protocol

from vllm_hybrid.policy.request import ClientKey, RequestView

_WINDOW = 64  # answers of a client that its quantile is taken from
_MEMORY = 4  # weight of the past in the smoothed mean, against 1 for the latest answer (VTC artifact)


class OutputLengths(Protocol):
    """Predicts the output tokens of requests, from those of earlier requests of the same client."""

    def expected(self, view: RequestView) -> float:
        """Output tokens that the request will have at its end, as far as can be said now."""
        ...

    def observe(self, key: ClientKey, tokens: int) -> None:
        """A request of the client ended by itself after so many output tokens."""
        ...

    def forget_idle(self, busy: Container[ClientKey]) -> None:
        """Drop what is known of clients that are gone."""
        ...


class KnownLengths:
    """Every request runs to its max_tokens: right for callers that say so, an oracle in the simulator."""

    def expected(self, view: RequestView) -> float:
        return view.max_output_tokens

    def observe(self, key: ClientKey, tokens: int) -> None:
        """Nothing to learn."""

    def forget_idle(self, busy: Container[ClientKey]) -> None:
        """Nothing is kept."""


class MeanLengths:
    """The client's smoothed mean, each answer counting a fifth (the paper's predictor on its real trace)."""

    def __init__(self) -> None:
        self._means: dict[ClientKey, float] = {}

    def expected(self, view: RequestView) -> float:
        return min(view.max_output_tokens, self._means.get(view.key, 0.0))

    def observe(self, key: ClientKey, tokens: int) -> None:
        mean = self._means.get(key, float(tokens))
        self._means[key] = (_MEMORY * mean + tokens) / (_MEMORY + 1)

    def forget_idle(self, busy: Container[ClientKey]) -> None:
        self._means = {key: mean for key, mean in self._means.items() if key in busy}


class MedianLengths:
    """The median of the client's last answers that were longer than what the request has generated so far."""

    def __init__(self) -> None:
        self._answers: dict[ClientKey, deque[int]] = {}
        self._sorted: dict[ClientKey, list[int]] = {}

    def expected(self, view: RequestView) -> float:
        longer = self._ordered(view.key)
        if longer and longer[0] <= view.output_tokens:
            longer = [tokens for tokens in longer if tokens > view.output_tokens]
        return min(view.max_output_tokens, longer[len(longer) // 2]) if longer else 0.0

    def _ordered(self, key: ClientKey) -> list[int]:
        ordered = self._sorted.get(key)
        if ordered is None:
            ordered = self._sorted[key] = sorted(self._answers.get(key, ()))
        return ordered

    def observe(self, key: ClientKey, tokens: int) -> None:
        self._answers.setdefault(key, deque(maxlen=_WINDOW)).append(tokens)
        self._sorted.pop(key, None)

    def forget_idle(self, busy: Container[ClientKey]) -> None:
        self._answers = {key: answers for key, answers in self._answers.items() if key in busy}
        self._sorted = {}


PREDICTIONS: dict[str, Callable[[], OutputLengths]] = {
    "max_tokens": KnownLengths,
    "mean": MeanLengths,
    "median": MedianLengths,
}
