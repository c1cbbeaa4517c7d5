"""First come, first served, twice: Sarathi-Serve, and stock vLLM's own order behind our adapter.

`fcfs` decides as vLLM's class of that name does; it exists so that what else is switched on (the memory gate, above
all) can be compared under the same order.
"""

from __future__ import annotations

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import by_arrival


class SarathiPlanner(BatchPlanner):
    """Sarathi-Serve (OSDI'24, arXiv 2403.02310)."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(by_arrival, config.presets.sarathi.token_budget)


class FcfsPlanner(BatchPlanner):
    """vLLM's `fcfs`: running requests in order of admission, then waiting ones in order of arrival."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(by_arrival, decodes_first=False)
