"""Two baselines of HyGen (arXiv 2501.14808): Sarathi++ and HyGen*.

Sarathi++ serves online requests first and fills the rest of a fixed token budget with offline ones, whatever that
does to the online latency: HyGen without its budget of seconds. HyGen* is Sarathi++ with the rate of offline requests
capped at what profiling found to be harmless; it leaves the machine idle rather than exceed the rate.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.published.hygen import HygenPlanner
from vllm_hybrid.policy.request import RequestView


class SarathiPlusPlanner(HygenPlanner):
    """Online before offline, a fixed token budget, no control of latency."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(config, counters, predictor)
        self._step_tokens = config.presets.sarathi_pp.token_budget or math.inf


class HygenStarPlanner(HygenPlanner):
    """Sarathi++ to which offline requests seem to arrive at a capped rate: late ones wait, and catch up."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(config, counters, predictor)
        options = config.presets.hygen_star
        self._step_tokens = options.token_budget or math.inf
        self._interval_s = 1 / options.offline_rate
        self._next_s = -math.inf  # no offline request is let in before

    def _offline_line(self, view: StepView) -> Generator[RequestView, None, None]:
        with contextlib.closing(super()._offline_line(view)) as line:
            for request in line:
                new = not request.started  # what lost its memory was let in before
                due_s = max(self._next_s, request.arrival_s)
                if new and due_s > view.now_s:
                    return
                try:
                    yield request
                finally:  # the engine does not ask again when this one filled the step
                    if new and view.admitted_tokens(request):
                        self._next_s = due_s + self._interval_s
