"""Deliberate mistakes in the adapter, each a small class in front of the chaos schedulers.

Two kinds: those that corrupt (KV, outputs, blocks, queues) and those that only cost pace, whose outputs are right. The
table in `test_mutations` says for each where it must be caught.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from tests.oracle.chaos import ChaosMixin
from vllm_hybrid.policy.plan import StepPlan

# -- mistakes that corrupt -------------------------------------------------------------------------------------------


class CountsATokenTooMany(ChaosMixin):
    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        for request in self.running:
            if self.dice.random() < 0.01 and request.num_computed_tokens < request.num_tokens - 2:
                request.num_computed_tokens += 1


class FreesBlocksOfARunningRequest(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        if self.running and self.dice.random() < 0.05:
            self.kv_cache_manager.free(self.dice.choice(self.running))
        super()._apply(plan)


class LosesBlocksAtTheEnd(ChaosMixin):
    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        if self.dice.random() < 0.1:
            self.kv_cache_manager.coordinator.pop_blocks_for_free(request.request_id)
        return super()._free_request(request, delay_free_blocks)


class ForgetsAPausedRequest(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        if plan.paused and self.dice.random() < 0.05:
            self.running = [r for r in self.running if r is not plan.paused[0].handle]


class ForgetsAVictim(ChaosMixin):
    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        if self.dice.random() < 0.1:
            self.waiting.remove_request(request)


class ClearsTheStaleCount(ChaosMixin):
    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        request.num_stale_output_tokens = 0


class DropsOutputUnderWay(ChaosMixin):
    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output=True)


class ParksWithAStepUnderWay(ChaosMixin):
    @staticmethod
    def _may_park(request: Request) -> bool:
        request.num_output_placeholders = 0
        return True


class ParksWithoutTellingTheWorker(ChaosMixin):
    def _park(self, request: Request) -> None:
        super()._park(request)
        self.reset_preempted_req_ids.discard(request.request_id)


class ParksWithoutTheBlocks(ChaosMixin):
    def _park(self, request: Request) -> None:
        super()._park(request)
        self.kv_cache_manager.free(request)
        request.num_computed_tokens = 0


class DropsAParkedRequestButKeepsItsCount(ChaosMixin):
    def _drop_parked(self, request: Request) -> None:
        computed = request.num_computed_tokens
        super()._drop_parked(request)
        request.num_computed_tokens = computed


class DropsAParkedRequestButKeepsItsBlocks(ChaosMixin):
    def _drop_parked(self, request: Request) -> None:
        manager = self.kv_cache_manager
        free, manager.free = manager.free, lambda request: None
        super()._drop_parked(request)
        manager.free = free


class PopsSomethingElseThanItPeeked(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        self.plan_queue.pop_request = lambda: self._pop_last()

    def _restore(self) -> None:
        del self.plan_queue.pop_request
        super()._restore()

    def _pop_last(self) -> Request:
        request = list(self.plan_queue)[-1]
        self.plan_queue._pinned = None
        self.plan_queue.remove_request(request)
        return request


# -- mistakes that cost pace -----------------------------------------------------------------------------------------


class IgnoresPauses(ChaosMixin):
    def _pause(self, requests: Iterable[Request]) -> None:
        pass


class PausesOneStepTooLong(ChaosMixin):
    def _pause(self, requests: Iterable[Request]) -> None:
        for request in requests:
            request.next_decode_eligible_step = self.current_step + 3


class PausesByLyingAboutProgress(ChaosMixin):
    def _pause(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        super()._pause(requests)
        for request in requests:
            request.num_computed_tokens = max(0, request.num_computed_tokens - 1)


class IgnoresCaps(ChaosMixin):
    def _capped_reserve(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        return num_new_tokens


class CutsDecodes(ChaosMixin):
    def _capped_reserve(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        if request.num_tokens - num_computed_tokens > 1:
            return super()._capped_reserve(request, num_computed_tokens, num_new_tokens)
        return min(num_new_tokens, 2)


class HalvesChunksNobodyCapped(ChaosMixin):
    def _capped_reserve(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        own = super()._capped_reserve(request, num_computed_tokens, num_new_tokens)
        return max(1, own // 2) if request.is_prefill_chunk else own


class IgnoresTheBudget(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        self.max_num_scheduled_tokens = self._full_budget


class KeepsTheBudgetAfterTheStep(ChaosMixin):
    def _restore(self) -> None:
        budget = self.max_num_scheduled_tokens
        super()._restore()
        self.max_num_scheduled_tokens = budget


class KeepsTheQueueClosedAfterTheStep(ChaosMixin):
    def _restore(self) -> None:
        self.plan_queue.end_step, end_step = lambda: None, self.plan_queue.end_step
        super()._restore()
        self.plan_queue.end_step = end_step


class IgnoresTheOrder(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(replace(plan, order=plan.order[::-1]))


class SparesTheVictims(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(replace(plan, preempt=[], order=plan.order + plan.preempt))


class ResumesAVictimInTheSameStep(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        self.plan_queue.begin_step(itertools.chain(plan.preempt, plan.candidates))


class BringsBackEverybodyParked(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        self.parking.hidden = frozenset()


class AdmitsWhomItLikes(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        self.plan_queue.end_step()


class AdmitsInReverse(ChaosMixin):
    def _apply(self, plan: StepPlan) -> None:
        super()._apply(replace(plan, candidates=list(plan.candidates)[::-1]))
