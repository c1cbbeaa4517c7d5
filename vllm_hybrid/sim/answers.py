"""Requests as their clients saw them: a wait, tokens that arrive, gaps between them, an end or none.

A run that is stopped leaves requests without an end and requests without a token. They count with what is known when
the run ends: whoever has waited until then has waited so long, and a gap that is still open is a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vllm_hybrid.sim.records import RequestRecord, RunRecord

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it."""

    record: RequestRecord
    tokens_s: Seconds  # when each output token arrived
    end_s: float  # of the run

    @property
    def arrival_s(self) -> float:
        return self.record.request.arrival_s

    @property
    def started(self) -> bool:
        return len(self.tokens_s) > 0

    @property
    def finished(self) -> bool:
        return self.record.finished_s is not None and self.started

    @property
    def wait_s(self) -> float:
        """To the first token; what is known of it where none came."""
        return float(self.tokens_s[0] if self.started else max(self.end_s, self.arrival_s)) - self.arrival_s

    @property
    def age_s(self) -> float:
        """From the arrival to the last token, or to the end of the run."""
        return float(self.tokens_s[-1] if self.finished else max(self.end_s, self.arrival_s)) - self.arrival_s

    @property
    def gaps_s(self) -> Seconds:
        """Between its tokens, and from the last one to the end of the run where it was not finished."""
        closed = np.diff(self.tokens_s)
        if self.finished or not self.started:
            return closed
        return np.append(closed, max(0.0, self.end_s - float(self.tokens_s[-1])))

    @property
    def worst_gap_s(self) -> float:
        gaps = self.gaps_s
        return float(gaps.max()) if len(gaps) else 0.0


def end_of(run: RunRecord) -> float:
    """When the last client heard the last of the run."""
    return max([run.end_s, *(r.token_s[-1] for r in run.requests if len(r.token_s))])


def answers_of(run: RunRecord, warmup_s: float = 0.0) -> list[Answer]:
    """The requests that arrived from `warmup_s` until the end of the run."""
    end_s = end_of(run)
    return [
        Answer(r, np.asarray(r.token_s, dtype=np.float64), end_s)
        for r in run.requests
        if warmup_s <= r.request.arrival_s <= end_s
    ]
