"""One engine's side of a fairness over several replicas: what it tells the hub, and what it hears.

Every call comes between two steps, from the process that talks to the hub (`ray/reporter.py`); no step waits for
another replica. Cost: O(clients known) per report, O(clients that changed) per answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_hybrid.policy.remote import SharedCounters
from vllm_hybrid.policy.request import Lane

if TYPE_CHECKING:
    from vllm_hybrid.engine.scheduler import HybridMixin


class Sharing:
    """Shares the counters of one scheduler from the first report on."""

    def __init__(self, scheduler: HybridMixin) -> None:
        self._s = scheduler
        self._counters: SharedCounters | None = None

    def report(self) -> dict[str, Any]:
        """What the hub shall be told (`SharedCounters.report`)."""
        s = self._s
        s.ledger.settle()
        if self._counters is None:
            self._counters = s.fair_counters = SharedCounters(s.counters)
        return self._counters.report(s.waiting_requests.waits)

    def apply(self, answer: dict[str, Any]) -> None:
        """The hub's answer to the last report."""
        self._s.ledger.settle()
        if self._counters is not None:
            self._counters.apply(answer)

    def alone(self) -> None:
        """The hub has been silent for too long."""
        if self._counters is not None:
            self._counters.alone()

    def load(self) -> dict[str, float]:
        """What a router and an autoscaler need to know: requests by lane, slots, blocks, and the slack in seconds.

        `slack_s` is absent where no deadline is known.
        """
        s = self._s
        pool = s.kv_cache_manager.block_pool
        load = {
            f"{lane.label}_{state}": float(count)
            for lane in Lane
            for state, count in s.report.requests()[lane.label].items()
        }
        load |= {
            "slots": float(s.max_num_active_reqs),
            "blocks": float(pool.num_gpu_blocks),
            "free_blocks": float(pool.get_num_free_blocks()),
        }
        deadlines = [v.deadline_s for v in s.viewer.running() if v.lane is Lane.ONLINE and v.deadline_s == v.deadline_s]
        if deadlines:
            load["slack_s"] = min(deadlines) - s.clock()
        return load
