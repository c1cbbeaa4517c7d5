"""vLLM's worker for NVIDIA GPUs with half blocks. No GPU has run it: docs/gpu.md."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from vllm_hybrid.cache.capture import Projection
from vllm_hybrid.cache.gpu_attention import Fp8TritonImpl, HiddenTritonImpl, HybridTritonBackend
from vllm_hybrid.cache.gpu_rows import HalfStep
from vllm_hybrid.cache.start import require
from vllm_hybrid.cache.worker import HalfBlockWorker, all_attention


class ForGpus(HalfBlockWorker):
    """What is the same on whatever runs vLLM's Triton attention."""

    half_backend = HybridTritonBackend
    step: HalfStep

    def load_model(self, **kwargs: Any) -> None:
        self.step = HalfStep(self.vllm_config.scheduler_config.max_num_seqs)
        super().load_model(**kwargs)

    def with_half_form(self, stock: Any, projection: Projection | None) -> Any:
        block_tokens = self.vllm_config.cache_config.block_size
        if projection is None:
            return Fp8TritonImpl.taking_over(stock, step=self.step, block_tokens=block_tokens)
        return HiddenTritonImpl.taking_over(stock, step=self.step, block_tokens=block_tokens, projection=projection)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.step.rows = getattr(scheduler_output, "hybrid_half_rows", ())
        try:
            return super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            self.step.rows = ()  # a dummy run has none


class HalfBlockGpuWorker(ForGpus, Worker):
    def determine_available_memory(self) -> int:
        """Less what half rows take in a step: the run that vLLM measures has none of them."""
        available = super().determine_available_memory()
        if self.vllm_config.cache_config.kv_cache_memory_bytes is not None:
            return available  # what the user said
        layer = next(all_attention(self.model_runner.get_model()))
        extra = layer.impl.workspace_bytes(self.model_config.max_model_len)
        require(extra < available, f"half rows take {extra >> 20} MiB in a step, and {available >> 20} MiB are left")
        return available - extra
