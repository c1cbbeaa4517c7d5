"""A worker of vLLM's with half blocks: `class Mine(HalfBlockWorker, Worker)`, which `start.prepare` puts in its place.

Once the model is loaded, its layers are held against what was decided at start: each attention layer gets the backend
that knows both forms and, for hidden states, a hook on its QKV projection; the KV cache spec gets half blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_hybrid.cache.calibration import StepCost, measured
from vllm_hybrid.cache.capability import Decision
from vllm_hybrid.cache.capture import Projection, capture, projection_of
from vllm_hybrid.cache.manager import Move
from vllm_hybrid.cache.spec import with_half_blocks
from vllm_hybrid.cache.start import decision_for, require
from vllm_hybrid.settings import form_of

logger = logging.getLogger("vllm.hybrid.cache")  # a child of vLLM's logger, so it shares its handlers and level


class HalfBlockWorker:
    """Stands before a worker class in the MRO."""

    vllm_config: Any
    model_config: Any
    model_runner: Any
    decision: Decision

    half_backend: type
    """The attention backend that knows both forms."""

    def with_half_form(self, stock: Any, projection: Projection | None) -> Any:
        """A layer's attention with the half form: hidden states if its `projection` is given, else fp8."""
        raise NotImplementedError

    def load_model(self, **kwargs: Any) -> None:
        self.decision = decision_for(self.vllm_config)
        form = form_of(self.vllm_config)
        require(
            form == self.decision.form,
            f"{self.decision.form} is what the worker decides, but {form} what the engine was started with",
        )
        super().load_model(**kwargs)  # type: ignore[misc]
        model = self.model_runner.get_model()
        if form == "hidden":
            for attention, qkv in attention_layers(model):
                self._take_over(attention, projection_of(qkv, self.model_config.dtype))
                capture(qkv, attention.layer_name)
        else:
            for attention in all_attention(model):
                self._take_over(attention, None)

    def _take_over(self, attention: Attention, projection: Projection | None) -> None:
        stock = attention.impl
        require(
            not stock.logits_soft_cap and stock.sinks is None and stock.kv_sharing_target_layer_name is None,
            f"{attention.layer_name} caps its scores, has sinks or shares another layer's cache",
        )
        attention.attn_backend = self.half_backend
        attention.impl = self.with_half_form(stock, projection)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        move: Move | None = getattr(scheduler_output, "hybrid_move", None)
        if move is not None:
            self._carry_out(move)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _carry_out(self, move: Move) -> None:
        """Fill the request's new blocks in every layer, and let the runner know them."""
        runner = self.model_runner
        layers = list(all_attention(runner.get_model()))
        device = layers[0].kv_cache.device
        half_ids, block_ids = (torch.tensor(ids, device=device) for ids in (move.half_ids, move.block_ids))
        for attention in layers:
            attention.impl.move_to_kv(attention, half_ids, block_ids, move.tokens)
        place_blocks(runner, move.request_id, list(move.block_ids))

    def get_kv_cache_spec(self) -> dict[str, Any]:
        specs = super().get_kv_cache_spec()  # type: ignore[misc]
        require(all(type(spec) is FullAttentionSpec for spec in specs.values()), "a layer is not plain full attention")
        cost = self._step_cost(specs) if specs else None
        return {name: with_half_blocks(spec, self.decision.halves, cost) for name, spec in specs.items()}

    def _step_cost(self, specs: dict[str, Any]) -> StepCost:
        name, spec = next(iter(specs.items()))
        layer = self.vllm_config.compilation_config.static_forward_context[name]
        cost = measured(layer, name, len(specs), spec, self.vllm_config, self.model_runner.device)
        logger.info("vllm_hybrid: cache: %s", cost)
        return cost


def place_blocks(runner: Any, request_id: str, block_ids: list[int]) -> None:
    """Let a model runner, of either generation, find a running request in other blocks."""
    if hasattr(runner, "req_states"):
        row = runner.req_states.req_id_to_index[request_id]
        runner.block_tables.append_block_ids(row, (block_ids,), overwrite=True)
        return
    runner.requests[request_id].block_ids = (block_ids,)
    row = runner.input_batch.req_id_to_index.get(request_id)
    if row is not None:
        runner.input_batch.block_table.add_row((block_ids,), row)


def all_attention(model: torch.nn.Module) -> Iterator[Attention]:
    """Every attention layer."""
    return (module for module in model.modules() if isinstance(module, Attention))


def attention_layers(model: torch.nn.Module) -> Iterator[tuple[Attention, QKVParallelLinear]]:
    """Every attention layer with the projection beside it."""
    for parent in model.modules():
        children = list(parent.children())
        for attention in (child for child in children if isinstance(child, Attention)):
            beside = [child for child in children if isinstance(child, QKVParallelLinear)]
            require(len(beside) == 1, f"{attention.layer_name} has {len(beside)} QKV projections beside it")
            yield attention, beside[0]
