"""VTC (OSDI'24, arXiv 2401.00588) and its ablation without the lift, on Sarathi's batch.

The client with the smallest counter is admitted next, and when its request does not fit, nobody is: the paper's
bound on the service gap needs both. Between lanes nothing is told apart. What the counters charge, and how that
differs from the paper, is said in `policy/fairness.py`.

Without the lift (`lcf`, least counter first) a client that was idle keeps the credit of its idleness and is served
alone until it has used it up.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import Parent, VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import LeastServed
from vllm_hybrid.policy.request import ClientKey


class VtcPlanner(BatchPlanner):
    """Admits the least served client first, by whatever counters it is given."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(LeastServed(counters, config.fairness.quantum))


class UnliftedCounters(VirtualCounters):
    """Service received since the start, whatever a client did in between.

    Nothing is forgotten, as that would be a credit too: the table grows with the number of client ids ever seen.
    """

    __slots__ = ()

    def lift(self, key: ClientKey, smallest_waiting: float | None) -> None:
        """Idleness counts as service forgone."""
        self.values.setdefault(key, 0.0)

    def forget_idle(self, busy: Container[ClientKey], smallest_waiting: Mapping[Parent, float | None]) -> None:
        """Nothing may be forgotten."""
