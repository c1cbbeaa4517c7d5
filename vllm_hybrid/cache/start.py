"""The form of the cache, decided once, where an engine's configuration is made: before a process or a weight is there.

What the decision depends on is read off vLLM's configuration. It travels in the settings, where it is part of vLLM's
compile-cache key, and picks the worker class; the worker holds the loaded model against it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.platforms import current_platform

from vllm_hybrid import compat
from vllm_hybrid.cache.capability import CapabilityError, Decision, Deployment, decide
from vllm_hybrid.settings import KV_ONLY, SETTINGS_KEY, HybridSettings, settings_of

# Whose attention was read and tried: K and V come from the QKV projection of x and from nothing else.
KNOWN_AFFINE = ("OPTForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM")
WORKERS = {"vllm.v1.worker.cpu_worker.CPUWorker": "vllm_hybrid.cache.cpu_worker.HalfBlockCpuWorker"}
GPU_WORKERS = {"vllm.v1.worker.gpu_worker.Worker": "vllm_hybrid.cache.gpu_worker.HalfBlockGpuWorker"}
GPU_ATTENTION = "TRITON_ATTN"
# A graph of the whole step for every batch, or for every batch of decodes. FULL_AND_PIECEWISE, vLLM's default, falls
# back to its other half by itself.
FULL_GRAPHS = ("FULL", "FULL_DECODE_ONLY")
HIDDEN_WRITE = "vllm::hybrid_hidden_write"


def prepare(config: Any) -> Decision:
    """Decide for a `VllmConfig`, and set worker and settings accordingly. Raises CapabilityError."""
    settings = settings_of(config)
    decision = decision_for(config)
    if decision.form != KV_ONLY:
        compat.check(compat.CACHE)
        parallel = config.parallel_config
        if _on_gpu(config):
            compat.check(compat.GPU_CACHE)
            _prepare_for_gpu(config)
        parallel.worker_cls = (WORKERS | GPU_WORKERS)[parallel.worker_cls]
        config.additional_config[SETTINGS_KEY] = HybridSettings(settings, decision.form)
    return decision


def _on_gpu(config: Any) -> bool:
    return config.parallel_config.worker_cls in {*GPU_WORKERS, *GPU_WORKERS.values()}


def _prepare_for_gpu(config: Any) -> None:
    """Triton attention, and CUDA graphs that leave out attention and the write of hidden states."""
    from vllm.config import CUDAGraphMode
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    config.attention_config.backend = AttentionBackendEnum[GPU_ATTENTION]
    graphs = config.compilation_config
    if graphs.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE:
        graphs.cudagraph_mode = CUDAGraphMode.PIECEWISE
    if graphs.splitting_ops and HIDDEN_WRITE not in graphs.splitting_ops:
        graphs.splitting_ops.append(HIDDEN_WRITE)


def decision_for(config: Any) -> Decision:
    """What `prepare` decides; the same before it and after it."""
    mode = settings_of(config).cache
    if mode == "off":
        return Decision("kv", 1, "switched off")
    return decide(mode, deployment_of(config))


def deployment_of(config: Any) -> Deployment:
    """What the decision depends on, read off a `VllmConfig`."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    architecture, text = model.architecture, model.hf_text_config
    gpu, named, graphs = _on_gpu(config), config.attention_config.backend, config.compilation_config.cudagraph_mode
    element_bytes = torch.finfo(model.dtype).bits // 8
    rotary = any(getattr(text, name, None) for name in ("rope_parameters", "rope_scaling", "rope_theta", "rotary_dim"))
    plain = not (
        model.use_mla or model.is_hybrid or model.is_attention_free or model.is_encoder_decoder or model.is_deepseek_mla
    )
    return Deployment(
        hidden_size=model.get_hidden_size(),
        kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        element_bytes=element_bytes,
        kv_element_bytes=1 if cache.cache_dtype.startswith(("fp8", "int8", "nvfp4")) else element_bytes,
        backend=parallel.worker_cls in {*WORKERS, *WORKERS.values()} or (gpu and not current_platform.is_rocm()),
        other_attention=named.name if gpu and named is not None and named.name != GPU_ATTENTION else "",
        full_graphs=graphs.name if gpu and graphs is not None and graphs.name in FULL_GRAPHS else "",
        block_tokens=cache.block_size if gpu else 16,
        affine_unknown="" if architecture in KNOWN_AFFINE else architecture,
        plain_attention=plain and model.get_sliding_window() is None and model.runner_type == "generate",
        rotary=rotary,
        tensor_parallel=parallel.tensor_parallel_size,
        lora=config.lora_config is not None,
        kv_connector=config.kv_transfer_config is not None,
        speculative=config.speculative_config is not None,
        context_parallel=parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size,
    )


def require(holds: bool, reason: str) -> None:
    """Refuse to start, in one line, where the loaded engine is not what was decided for."""
    if not holds:
        raise CapabilityError(f"cache: {reason}. Choose off")
