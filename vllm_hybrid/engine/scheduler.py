"""The adapter: one engine step from view to plan to vLLM's own `schedule()` to the books.

With one online client and no latency target there is nothing to decide: the step is vLLM's own, untouched. When
nobody came or left, the last plan is used again. Otherwise the state is read into a `StepView`, the policy answers
with a `StepPlan`, `Steering` sets it into vLLM's scheduler, and what vLLM did is held against it. When the policy
fails, the step is vLLM's own and the failure is counted. Nothing of vLLM's scheduler is copied.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Generator
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_hybrid import compat
from vllm_hybrid.cache.manager import HalfBlockManager
from vllm_hybrid.cache.scheduler import ChoosesForm
from vllm_hybrid.engine import utilities
from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.engine.explain import Explainer
from vllm_hybrid.engine.ledger import Ledger
from vllm_hybrid.engine.live import LiveSettings
from vllm_hybrid.engine.report import Reporter
from vllm_hybrid.engine.seeding import seed
from vllm_hybrid.engine.shadow import differences
from vllm_hybrid.engine.sharing import Sharing
from vllm_hybrid.engine.shut import Shut
from vllm_hybrid.engine.steering import Steering
from vllm_hybrid.engine.step_timer import StepTimer
from vllm_hybrid.engine.tally import StepMode, Tally
from vllm_hybrid.engine.view import Viewer
from vllm_hybrid.policy.billing import PromptBilling
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.gap import ServiceGaps
from vllm_hybrid.policy.gate import ExpectingPlanner
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.policy.limits import limits_of, limits_running
from vllm_hybrid.policy.plan import StepPlan, StepResult, check_obedience, check_plan
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.presets import PRESETS
from vllm_hybrid.policy.remote import SharedCounters
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.policy.value import Urgency
from vllm_hybrid.policy.waiting import WaitingRequests
from vllm_hybrid.settings import settings_of

logger = logging.getLogger("vllm.hybrid.scheduler")

_ENDED_BY_ITSELF = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
_MANY_CLIENTS = 1024  # counters kept before those of idle clients are looked through


class HybridMixin(Steering):
    """Decides for the scheduler class that follows it in the MRO."""

    planner: Planner | None = None
    blocks: HalfBlockManager | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hybrid_config = settings_of(self.vllm_config)
        preset = PRESETS[self.hybrid_config.preset]
        self.predictor = preset.predictor(self.hybrid_config)
        self.counters = preset.counters(self.hybrid_config, self.predictor)
        self.fair_counters: VirtualCounters | SharedCounters = self.counters  # what lifts and forgets
        if self.hybrid_config.profile is not None:
            seed(self.predictor, self.hybrid_config.profile, self.vllm_config)
        urgency = Urgency() if preset.by_value else None
        by_prefix = self.hybrid_config.preset == "hybrid" and self.hybrid_config.lanes.offline.order == "prefix"
        by_priority = self.policy == SchedulingPolicy.PRIORITY
        self.waiting_requests = WaitingRequests(self.counters, by_priority, urgency, by_prefix)
        timed = self.hybrid_config.follows_outputs
        viewer = Viewer(self, lambda: self.clock(), preset.key, timed, self.blocks, by_prefix)
        clients = ClientTally(self.hybrid_config.clients, self.hybrid_config.metrics.first_clients)
        self._shadow = self.hybrid_config.mode == "shadow"
        self._install(self.waiting_requests, viewer, Tally(), clients, self._shadow)
        fairness = self.hybrid_config.fairness
        billing = PromptBilling(fairness.charge_cached, fairness.bill_recompute)
        self.gaps = ServiceGaps(self.counters, self.waiting_requests)
        self.ledger = Ledger(self.counters, self.viewer.view_of, billing, clients, self.gaps)
        self.timer = StepTimer(self.predictor)
        self._live: Counter[ClientKey] = Counter()  # requests in the system, by client
        self._planned_membership = -1  # membership for which the last plan still stands
        self._repeatable = -1  # membership for which the last step that was billed can be billed again
        self._steps_since_plan = 0
        self._offline_runs = False
        self._step_budget = self._full_budget  # tokens that the last step might hold
        self._shut = Shut()
        self._forget_at = _MANY_CLIENTS
        self._error_logged = False
        self.limit_running()
        self.live = LiveSettings(self)
        self.report = Reporter(self)
        self.sharing = Sharing(self)
        self.explainer = Explainer(self)
        self.planner = preset.make_planner(self.hybrid_config, self.counters, self.predictor)
        survival = self.planner.survival if isinstance(self.planner, ExpectingPlanner) else None
        self._lengths = [learner for learner in (self.counters.lengths, survival) if learner is not None]

    def limit_running(self) -> None:
        """Take the limits on running requests from the settings."""
        config = self.hybrid_config
        self.waiting_requests.slots_left = self._slots_left if limits_running(config) else None
        self._most_running = {name: limits_of(config, name).max_running for name in config.clients}
        self._most_running_others = config.fairness.limits.max_running

    def _slots_left(self, key: ClientKey) -> float:
        """How many more requests of the client may run. What lost its memory keeps its place."""
        most = self._most_running.get(key[1], self._most_running_others)
        if most is None:
            return math.inf
        waiting = self.waiting_requests
        return most - sum(self._live[at, key[1]] - waiting.newcomers_of((at, key[1])) for at in Lane)

    # -- one step --------------------------------------------------------------------------------------------------
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One engine step."""
        if self.planner is None:
            return super().schedule(throttle_prefills)
        if self._stock_step():
            mode, output = StepMode.STOCK, self._schedule_stock(throttle_prefills)
        elif self._shadow:
            mode, output = StepMode.SHADOW, self._schedule_in_shadow(throttle_prefills)
        elif self._can_reuse():
            mode, output = StepMode.REUSE, self._schedule_again(throttle_prefills)
        else:
            mode, output = self._schedule_planned(throttle_prefills)
        self.tally.steps[mode] += 1
        if len(self._live) > 1:
            self.tally.contended[mode] += 1
        now_s = self.clock()
        self.explainer.after_step(_admitted(output), output.total_num_scheduled_tokens >= self._step_budget, now_s)
        self.timer.scheduled(output, now_s, self.ledger.work, output.total_num_scheduled_tokens)
        return output

    def _stock_step(self) -> bool:
        """Whether there is nothing to decide: one client, online, no target; or vLLM admits nobody (sleep, say)."""
        if self._pause_state != PauseState.UNPAUSED:
            return True
        if self.waiting_requests.slots_left or (self.planner is not None and self.planner.always):
            return False
        if len(self._live) > 1 or self.hybrid_config.slo.has_online_target:
            return False
        return all(lane is Lane.ONLINE for lane, _ in self._live)

    def _schedule_stock(self, throttle_prefills: bool) -> SchedulerOutput:
        self._planned_membership = -1
        self._paused_now = [0, 0]
        self.explainer.held, self._step_budget = {}, self._full_budget
        self.ledger.settle()
        return super().schedule(throttle_prefills)

    def _can_reuse(self) -> bool:
        """Whether `running` as it stands is the plan: everybody decodes, nobody can come in, and time allows it."""
        assert self.planner is not None
        running = len(self.running)
        if self._planned_membership != self._membership or self._inflight_prefills or self.kv_holding_waiting:
            return False
        if len(self.plan_queue) and self.viewer.free_slots() > 0 and not self._is_shut():
            return False
        if self._offline_runs and self.waiting_requests.lane_length(Lane.ONLINE):
            return False
        if running * (1 + self.num_spec_tokens) > self._full_budget:
            return False
        if (self._offline_runs or self.hybrid_config.paces) and self.viewer.growth_is_tight():
            return False
        now_s, timer = self.clock(), self.timer
        work = StepWork(decodes=running, context_tokens=self.ledger.work.context_tokens + running)
        try:
            pending_s = timer.pending_s(now_s)
            return self.planner.reusable(work, now_s, pending_s, timer.last_output_s, self._steps_since_plan)
        except Exception as error:
            self._policy_failed(error)
            return False

    def _is_shut(self) -> bool:
        """Whether nobody finds memory: there is none, or whom the last plan had none for is next and finds no more."""
        if not self.running:
            return False
        manager = self.kv_cache_manager
        free = manager.block_pool.get_num_free_blocks()
        return self._shut.holds(free, free - manager.watermark_blocks, self._steps_since_plan, self._next_in_line)

    def _next_in_line(self) -> RequestView | None:
        self.ledger.settle()
        return self.waiting_requests.head()

    def _schedule_again(self, throttle_prefills: bool) -> SchedulerOutput:
        self.explainer.held = {}  # only slots or memory keep others out now
        self._steps_since_plan += 1
        self.policy = SchedulingPolicy.FCFS
        self.plan_queue.begin_step(())
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.plan_queue.end_step()
            self.policy = self._own_policy

    def _schedule_in_shadow(self, throttle_prefills: bool) -> SchedulerOutput:
        """Decide, step as stock, and note the difference."""
        plan = first = None
        try:
            plan = self._plan()
            candidates = iter(plan.candidates)
            first = next(candidates, None)
            if isinstance(candidates, Generator):
                candidates.close()
        except Exception as error:
            self._policy_failed(error)
        output = self._schedule_stock(throttle_prefills)
        if plan is not None:
            self.tally.shadow.update(differences(plan, first, output, _admitted(output)))
        return output

    def _plan(self) -> StepPlan:
        assert self.planner is not None
        self.ledger.settle()
        pending_s = self.timer.pending_s(self.clock())
        view = self.viewer.step_view(self.waiting_requests, self.parked.values(), self.timer.last_output_s, pending_s)
        plan = self.planner.plan(view)
        check_plan(view, plan)
        return plan

    def _schedule_planned(self, throttle_prefills: bool) -> tuple[StepMode, SchedulerOutput]:
        try:
            plan = self._plan()
        except Exception as error:
            self._policy_failed(error)
            return StepMode.FALLBACK, self._schedule_stock(throttle_prefills)
        self._apply(plan)
        membership = self._membership
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self._restore()
        self._check(plan, output)
        self.explainer.held, self._step_budget = plan.held, plan.token_budget
        self.tally.budget_tokens[0] += plan.token_budget
        self.tally.budget_tokens[1] += output.total_num_scheduled_tokens
        stands = not (plan.paused or plan.park or plan.caps or self._inflight_prefills)
        self._planned_membership = membership if stands else -1  # who came in during the step is not in the order yet
        self._shut.planned(plan, self.kv_cache_manager.block_pool.get_num_free_blocks())
        self._offline_runs = any(v.key[0] is Lane.OFFLINE for v in reversed(plan.order))  # they stand last
        self._steps_since_plan = 1
        return StepMode.PLAN, output

    def _check(self, plan: StepPlan, output: SchedulerOutput) -> None:
        """Hold the step against its plan; a difference is a defect of ours, counted like a failing policy."""
        try:
            if self.plan_queue.error is not None:
                raise self.plan_queue.error
            result = StepResult(
                total_tokens=output.total_num_scheduled_tokens,
                scheduled=output.num_scheduled_tokens,
                drafts=output.scheduled_spec_decode_tokens,
                admitted=_admitted(output),
                offered=self.plan_queue.offered.keys() | self._holding,
                least_chunk_tokens=self._least_chunk_tokens(),
            )
            check_obedience(plan, result)
        except Exception as error:
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

    # -- what vLLM tells us ----------------------------------------------------------------------------------------
    def add_request(self, request: Request) -> None:
        """A request arrives, or a streaming session continues."""
        if self.planner is None or request.request_id in self.requests:
            super().add_request(request)
            return
        self._shut.arrival()
        key = self.viewer.view_of(request).key
        self._lift(key)
        super().add_request(request)
        self._live[key] += 1

    def _lift(self, key: ClientKey) -> None:
        """Before a request of the client enters the queue: idleness earns no credit."""
        if not self.waiting_requests.waits(key):
            self.ledger.settle()
            promised = None
            if self.counters.lengths is not None:  # much of what others will be charged for is not charged yet
                promised = Groups.of(self.viewer.running()).promised(self.counters)
            self.waiting_requests.lift(key, promised, self.fair_counters.lift)

    def _lost_memory(self, request: Request) -> None:
        self._lift(self.viewer.view_of(request).key)
        super()._lost_memory(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        if self.planner is not None:
            self._membership += 1
            self.parked.pop(request.request_id, None)
            key = self.viewer.view_of(request).key
            self._live[key] -= 1
            if self._lengths and request.status in _ENDED_BY_ITSELF:
                for lengths in self._lengths:
                    lengths.observe(key, request.num_output_tokens)
            if self._live[key] <= 0:
                del self._live[key]
                self._forget_idle()
        return super()._free_request(request, delay_free_blocks)

    def _forget_idle(self) -> None:
        """Bound what is kept of clients that are gone: client ids come from outside."""
        if len(self.counters.values) < self._forget_at:
            return
        self.ledger.settle()
        self.fair_counters.forget_idle(self._live, self.waiting_requests.smallest_counters())
        self._forget_at = max(_MANY_CLIENTS, 2 * len(self.counters.values))

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self.planner is not None:
            try:
                self._account(scheduler_output)
            except Exception as error:
                self._policy_failed(error)
        super()._update_after_schedule(scheduler_output)

    def _account(self, output: SchedulerOutput) -> None:
        """Note who came in, and bill the step; `num_computed_tokens` is still that of before the step."""
        scheduled, came = output.num_scheduled_tokens, _admitted(output)
        if came:
            self._membership += 1
            for request_id in came:
                self._came_in(request_id)
        one_each = output.total_num_scheduled_tokens == len(scheduled) == len(self.running)
        if one_each and not came and self._repeatable == self._membership:
            self.ledger.repeat(len(scheduled))
            return
        self.ledger.record(scheduled, self.requests)
        everybody_decodes = one_each and self.ledger.work.decodes == len(scheduled)
        self._repeatable = self._membership if everybody_decodes else -1

    def _came_in(self, request_id: str) -> None:
        if self.parked.pop(request_id, None) is None:
            view = self.viewer.view_of(self.requests[request_id])
            self.waits.came_in(view)
            if view.started:  # protected anew, or it would lose its memory again before it got anywhere
                view.started, view.disturbed_s = False, self.clock()

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        """The output of a step comes back."""
        if self.planner is not None:
            try:
                self.timer.returned(scheduler_output, self.clock())
            except Exception as error:
                self._policy_failed(error)
        return super().update_from_output(scheduler_output, model_runner_output)


def _admitted(output: SchedulerOutput) -> list[str]:
    """Requests that came in from a waiting queue. (The V2 model runner gets resumed ones as new.)"""
    return [*output.scheduled_cached_reqs.resumed_req_ids, *(new.req_id for new in output.scheduled_new_reqs)]


class HybridSyncScheduler(HybridMixin, ChoosesForm, Scheduler):
    """For engines without async scheduling."""


class HybridScheduler(HybridMixin, ChoosesForm, AsyncScheduler):
    """For engines with async scheduling (vLLM's default on GPUs)."""


def make_scheduler(**kwargs: Any) -> HybridMixin:
    """The factory behind ``scheduler_cls="vllm_hybrid.Scheduler"``.

    vLLM calls it with keyword arguments where the scheduler is built; only there it is settled whether the engine
    schedules asynchronously.
    """
    compat.check(compat.SCHEDULER)
    utilities.attach()
    asynchronous = kwargs["vllm_config"].scheduler_config.async_scheduling
    return (HybridScheduler if asynchronous else HybridSyncScheduler)(**kwargs)
