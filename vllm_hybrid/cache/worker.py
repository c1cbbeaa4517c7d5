"""vLLM's CPU worker with the hidden form: `LLM(model, **hidden_cache_kwargs())`.

Once the model is loaded, its layers are looked at: whether the form is possible is decided here (`capability.decide`),
each QKV projection gets its hook, each attention layer the backend that knows both forms, and the KV cache spec half
blocks. A model for which that is not exact is refused with the reason before anything is served.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_hybrid import compat
from vllm_hybrid.cache.capability import CapabilityError, Decision, Deployment, decide
from vllm_hybrid.cache.capture import capture, projection_of
from vllm_hybrid.cache.cpu_attention import HybridCpuBackend, HybridCpuImpl
from vllm_hybrid.cache.spec import with_half_blocks

logger = logging.getLogger("vllm.hybrid.cache")

# Whose attention was read and tried: K and V come from the QKV projection of x and from nothing else.
KNOWN_AFFINE = ("OPTForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM")
GRAPH_FORM = {"hybrid_cache": "hidden"}
"""Part of vLLM's compile-cache key: a graph compiled for stock writes no hidden states and must not be loaded here."""


def hidden_cache_kwargs(**more: Any) -> dict[str, Any]:
    """Arguments of an engine on a CPU whose requests may take the hidden form when memory is short."""
    return {
        "worker_cls": f"{__name__}.HiddenCacheCpuWorker",
        "scheduler_cls": "vllm_hybrid.cache.scheduler.HalfBlockScheduler",
        **more,
        "additional_config": {**more.get("additional_config", {}), **GRAPH_FORM},
    }


class HiddenCacheCpuWorker(CPUWorker):
    decision: Decision

    def load_model(self, **kwargs: Any) -> None:
        compat.check(compat.CACHE)
        form = GRAPH_FORM.items()
        if not form <= dict(self.vllm_config.additional_config).items():
            raise CapabilityError(
                f"cache: hidden needs additional_config {GRAPH_FORM}, as hidden_cache_kwargs() gives it"
            )
        super().load_model(**kwargs)
        model = self.model_runner.get_model()
        self.decision = decide("hidden", deployment_of(self.vllm_config, model))
        for attention, qkv in attention_layers(model):
            attention.attn_backend = HybridCpuBackend
            attention.impl = HybridCpuImpl.taking_over(attention.impl, projection_of(qkv, self.model_config.dtype))
            capture(qkv, attention.layer_name)
        logger.info("vllm_hybrid: %s", self.decision)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        specs = super().get_kv_cache_spec()
        assert all(type(spec) is FullAttentionSpec for spec in specs.values())
        return {name: with_half_blocks(spec, self.decision.halves) for name, spec in specs.items()}


def attention_layers(model: torch.nn.Module) -> Iterator[tuple[Attention, QKVParallelLinear]]:
    """Every attention layer with the projection beside it."""
    for parent in model.modules():
        children = list(parent.children())
        for attention in (child for child in children if isinstance(child, Attention)):
            beside = [child for child in children if isinstance(child, QKVParallelLinear)]
            if len(beside) != 1:
                raise CapabilityError(
                    f"cache: hidden: {attention.layer_name} has {len(beside)} QKV projections beside it"
                )
            yield attention, beside[0]


def deployment_of(config: Any, model: torch.nn.Module) -> Deployment:
    """What the decision depends on, read off the loaded model."""
    architecture = type(model).__name__
    if architecture not in KNOWN_AFFINE:
        raise CapabilityError(
            f"cache: hidden is not possible here: keys of {architecture} are not known to be affine in the hidden state"
            f" ({', '.join(KNOWN_AFFINE)} are). Leave hidden_cache_kwargs() out"
        )
    model_config, parallel, element = (
        config.model_config,
        config.parallel_config,
        torch.finfo(config.model_config.dtype),
    )
    layers = list(attention_layers(model))
    stored = {"auto": element.bits // 8}.get(config.cache_config.cache_dtype, 1)
    return Deployment(
        hidden_size=layers[0][1].input_size,
        kv_heads=layers[0][0].num_kv_heads,
        head_size=layers[0][0].head_size,
        element_bytes=element.bits // 8,
        kv_element_bytes=stored,
        plain_attention=model_config.get_sliding_window() is None and not model_config.use_mla,
        tensor_parallel=parallel.tensor_parallel_size,
        lora=config.lora_config is not None,
        kv_connector=config.kv_transfer_config is not None,
        speculative=config.speculative_config is not None,
        context_parallel=parallel.decode_context_parallel_size,
    )
