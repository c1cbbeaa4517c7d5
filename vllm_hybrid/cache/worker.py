"""vLLM's CPU worker with half blocks: what `start.prepare` puts in the place of `CPUWorker`.

Once the model is loaded, its layers are held against what was decided at start: each attention layer gets the backend
that knows both forms and, for hidden states, a hook on its QKV projection; the KV cache spec gets half blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_hybrid.cache.capability import Decision
from vllm_hybrid.cache.capture import capture, projection_of
from vllm_hybrid.cache.cpu_attention import Fp8CpuImpl, HiddenCpuImpl, HybridCpuBackend
from vllm_hybrid.cache.manager import Move
from vllm_hybrid.cache.spec import with_half_blocks
from vllm_hybrid.cache.start import decision_for, require
from vllm_hybrid.settings import form_of


class HalfBlockCpuWorker(CPUWorker):
    decision: Decision

    def load_model(self, **kwargs: Any) -> None:
        self.decision = decision_for(self.vllm_config)
        form = form_of(self.vllm_config)
        require(
            form == self.decision.form,
            f"{self.decision.form} is what the worker decides, but {form} what the engine was started with",
        )
        super().load_model(**kwargs)
        model = self.model_runner.get_model()
        take_over = _keep_hidden_states if form == "hidden" else _keep_fp8
        take_over(model, self.model_config.dtype)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        move: Move | None = getattr(scheduler_output, "hybrid_move", None)
        if move is not None:
            self._carry_out(move)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def _carry_out(self, move: Move) -> None:
        """Fill the request's new blocks in every layer, and let the runner know them."""
        runner = self.model_runner
        for attention in (module for module in runner.get_model().modules() if isinstance(module, Attention)):
            attention.impl.move_to_kv(attention, torch.tensor(move.half_ids), torch.tensor(move.block_ids), move.tokens)
        runner.requests[move.request_id].block_ids = (list(move.block_ids),)
        row = runner.input_batch.req_id_to_index.get(move.request_id)
        if row is not None:
            runner.input_batch.block_table.add_row((move.block_ids,), row)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        specs = super().get_kv_cache_spec()
        require(all(type(spec) is FullAttentionSpec for spec in specs.values()), "a layer is not plain full attention")
        return {name: with_half_blocks(spec, self.decision.halves) for name, spec in specs.items()}


def _keep_hidden_states(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for attention, qkv in attention_layers(model):
        _require_plain(attention)
        attention.attn_backend = HybridCpuBackend
        attention.impl = HiddenCpuImpl.of(attention.impl, projection_of(qkv, dtype))
        capture(qkv, attention.layer_name)


def _keep_fp8(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for attention in (module for module in model.modules() if isinstance(module, Attention)):
        _require_plain(attention)
        attention.attn_backend = HybridCpuBackend
        attention.impl = Fp8CpuImpl.taking_over(attention.impl)


def _require_plain(attention: Attention) -> None:
    impl = attention.impl
    require(
        not impl.logits_soft_cap and impl.sinks is None and impl.kv_sharing_target_layer_name is None,
        f"{attention.layer_name} caps its scores, has sinks or shares another layer's cache",
    )


def attention_layers(model: torch.nn.Module) -> Iterator[tuple[Attention, QKVParallelLinear]]:
    """Every attention layer with the projection beside it."""
    for parent in model.modules():
        children = list(parent.children())
        for attention in (child for child in children if isinstance(child, Attention)):
            beside = [child for child in children if isinstance(child, QKVParallelLinear)]
            require(len(beside) == 1, f"{attention.layer_name} has {len(beside)} QKV projections beside it")
            yield attention, beside[0]
