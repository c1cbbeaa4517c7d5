"""The levers of the adapter: how a plan is set into vLLM's scheduler before a step, and taken out after it.

Each lever is one that vLLM's own loop reads (`docs/design/steering.md`): the order of `running`, the token budget,
`next_decode_eligible_step` (pause), the last word on a prefill chunk (cap), the two waiting queues (admission,
parking), and `_preempt_request`. Parking keeps a request's blocks and takes its slot: it moves to the queue of those
that wait while holding blocks, exactly as vLLM treats a request whose KV was loaded from elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.engine.ledger import per_lane
from vllm_hybrid.engine.queue import PlanQueue, make_parking_queue
from vllm_hybrid.engine.shadow import ShadowQueue
from vllm_hybrid.engine.tally import Tally
from vllm_hybrid.engine.view import Viewer
from vllm_hybrid.policy.plan import StepPlan
from vllm_hybrid.policy.request import RequestView
from vllm_hybrid.policy.waiting import WaitingRequests
from vllm_hybrid.policy.waits import WaitBooks


class Steering(Scheduler):
    """Carries plans out on the scheduler class that follows it in the MRO."""

    policy: SchedulingPolicy
    running: list[Request]
    max_num_scheduled_tokens: int
    clock: Callable[[], float] = staticmethod(time.perf_counter)
    steerable = False  # vLLM's own tests build schedulers without `__init__`; those are left alone

    def _install(
        self, waiting: WaitingRequests, viewer: Viewer, tally: Tally, clients: ClientTally, shadow: bool
    ) -> None:
        """Put our queues in the place of vLLM's. Called once, before any request arrives."""
        self.viewer = viewer
        self.tally = tally
        self.clients = clients
        self.waits = WaitBooks(self.clock())
        books = (waiting, viewer.view_of, self.waits, clients, viewer.clock)
        self.waiting = self.plan_queue = ShadowQueue(self.policy, *books) if shadow else PlanQueue(*books)
        self.kv_holding_waiting = self.parking = make_parking_queue(self.policy)
        self.parked: dict[str, Request] = {}
        self._full_budget = self.max_num_scheduled_tokens
        self._own_policy = self.policy
        self._caps: dict[str, int] = {}
        self._membership = 0  # grows whenever a request enters or leaves `running`
        self._holding: set[str] = set()  # requests that hold blocks and come in whatever the plan says
        self._paused_now = [0, 0]  # paused in the last planned step, by lane
        self._by_plan = False  # whoever loses its memory now does so because the plan says so
        self.steerable = True

    def _apply(self, plan: StepPlan) -> None:
        """Set vLLM's state so that its own loop does what the plan says."""
        victims = {v.handle for v in plan.preempt}
        self._by_plan = True
        if victims:
            timestamp = time.monotonic()
            self.running = [r for r in self.running if r not in victims]
            for view in plan.preempt:
                self._preempt_request(view.handle, timestamp, drop_stale_output=self.requires_kv_delivery)
        for view in plan.drop:
            self._drop_parked(view.handle)
        self._by_plan = False
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
        if plan.caps:  # a call per running request: only where a cap stands
            self._reserve_prefill_lookahead = self._capped_reserve
        self.max_num_scheduled_tokens = plan.token_budget
        self.policy = SchedulingPolicy.FCFS  # victims are taken from the end of our order
        back = {view.handle for view in plan.unpark}
        self.parking.hidden = frozenset(r for r in self.parked.values() if r not in back)
        self._holding = {r.request_id for r in self.parking} if len(self.parking) > len(self.parked) else set()
        self.plan_queue.begin_step(self._admitting(plan.candidates), (*plan.preempt, *plan.drop))

    def _admitting(self, candidates: Iterable[RequestView]) -> Generator[RequestView, None, None]:
        """The candidates; vLLM asks for the first when the running requests have theirs, and each may bring a cap."""
        self._reserve_prefill_lookahead = self._capped_reserve
        yield from candidates

    def _restore(self) -> None:
        """Give back what a plan lent; the opposite of `_apply`."""
        self.plan_queue.end_step()
        self.parking.hidden = frozenset()
        self.policy = self._own_policy
        self.max_num_scheduled_tokens = self._full_budget
        self.__dict__.pop("_reserve_prefill_lookahead", None)
        self._caps = {}

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
            self.tally.parkings[view.key[0]] += view.request_id in self.parked
            self.tally.pauses[view.key[0]] += view.request_id in self.parked

    def _least_chunk_tokens(self) -> int:
        """The smallest prefill chunk the model can be given; a smaller cap would stall or misalign it."""
        least = self.num_prefill_lookahead + 1 if self.num_prefill_lookahead else 1
        return max(least, self.block_size) if self.need_mamba_block_aligned_split else least

    def _capped(self, request: Request, tokens: int) -> int:
        cap = self._caps.get(request.request_id)
        return tokens if cap is None else min(tokens, max(cap, self._least_chunk_tokens()))

    def _capped_reserve(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM's last word on a chunk, after ours. A decode is never cut."""
        if request.num_tokens - num_computed_tokens > 1:
            num_new_tokens = self._capped(request, num_new_tokens)
        vllms_own = super()._reserve_prefill_lookahead
        return vllms_own(request, num_computed_tokens, num_new_tokens)

    def _mamba_block_aligned_split(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> int:
        if self.steerable:
            num_new_tokens = self._capped(request, num_new_tokens)
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
        self._lost_memory(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.prepend_request(request)

    def _lost_memory(self, request: Request) -> None:
        view = self.viewer.view_of(request)
        view.started = True
        view.disturbed_s = self.clock()
        self.tally.lost(view.key[0], self._by_plan, request.num_computed_tokens)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        # Blocks of a step that is being undone are in the prefix cache already, but will never be computed:
        # patches/priority-preemption.md.
        self._forget_uncomputed_blocks(request)
        if self.steerable:
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
        if reset_running_requests and self.steerable:
            for request in list(self.parked.values()):
                self._drop_parked(request)
        return super().reset_prefix_cache(reset_running_requests, reset_connector)
