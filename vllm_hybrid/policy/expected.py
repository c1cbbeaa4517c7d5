"""The gate on expected memory: a request comes in if the pool will probably hold it and all that run, at every moment.

After t more steps a request that holds h tokens now will hold h + t, if its answer is still going on then
(`survival.py` says how probable that is). Summed over all requests that is the expected memory at t, and the sum of
the variances tells how far it may be off: many requests err in all directions, a few do not. The gate keeps the
expectation and `_DEVIATIONS` standard deviations within the pool at every t of a grid. So neither is every request
reserved its max_tokens, under which a pool stands half empty, nor is output forgotten, under which a third of all
tokens is computed again.

Where the target between tokens leaves decodes time to spare, not all need grow at once: some go on and finish, the
others wait (`pace.py`). Then only a share of the growth to come must fit beside what is held (`growth`); late requests
are never let in on that account.

Online requests may use what offline work holds, as it gives way to them; an offline request must fit beside all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.survival import LONGEST, Survival

Floats = np.ndarray[Any, np.dtype[np.float64]]

GRID = np.unique(np.concatenate((np.arange(0, 64, 16), np.geomspace(64, LONGEST, 22).round()))).astype(np.intp)
_DEVIATIONS = 1.0
_LATE_POOL = 0.7  # of the pool: late requests leave the rest to those that will come and can be in time


class ExpectedGate:
    """The memory that the requests of a step will probably come to need, in tokens, per lane."""

    def __init__(self, view: StepView, survival: Survival, growth: float = 1.0) -> None:
        """growth: share of what online requests have yet to grow that must find room at once."""
        self._growth = growth
        self._survival = survival
        self._slack = view.block_tokens / 2  # of a last block that is half empty on average
        self._pool = float((view.total_blocks - 1) * view.block_tokens)
        self.idle = not view.running and not view.parked
        self._now_s = view.now_s
        holders = [*view.running, *view.parked]
        online = [v for v in holders if v.key[0] is Lane.ONLINE]
        offline = [v for v in holders if v.key[0] is Lane.OFFLINE]
        self._mean = [np.zeros(len(GRID)), np.zeros(len(GRID))]  # of online requests; of all
        self._variance = [np.zeros(len(GRID)), np.zeros(len(GRID))]
        for lane, views in ((Lane.ONLINE, online), (Lane.OFFLINE, offline)):
            if views:
                self._count(lane, *self._needs(views))

    def _needs(self, views: Sequence[RequestView]) -> tuple[Floats, Floats]:
        """Mean and variance of what they hold, at each point of the grid, together."""
        chance = self._survival.goes_on(views, GRID)
        held = np.array([v.computed_tokens + (v.missing_tokens if v.prefilling else 0) for v in views])
        return self._sums(held, chance)

    def _sums(self, held: np.ndarray[Any, Any], chance: np.ndarray[Any, Any]) -> tuple[Floats, Floats]:
        tokens = (held + self._slack)[:, None] + GRID
        return (tokens * chance).sum(axis=0), (tokens * tokens * chance * (1.0 - chance)).sum(axis=0)

    def _count(self, lane: Lane, mean: Floats, variance: Floats) -> None:
        for at in range(int(lane), len(Lane)):
            self._mean[at] = self._mean[at] + mean
            self._variance[at] = self._variance[at] + variance

    def _of_new(self, request: RequestView) -> tuple[Floats, Floats]:
        chance = self._survival.goes_on([request], GRID)
        return self._sums(np.array([request.missing_tokens]), chance)

    def fits(self, request: RequestView) -> bool:
        """Whether a waiting request may come in.

        One that was started is waited for, and needs only its blocks, unless it stands back for others.
        """
        if self.idle or (request.started and request.stands_back_s <= self._now_s):
            return True
        lane = int(request.key[0])
        mean, variance = self._of_new(request)
        mean = self._mean[lane] + mean
        peak = float((mean + _DEVIATIONS * np.sqrt(self._variance[lane] + variance)).max())
        held = float(mean[0])
        if request.late:
            return peak <= _LATE_POOL * self._pool
        share = self._growth if request.key[0] is Lane.ONLINE else 1.0
        return held + share * (peak - held) <= self._pool

    def copy(self) -> ExpectedGate:
        """One to try things with."""
        other = copy.copy(self)
        other._mean, other._variance = self._mean.copy(), self._variance.copy()
        return other

    def release(self, request: RequestView) -> None:
        """A running request gives up its memory."""
        mean, variance = self._needs([request])
        self._count(request.key[0], -mean, -variance)

    def admit(self, request: RequestView) -> None:
        """The request came in."""
        self.idle = False
        self._count(request.key[0], *self._of_new(request))
