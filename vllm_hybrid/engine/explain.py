"""What keeps each lane's requests waiting, told after every step in which somebody waits. O(1) but for who came in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from vllm.v1.core.sched.interface import PauseState

from vllm_hybrid.policy.request import Lane
from vllm_hybrid.policy.waits import Reason

if TYPE_CHECKING:
    from vllm_hybrid.engine.scheduler import HybridMixin


class Explainer:
    """Tells the books of waits what a step did. Where the policy did not say why, the engine's state does."""

    def __init__(self, scheduler: HybridMixin) -> None:
        self._s = scheduler
        self._somebody_waited = False
        self.held: Mapping[Lane, Reason] = {}  # why the last plan ended the admissions of a lane

    def after_step(self, admitted: Collection[str], used_up: bool, now_s: float) -> None:
        """admitted: ids that came in. used_up: the step holds all the tokens it may."""
        waits, somebody_waits = self._s.waits, len(self._s.plan_queue) > 0
        if not (somebody_waits or self._somebody_waited):
            return
        self._somebody_waited = somebody_waits
        requests = self._s.requests
        lanes_in = {requests[request_id].hybrid_view.key[0] for request_id in admitted}
        for lane in Lane:
            waits.decided(lane, self._reason(lane, lane in lanes_in, used_up), now_s)

    def _reason(self, lane: Lane, others_came_in: bool, used_up: bool) -> Reason:
        s = self._s
        if not s.waiting_requests.lane_length(lane):
            return Reason.NEXT_STEP
        if s._pause_state != PauseState.UNPAUSED:
            return Reason.PAUSED
        if others_came_in and s.waiting_requests.clients_waiting(lane) > 1:
            return Reason.FAIR_SHARE
        if s.viewer.free_slots() <= 0:
            return Reason.SLOTS
        return self.held.get(lane) or (Reason.BUDGET if used_up else Reason.MEMORY)
