"""vLLM's CPU worker with half blocks."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.cpu_attention import Fp8CpuImpl, HiddenCpuImpl, HybridCpuBackend
from vllm_hybrid.cache.worker import HalfBlockWorker


class HalfBlockCpuWorker(HalfBlockWorker, CPUWorker):
    half_backend = HybridCpuBackend

    def with_half_form(self, stock: Any, projection: Projection | None) -> Any:
        return Fp8CpuImpl.taking_over(stock) if projection is None else HiddenCpuImpl.of(stock, projection)
