"""vLLM's state, read into the policy's records.

Every request gets one `RequestView`, kept on the request itself, so that it lives exactly as long. Questions that
cost a look into the block pool (does this request fit, what would that victim free) are asked by the policy, one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_hybrid.cache.manager import HalfBlockManager
from vllm_hybrid.config import DEFAULT_CLIENT, LANES, request_identity
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.prefix_order import prefix_of
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.policy.waiting import WaitingRequests


class Viewer:
    """Reads one scheduler.

    key: the client and lane of a request as the policy tells them apart. timed: deadlines are kept, or output lengths
    predicted, so the progress of every output matters. blocks: where the engine has half blocks.
    prefixes: offline requests are ordered by how their prompts begin.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float],
        key: Callable[[Lane, str], ClientKey],
        timed: bool,
        blocks: HalfBlockManager | None,
        prefixes: bool,
    ) -> None:
        self._s = scheduler
        self._blocks = blocks
        self._key = key
        self._prefixes = prefixes
        self.timed = timed
        self.clock = clock
        self.bad_identities = 0

    def view_of(self, request: Request) -> RequestView:
        """The record of a request, made at first sight."""
        try:
            return request.hybrid_view
        except AttributeError:
            view = request.hybrid_view = self._new_view(request)
            return view

    def _new_view(self, request: Request) -> RequestView:
        params = request.sampling_params
        extra_args = params.extra_args if params is not None else None
        try:
            lane, client = request_identity(extra_args)
        except ValueError:  # the front refuses these; whoever bypasses it is served, at nobody else's cost
            self.bad_identities += 1
            lane, client = LANES[Lane.OFFLINE], DEFAULT_CLIENT
        key = self._key(Lane(LANES.index(lane)), client)
        return RequestView(
            request_id=request.request_id,
            key=key,
            arrival_s=self.clock(),
            order_s=request.arrival_time,
            priority=request.priority,
            prompt_tokens=request.num_prompt_tokens,
            missing_tokens=request.num_tokens - request.num_computed_tokens,
            handle=request,
            max_output_tokens=request.max_tokens,
            prefix=prefix_of(request.block_hashes) if self._prefixes and key[0] is Lane.OFFLINE else (),
        )

    def step_view(
        self, waiting: WaitingRequests, parked: Iterable[Request], last_output_s: float, pending_s: float
    ) -> StepView:
        """The engine's state right before a step."""
        s = self._s
        pool = s.kv_cache_manager.block_pool
        return StepView(
            now_s=self.clock(),
            running=self.running(),
            parked=[self._parked_view(request) for request in parked],
            waiting=waiting,
            free_slots=self.free_slots(),
            free_blocks=pool.get_num_free_blocks() - s.kv_cache_manager.watermark_blocks,
            growth_blocks_free=pool.get_num_free_blocks(),
            block_tokens=s.block_size,
            total_blocks=pool.num_gpu_blocks,
            max_tokens=s.max_num_scheduled_tokens,
            max_chunk_tokens=self._max_chunk_tokens(),
            decode_tokens=1 + s.num_spec_tokens,
            last_output_s=last_output_s,
            pending_s=pending_s,
            ready=self.ready,
            admissible_tokens=self.admissible_tokens,
            admitted_tokens=self.admitted_tokens,
            blocks_needed=self.blocks_needed,
            reclaimable_blocks=self.reclaimable_blocks,
            growth_blocks=self.growth_blocks,
            **self._half_form(),
        )

    def _half_form(self) -> dict[str, Any]:
        """What a plan may know of the form beside KV."""
        if (blocks := self._blocks) is None:
            return {}
        extra_s = blocks.half_extra_s(0, self._s.block_size)
        ratio = blocks.half_blocks.ids.ratio
        return {"admission_halves": blocks.halves_of_next, "half_ratio": ratio, "half_block_s": extra_s}

    def running(self) -> list[RequestView]:
        """The records of the running requests, brought up to date."""
        s = self._s
        decode_tokens = 1 + s.num_spec_tokens
        timed, blocks = self.timed, self._blocks
        running = []
        for request in s.running:
            try:
                view = request.hybrid_view
            except AttributeError:
                view = self.view_of(request)
            view.computed_tokens = request.num_computed_tokens
            if blocks is not None:
                view.halves = blocks.halves_of(request.request_id)
            if timed:
                view.output_tokens = len(request._output_token_ids)
                view.in_flight = -(-request.num_output_placeholders // decode_tokens)
            if request.is_prefill_chunk:
                view.prefilling = True
                view.missing_tokens = request.num_tokens - request.num_computed_tokens
            else:
                view.prefilling = False
            running.append(view)
        return running

    def _parked_view(self, request: Request) -> RequestView:
        view = self.view_of(request)
        view.computed_tokens = request.num_computed_tokens
        view.missing_tokens = request.num_tokens - request.num_computed_tokens
        view.prefilling = view.missing_tokens > 1
        if self._blocks is not None:
            view.halves = self._blocks.halves_of(request.request_id)
        return view

    def _max_chunk_tokens(self) -> int:
        """vLLM's own limit on a chunk where others wait (`long_prefill_token_threshold`)."""
        s = self._s
        threshold = s.scheduler_config.long_prefill_token_threshold
        requests = len(s.running) + len(s.waiting) + len(s.kv_holding_waiting)
        if threshold <= 0 or requests <= 1:
            return s.max_num_scheduled_tokens
        if s.adaptive_long_prefill_threshold:
            threshold = max(threshold, s.scheduler_config.max_num_batched_tokens // requests)
        return min(threshold, s.max_num_scheduled_tokens)

    def free_slots(self) -> int:
        """Running requests that could be added."""
        s = self._s
        return s.max_num_active_reqs - len(s.running) - s.num_waiting_for_streaming_input

    @staticmethod
    def ready(view: RequestView) -> bool:
        """Whether vLLM would go on with the waiting request if it came to its turn; changes nothing.

        A grammar that is compiled counts although the status still says it is not: vLLM changes the status when it
        looks at the request, which it will only do if there is room. A grammar that failed counts too: vLLM must look
        at the request to refuse it.
        """
        request = view.handle
        if request.num_stale_output_tokens and not request.drop_stale_output:
            return False
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            return _grammar(request) is not None
        return request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)

    def admissible_tokens(self, view: RequestView, reserve_blocks: int) -> int:
        """Prefill tokens that vLLM would compute for the request if it came in now; 0 if it does not fit.

        As in vLLM the whole prompt must fit, and the watermark too unless nothing runs; nor is a reserve asked for
        then.
        """
        s = self._s
        if s.lora_config and not self._lora_fits(view.handle):
            return 0
        if isinstance(_grammar(view.handle), Exception):
            return 1  # never admitted, but vLLM must see it
        manager = s.kv_cache_manager
        margin = manager.watermark_blocks + reserve_blocks if s.running else 0
        free = manager.block_pool.get_num_free_blocks() - margin
        if free < 1 and not view.handle.num_computed_tokens and self._blocks is None:
            return 0  # whatever the prefix cache has of it, its last token needs a block: no look-up
        blocks, tokens = self._demand(view.handle)
        return tokens if blocks <= free else 0

    @staticmethod
    def admitted_tokens(view: RequestView) -> int:
        """What the candidate has left to compute; 0 if vLLM passed it over (a grammar not compiled, stale output)."""
        request = view.handle
        if request.status != RequestStatus.RUNNING:
            return 0
        return max(1, request.num_tokens - request.num_computed_tokens)

    def _lora_fits(self, request: Request) -> bool:
        # vLLM counts the adapters of requests scheduled in this step only; one of a paused request keeps its place.
        if not request.lora_request:
            return True
        used = {r.lora_request.lora_int_id for r in self._s.running if r.lora_request}
        return request.lora_request.lora_int_id in used or len(used) < self._s.lora_config.max_loras

    def blocks_needed(self, view: RequestView) -> int:
        """Blocks that the admission of a waiting or parked request takes, prefix hits deducted."""
        return self._demand(view.handle)[0]

    def _demand(self, request: Request) -> tuple[int, int]:
        """Blocks to allocate and tokens to compute if the request came in now."""
        s = self._s
        manager = s.kv_cache_manager
        if request.num_computed_tokens:
            hits, hit_tokens = manager.empty_kv_cache_blocks, 0
        else:
            hits, hit_tokens, *_ = manager.get_computed_blocks(request)
        tokens = min(request.num_tokens, s.max_model_len)
        done = request.num_computed_tokens + hit_tokens
        blocks = manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id,
            num_tokens=tokens,
            new_computed_blocks=hits.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=done,
            num_local_computed_tokens=done,
            num_tokens_main_model=tokens,
            apply_admission_cap=True,
            prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
        )
        return blocks, max(1, request.num_tokens - done)

    def growth_is_tight(self) -> bool:
        """Whether the next step's decodes could take more blocks than are free."""
        s = self._s
        most = len(s.running) * (2 + (1 + s.num_spec_tokens) // s.block_size)
        return most > s.kv_cache_manager.block_pool.get_num_free_blocks()

    def growth_blocks(self, view: RequestView, tokens: int) -> int:
        """Blocks that vLLM would allocate if the running request computed `tokens` more now."""
        s, request = self._s, view.handle
        done = request.num_computed_tokens
        manager = s.kv_cache_manager
        return manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id,
            num_tokens=min(done + tokens + s.num_lookahead_tokens, s.max_model_len),
            new_computed_blocks=manager.empty_kv_cache_blocks.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=done,
            num_local_computed_tokens=done,
            num_tokens_main_model=done + tokens,
            prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
        )

    def reclaimable_blocks(self, view: RequestView) -> int:
        """Blocks that come free when the request gives up its memory; 0 if it must not be asked to now."""
        s, request = self._s, view.handle
        # A resumable request that stops while preempted is lost in vLLM 0.32.
        if request.resumable or not s._request_blocks_can_be_freed(request):
            return 0
        if self._blocks is not None and self._blocks.halves_of(request.request_id) > 1:
            return self._blocks.reclaimable_blocks(request.request_id)
        groups = s.kv_cache_manager.get_blocks(request.request_id).blocks
        return sum(block.ref_cnt == 1 for group in groups for block in group)


def _grammar(request: Request) -> object | None:
    """The request's compiled grammar, the exception that compiling raised, or None."""
    structured = request.structured_output_request
    return None if structured is None else structured.grammar
