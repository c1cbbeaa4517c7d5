"""The comeback of an offline victim: only where it can keep its memory until its rest is over.

A request that lost its memory to online work and comes back is left alone for `preempt_interval_s`. Were it let in as
soon as its tokens fit, it and others like it would soon fill the pool with their own growth, and one of them would
have to lose its memory again. So what all of them may grow until then must fit too, beside what requests that may be
asked for their blocks hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import Lane, RequestView


class Comeback:
    """Counts, for one step, the blocks that a returning victim must leave free."""

    def __init__(
        self, view: StepView, running: Iterable[RequestView], predictor: StepTimePredictor, interval_s: float
    ) -> None:
        self._view = view
        self._most_tokens = _most_tokens_within(interval_s, predictor)
        rested_s = view.now_s - interval_s
        self._blocks = 0
        for request in running:
            if request.key[0] is Lane.ONLINE:
                continue
            if request.disturbed_s > rested_s:
                self._blocks += self._growth_blocks(request)
            else:
                self._blocks -= view.reclaimable_blocks(request)

    def reserve_blocks(self, request: RequestView) -> int:
        """Blocks to be left free beyond those of the admission itself."""
        return max(0, self._blocks + self._growth_blocks(request))

    def admitted(self, request: RequestView) -> None:
        """`request` came back: from now on it grows."""
        self._blocks += self._growth_blocks(request)

    def _growth_blocks(self, request: RequestView) -> int:
        held = request.computed_tokens + request.missing_tokens
        left = max(0, request.prompt_tokens + request.max_output_tokens - held)
        return math.ceil(min(left, self._most_tokens) / self._view.block_tokens)


def _most_tokens_within(seconds: float, predictor: StepTimePredictor) -> float:
    """Tokens that a request can generate in this time at the most, as far as is known."""
    step_s = predictor.seconds(StepWork(decodes=1)) if predictor.ready else 0.0
    return seconds / step_s if step_s > 0 else math.inf
