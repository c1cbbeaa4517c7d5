"""Which form a request gets, for any of vLLM's scheduler classes: `class Mine(ChoosesForm, Scheduler)`.

A request takes the half form if, all in KV, what is here and what waits would not fit into the memory. Decided when it
arrives, and anew when it has lost its blocks to a preemption: between, its form stands.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_hybrid.cache.manager import HalfBlockManager


class ChoosesForm:
    """Stands before a scheduler class in the MRO."""

    requests: dict[str, Request]
    kv_cache_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        assert len(managers) == 1 and isinstance(managers[0], HalfBlockManager), (
            "half blocks need a worker that has them"
        )
        self.blocks: HalfBlockManager = managers[0]
        self._demand_blocks: dict[str, int] = {}
        """What every live request would hold in KV, as far as is known: its prompt and what it has generated."""
        self._demand = 0

    def takes_half(self, request: Request) -> bool:
        """Whether this request gets half blocks; its own demand is counted already."""
        return self._demand > self.blocks.block_pool.num_gpu_blocks - 1

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            self._choose(request)
        super().add_request(request)  # type: ignore[misc]

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        result = super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        self._choose(request)
        return result

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        self.blocks.forget(request.request_id)
        self._demand -= self._demand_blocks.pop(request.request_id)
        return result

    def _choose(self, request: Request) -> None:
        held = -(-request.num_tokens // self.blocks.block_size)
        self._demand += held - self._demand_blocks.get(request.request_id, 0)
        self._demand_blocks[request.request_id] = held
        half = self.takes_half(request)
        self.blocks.choose_form(request.request_id, half)
        request.skip_reading_prefix_cache = half or asked_to_skip(request)


def asked_to_skip(request: Request) -> bool:
    """Whether the caller itself wants no cached prefix: what vLLM set when it made the request."""
    return request.get_skip_reading_prefix_cache()


class HalfBlockScheduler(ChoosesForm, Scheduler):
    """vLLM's own scheduler with both forms."""
