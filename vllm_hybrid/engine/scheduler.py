"""The steering adapter: vLLM's own scheduler, told what to do by a plan, step by step.

Before `super().schedule()` the adapter puts the running requests in the plan's order, preempts and parks, pauses
(vLLM skips a request whose `next_decode_eligible_step` lies ahead), lowers the token budget, and lets the waiting
queue offer the plan's candidates; a cap on a prefill chunk is the last word of `_reserve_prefill_lookahead`.
Afterwards it restores what it lent, and holds the result against the plan. Nothing of vLLM's scheduler is copied.

With one client and no latency target there is nothing to decide: the step is vLLM's own, untouched. When nobody came or
left, the last plan is used again. When the policy fails, the step is vLLM's own and the failure is counted.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_hybrid import compat
from vllm_hybrid.engine.ledger import Ledger, per_lane
from vllm_hybrid.engine.queue import PlanQueue, make_parking_queue
from vllm_hybrid.engine.step_timer import StepTimer
from vllm_hybrid.engine.tally import StepMode, Tally
from vllm_hybrid.engine.view import Viewer
from vllm_hybrid.policy.compose import HybridPlanner
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, check_obedience, check_plan
from vllm_hybrid.policy.request import ClientKey, Lane
from vllm_hybrid.policy.waiting import WaitingRequests
from vllm_hybrid.settings import settings_of

logger = logging.getLogger("vllm.hybrid.scheduler")


class HybridMixin(Scheduler):
    """Steers the scheduler class that follows it in the MRO."""

    policy: SchedulingPolicy
    running: list[Request]
    max_num_scheduled_tokens: int

    # Class level: vLLM's own tests build schedulers without `__init__`; those are served as stock.
    planner: HybridPlanner | None = None
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hybrid_config = settings_of(self.vllm_config)
        fairness = self.hybrid_config.fairness
        weights = {name: client.weight for name, client in self.hybrid_config.clients.items()}
        self.counters = VirtualCounters(fairness.input_weight, fairness.output_weight, weights)
        self.predictor = StepTimePredictor()
        self.viewer = Viewer(self, lambda: self.clock())
        self.ledger = Ledger(self.counters, self.viewer.view_of)
        self.timer = StepTimer(self.predictor)
        self.tally = Tally()
        self.waiting_requests = WaitingRequests(self.counters, self.policy == SchedulingPolicy.PRIORITY)
        self.waiting = self.plan_queue = PlanQueue(self.waiting_requests, self.viewer.view_of)
        self.kv_holding_waiting = self.parking = make_parking_queue(self.policy)
        self.parked: dict[str, Request] = {}
        self._live: Counter[ClientKey] = Counter()  # requests in the system, by client
        self._full_budget = self.max_num_scheduled_tokens
        self._own_policy = self.policy
        self._caps: dict[str, int] = {}
        self._membership = 0  # grows whenever a request enters or leaves `running`
        self._planned_membership = -1  # membership for which the last plan still stands
        self._repeatable = -1  # membership for which the last step that was billed can be billed again
        self._steps_since_plan = 0
        self._paused_now: list[int] = [0, 0]
        self._error_logged = False
        self.planner = HybridPlanner(self.hybrid_config, self.counters, self.predictor)

    # -- one step --------------------------------------------------------------------------------------------------
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One engine step."""
        if self.planner is None:
            return super().schedule(throttle_prefills)
        if self._stock_step():
            mode, output = StepMode.STOCK, self._schedule_stock(throttle_prefills)
        elif self._can_reuse():
            mode, output = StepMode.REUSE, self._schedule_again(throttle_prefills)
        else:
            mode, output = self._schedule_planned(throttle_prefills)
        self.tally.steps[mode] += 1
        if len(self._live) > 1:
            self.tally.contended[mode] += 1
        self.timer.scheduled(output, self.clock(), self.ledger.work, output.total_num_scheduled_tokens)
        return output

    def _stock_step(self) -> bool:
        """Whether there is nothing to decide: one client, no target; or vLLM admits nobody (sleep, weight update)."""
        if self._pause_state != PauseState.UNPAUSED:
            return True
        return len(self._live) <= 1 and not self.hybrid_config.slo.has_online_target

    def _schedule_stock(self, throttle_prefills: bool) -> SchedulerOutput:
        self._planned_membership = -1
        self._paused_now = [0, 0]
        self.ledger.settle()
        return super().schedule(throttle_prefills)

    def _can_reuse(self) -> bool:
        """Whether `running` as it stands is the plan: everybody decodes, nobody can come in, and time allows it."""
        assert self.planner is not None
        running = len(self.running)
        if self._planned_membership != self._membership or self._inflight_prefills or self.kv_holding_waiting:
            return False
        if len(self.plan_queue) and self.viewer.free_slots() > 0:
            return False
        if running * (1 + self.num_spec_tokens) > self._full_budget:
            return False
        now_s, timer = self.clock(), self.timer
        work = StepWork(decodes=running, context_tokens=self.ledger.work.context_tokens + running)
        return self.planner.reusable(work, now_s, timer.pending_s(now_s), timer.last_output_s, self._steps_since_plan)

    def _schedule_again(self, throttle_prefills: bool) -> SchedulerOutput:
        self._steps_since_plan += 1
        self.plan_queue.begin_step(())
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.plan_queue.end_step()

    def _schedule_planned(self, throttle_prefills: bool) -> tuple[StepMode, SchedulerOutput]:
        assert self.planner is not None
        try:
            self.ledger.settle()
            now_s = self.clock()
            view = self.viewer.step_view(self.waiting_requests, self.timer.last_output_s, self.timer.pending_s(now_s))
            plan = self.planner.plan(view)
            check_plan(view, plan)
        except Exception as error:
            self._policy_failed(error)
            return StepMode.FALLBACK, self._schedule_stock(throttle_prefills)
        self._apply(plan)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self._restore()
        self._check(plan, output)
        only_decodes = not (plan.paused or plan.park or plan.caps or self._inflight_prefills)
        self._planned_membership = self._membership if only_decodes else -1
        self._steps_since_plan = 1
        return StepMode.PLAN, output

    def _apply(self, plan: StepPlan) -> None:
        """Set vLLM's state so that its own loop does what the plan says."""
        victims = {v.handle for v in plan.preempt}
        if victims:
            timestamp = time.monotonic()
            self.running = [r for r in self.running if r not in victims]
            for view in plan.preempt:
                self._preempt_request(view.handle, timestamp, drop_stale_output=self.requires_kv_delivery)
        for view in plan.drop:
            self._drop_parked(view.handle)
        paused = list(plan.paused)
        stay: list[Request] = []
        for view in plan.park:
            if self._may_park(view.handle):
                self._park(view.handle)
            else:  # tokens in flight: it pauses for this step and can be parked in the next
                paused.append(view)
                stay.append(view.handle)
        self.running = [view.handle for view in plan.order] + stay
        self._pause(view.handle for view in paused)
        self._count_pauses(plan, paused)
        self._caps = plan.caps
        if plan.caps or plan.candidates:  # a call per running request: only where a cap may stand
            self._reserve_prefill_lookahead = self._capped_reserve
        self.max_num_scheduled_tokens = plan.token_budget
        self.policy = SchedulingPolicy.FCFS  # victims are taken from the end of our order
        back = {view.handle for view in plan.unpark}
        self.parking.hidden = frozenset(r for r in self.parked.values() if r not in back)
        self.plan_queue.begin_step(plan.candidates, (*plan.preempt, *plan.drop))

    def _restore(self) -> None:
        """Give back what a plan lent; the opposite of `_apply`."""
        self.plan_queue.end_step()
        self.parking.hidden = frozenset()
        self.policy = self._own_policy
        self.max_num_scheduled_tokens = self._full_budget
        self.__dict__.pop("_reserve_prefill_lookahead", None)
        self._caps = {}

    def _check(self, plan: StepPlan, output: SchedulerOutput) -> None:
        """Hold the step against its plan; a difference is a defect of ours, counted like a failing policy."""
        error = self.plan_queue.error
        if error is None:
            admitted = [new.req_id for new in output.scheduled_new_reqs]
            admitted += output.scheduled_cached_reqs.resumed_req_ids
            try:
                total = output.total_num_scheduled_tokens
                check_obedience(plan, total, output.num_scheduled_tokens, admitted, self.plan_queue.offered)
            except Exception as difference:
                error = difference
        if error is not None:
            self._policy_failed(error)

    def _policy_failed(self, error: Exception) -> None:
        self.tally.policy_errors += 1
        if self.hybrid_config.strict:
            raise error
        if not self._error_logged:
            self._error_logged = True
            logger.error(
                "The hybrid policy failed; this step is served as by stock vLLM, and further failures are only counted "
                "(vllm_hybrid_policy_errors_total).",
                exc_info=error,
            )

    # -- levers ----------------------------------------------------------------------------------------------------
    def _pause(self, requests: Iterable[Request]) -> None:
        # vLLM raises `current_step` first thing, so + 2 skips exactly the coming step.
        until = self.current_step + 2
        for request in requests:
            request.next_decode_eligible_step = max(request.next_decode_eligible_step, until)

    def _count_pauses(self, plan: StepPlan, paused: list[Any]) -> None:
        self._paused_now = per_lane(paused)
        for view in paused:
            self.tally.pauses[view.key[0]] += 1
        for view in plan.park:
            self.tally.pauses[view.key[0]] += view.request_id in self.parked

    def _capped_reserve(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM's last word on a chunk, after ours. A decode is never cut."""
        cap = self._caps.get(request.request_id)
        if cap is not None and cap < num_new_tokens and request.num_tokens - num_computed_tokens > 1:
            num_new_tokens = max(cap, self.num_prefill_lookahead + 1) if self.num_prefill_lookahead else cap
        vllms_own = super()._reserve_prefill_lookahead
        return vllms_own(request, num_computed_tokens, num_new_tokens)

    def _mamba_block_aligned_split(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> int:
        cap = self._caps.get(request.request_id) if self.planner is not None else None
        if cap is not None and cap < num_new_tokens:
            num_new_tokens = max(cap, min(self.block_size, num_new_tokens))
        return super()._mamba_block_aligned_split(request, num_new_tokens, *args, **kwargs)

    @staticmethod
    def _may_park(request: Request) -> bool:
        return request.num_in_flight_tokens == 0 and request.num_output_placeholders == 0

    def _park(self, request: Request) -> None:
        """Take the slot of a running request and leave it its blocks."""
        self._membership += 1
        request.status = RequestStatus.PREEMPTED
        request.spec_token_ids = []
        self.reset_preempted_req_ids.add(request.request_id)  # the V2 model runner frees its slot
        self._inflight_prefills.discard(request)
        self.kv_holding_waiting.add_request(request)
        self.parked[request.request_id] = request

    def _drop_parked(self, request: Request) -> None:
        """A parked request gives up its blocks too: from now on it is an ordinary preempted one."""
        del self.parked[request.request_id]
        self.kv_holding_waiting.remove_request(request)
        self.deferred_waiting.discard(request)
        self._free_request_blocks(request)
        self.encoder_cache_manager.free(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self._lost_memory(request)
        self.waiting.prepend_request(request)

    def _lost_memory(self, request: Request) -> None:
        view = self.viewer.view_of(request)
        view.started = True
        view.preempted_s = self.clock()
        self.tally.preemptions[view.key[0]] += 1

    # -- what vLLM tells us ----------------------------------------------------------------------------------------
    def add_request(self, request: Request) -> None:
        """A request arrives, or a streaming session continues."""
        if self.planner is None or request.request_id in self.requests:
            super().add_request(request)
            return
        key = self.viewer.view_of(request).key
        if not self.waiting_requests.waits(key):
            self.ledger.settle()
            self.counters.lift(key, self.waiting_requests.smallest_counter(key[0]))
        super().add_request(request)
        self._live[key] += 1

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        if self.planner is not None:
            self._membership += 1
            self.parked.pop(request.request_id, None)
            key = self.viewer.view_of(request).key
            self._live[key] -= 1
            if self._live[key] <= 0:
                del self._live[key]
        return super()._free_request(request, delay_free_blocks)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        # Blocks of a step that is being undone are in the prefix cache already, but will never be computed:
        # patches/priority-preemption.md.
        self._forget_uncomputed_blocks(request)
        if self.planner is not None:
            self._membership += 1
            self._lost_memory(request)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _forget_uncomputed_blocks(self, request: Request) -> None:
        manager = self.kv_cache_manager
        if not manager.enable_caching:
            return
        uncomputed: set[int] = set()
        groups = self.kv_cache_config.kv_cache_groups
        for group, blocks in zip(groups, manager.get_blocks(request.request_id).blocks, strict=True):
            computed_blocks = request.num_computed_tokens // group.kv_cache_spec.block_size
            uncomputed.update(b.block_id for b in blocks[computed_blocks:] if b.block_hash is not None)
        if uncomputed:
            manager.evict_blocks(uncomputed)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """As vLLM's; parked requests hold blocks too and give them up first."""
        if reset_running_requests and self.planner is not None:
            for request in list(self.parked.values()):
                self._drop_parked(request)
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self.planner is not None:
            scheduled = scheduler_output.num_scheduled_tokens
            resumed = scheduler_output.scheduled_cached_reqs.resumed_req_ids
            came = bool(scheduler_output.scheduled_new_reqs or resumed)
            if came:
                self._membership += 1
                for request_id in resumed:
                    self.parked.pop(request_id, None)
                if self.parked and self.use_v2_model_runner:  # there resumed requests are sent as new ones
                    for new in scheduler_output.scheduled_new_reqs:
                        self.parked.pop(new.req_id, None)
            everybody_decodes = scheduler_output.total_num_scheduled_tokens == len(scheduled) == len(self.running)
            if everybody_decodes and not came and self._repeatable == self._membership:
                self.ledger.repeat(len(scheduled))
            else:
                self.ledger.record(scheduled, self.requests)
                self._repeatable = self._membership if everybody_decodes else -1
        super()._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        """The output of a step comes back."""
        if self.planner is not None:
            self.timer.returned(scheduler_output, self.clock())
        return super().update_from_output(scheduler_output, model_runner_output)

    # -- what we tell others ---------------------------------------------------------------------------------------
    def hybrid_drain(self) -> dict[str, Any]:
        """What happened since the last call, and how many requests wait, run and pause now."""
        running = per_lane(self.viewer.view_of(r) for r in self.running)
        parked = per_lane(self.viewer.view_of(r) for r in self.parked.values())
        requests = {
            lane.label: {
                "waiting": self.waiting_requests.lane_length(lane),
                "running": running[lane],
                "paused": self._paused_now[lane] + parked[lane],
            }
            for lane in Lane
        }
        self.tally.bad_identities, self.viewer.bad_identities = self.viewer.bad_identities, 0
        return self.tally.drain(self.ledger.drain(), requests, self.predictor)


class HybridSyncScheduler(HybridMixin, Scheduler):
    """For engines without async scheduling."""


class HybridScheduler(HybridMixin, AsyncScheduler):
    """For engines with async scheduling (vLLM's default on GPUs)."""


def make_scheduler(**kwargs: Any) -> HybridMixin:
    """The factory behind ``scheduler_cls="vllm_hybrid.Scheduler"``.

    vLLM calls it with keyword arguments where the scheduler is built; only there it is settled whether the engine
    schedules asynchronously.
    """
    compat.check(compat.SCHEDULER)
    _attach_utilities()
    asynchronous = kwargs["vllm_config"].scheduler_config.async_scheduling
    return (HybridScheduler if asynchronous else HybridSyncScheduler)(**kwargs)


def _attach_utilities() -> None:
    """Let the front end ask: the engine core looks utility calls up by name."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.hybrid_drain = lambda core: core.scheduler.hybrid_drain()
