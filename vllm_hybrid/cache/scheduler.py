"""Which form a request gets, for any of vLLM's scheduler classes: `class Mine(ChoosesForm, Scheduler)`.

A request takes the half form if, all in KV, what is here and what waits would not fit into the memory. Decided when it
is looked at for admission. When the pressure is over, requests of the half form that decode are moved to KV, one per
step; the other way round only a preemption leads. Where the engine keeps KV only, nothing of this has any effect.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_hybrid import __version__
from vllm_hybrid.cache.capability import CapabilityError
from vllm_hybrid.cache.manager import HalfBlockManager, HalfRow, Move
from vllm_hybrid.settings import KV_ONLY, form_of


class ChoosesForm:
    """Stands before a scheduler class in the MRO."""

    requests: dict[str, Request]
    running: list[Request]
    kv_cache_manager: KVCacheManager
    vllm_config: Any
    blocks: HalfBlockManager | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = half_block_manager(self.kv_cache_manager, form_of(self.vllm_config))
        if self.blocks is not None:
            self._computed_blocks = self.kv_cache_manager.get_computed_blocks
            self.kv_cache_manager.get_computed_blocks = self._choose_and_get_computed_blocks

    def takes_half(self, request: Request) -> bool:
        """Whether this request, which has no blocks, gets half blocks: as its policy wants, or the memory demands."""
        assert self.blocks is not None
        wish: bool | None = getattr(getattr(request, "hybrid_view", None), "wants_half", None)
        return self.blocks.pressure if wish is None else wish

    def moves_to_kv(self, request: Request) -> bool:
        """Whether this request, which decodes from half blocks, gets KV now that there is no pressure."""
        return True

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if self.blocks is None:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        move = self._move_one()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if move is not None:
            output.hybrid_move = move  # it survives the way to the worker, which carries it out before the step
        if self.blocks.half_requests:
            output.hybrid_half_rows = self._half_rows(output.num_scheduled_tokens)
        self.blocks.feel_pressure()
        return output

    def _half_rows(self, scheduled: dict[str, int]) -> list[HalfRow]:
        assert self.blocks is not None
        half = self.blocks.half_requests
        return [
            HalfRow(tokens, self.requests[request_id].num_computed_tokens)
            for request_id, tokens in scheduled.items()
            if request_id in half
        ]

    def _move_one(self) -> Move | None:
        """One request per step: a move costs about a sixth of the prefill of what it moves. First the one whose steps
        become shorter by the most."""
        blocks = self.blocks
        assert blocks is not None
        if blocks.pressure or not blocks.half_requests:
            return None
        half = [
            request
            for request in self.running
            if request.request_id in blocks.half_requests and not request.is_prefill_chunk and self.moves_to_kv(request)
        ]
        if not half:
            return None
        first = max(half, key=lambda request: blocks.half_extra_s(1, request.num_computed_tokens))
        return blocks.move_to_kv(first.request_id, first.num_computed_tokens)

    def add_request(self, request: Request) -> None:
        new = request.request_id not in self.requests
        super().add_request(request)  # type: ignore[misc]
        if self.blocks is not None and new:
            self.blocks.expect(request.request_id, request.num_tokens)
            self.blocks.feel_pressure()

    def _choose_and_get_computed_blocks(self, request: Request) -> Any:
        """vLLM asks for a request without blocks how much of it is cached: now its form matters."""
        blocks, request_id = self.blocks, request.request_id
        assert blocks is not None
        if not blocks.has_blocks(request_id):
            blocks.choose_form(request_id, self.takes_half(request))
        blocks.asked_by = request_id
        try:
            return self._computed_blocks(request)
        finally:
            blocks.asked_by = None

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        if self.blocks is not None:
            self.blocks.forget_uncomputed(request.request_id, request.num_computed_tokens)
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _free_request_blocks(self, request: Request) -> None:
        super()._free_request_blocks(request)  # type: ignore[misc]
        if self.blocks is None:
            return
        if request.is_finished():
            self.blocks.forget(request.request_id)
        else:
            self.blocks.expect(request.request_id, request.num_tokens)


def half_block_manager(kv_cache_manager: KVCacheManager, form: str) -> HalfBlockManager | None:
    """The manager of half blocks if the workers keep any; an error if they do not keep what was decided."""
    managers = kv_cache_manager.coordinator.single_type_managers
    found = managers[0] if len(managers) == 1 and isinstance(managers[0], HalfBlockManager) else None
    if found is None:
        if form != KV_ONLY:
            raise CapabilityError(f"cache: {form} was decided, but the workers keep KV only: is it their own class?")
        return None
    if found.kv_cache_spec.version != __version__:
        versions = f"{found.kv_cache_spec.version}, the scheduler {__version__}"
        raise CapabilityError(f"cache: the workers run vllm_hybrid {versions}: install the same everywhere")
    if found.block_pool.num_gpu_blocks < 2:
        raise CapabilityError("cache: the memory holds no block besides vLLM's null block: give it more, or choose off")
    return found


class HalfBlockScheduler(ChoosesForm, Scheduler):
    """vLLM's own scheduler with both forms."""
