"""The form is decided where the engine's configuration is made, and makes another graph to vLLM's compile cache."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from vllm.config import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_hybrid import engine_kwargs
from vllm_hybrid.cache.capability import CapabilityError
from vllm_hybrid.cache.start import decision_for, prepare
from vllm_hybrid.settings import form_of, settings_of, wrap

OPT = str(Path(__file__).parents[2] / "conformance/models/facebook/opt-125m")
OURS = "vllm_hybrid.cache.cpu_worker.HalfBlockCpuWorker"


def config_of(model: str = OPT, scheduler: dict[str, Any] | None = None, **more: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=model, skip_tokenizer_init=True, **more, **(scheduler or {})).create_engine_config()


def test_it_is_another_graph_and_the_same_for_all_tuning_values() -> None:
    stock, off = config_of(), config_of(scheduler=engine_kwargs())
    hidden = config_of(scheduler=engine_kwargs({"cache": "hidden"}))
    tuned = config_of(scheduler=engine_kwargs({"cache": "auto", "slo": {"online": {"ttft_s": 3}}}))
    hashes = [config.compute_hash() for config in (stock, off, hidden, tuned)]
    assert hashes[2] == hashes[3] and len(set(hashes)) == 3
    assert config_of(scheduler=engine_kwargs({"cache": "fp8"})).compute_hash() not in hashes


def test_settings_and_worker_carry_the_decision_to_other_processes() -> None:
    config = pickle.loads(pickle.dumps(config_of(scheduler=engine_kwargs({"cache": "auto"}))))
    assert form_of(config) == "hidden" and config.parallel_config.worker_cls == OURS
    assert settings_of(config).cache == "auto"
    off = config_of(scheduler=engine_kwargs())
    assert form_of(off) == "kv" and off.parallel_config.worker_cls != OURS


@pytest.mark.parametrize(
    ("cache", "more", "says"),
    [
        ("hidden", {"enable_lora": True}, "LoRA may change the QKV projection"),
        ("hidden", {"kv_cache_dtype": "fp8"}, "only 0.5 times as large|only 1 times as large"),
        ("fp8", {"kv_cache_dtype": "fp8"}, "K and V have 1 byte per element already"),
        ("hidden", {"tensor_parallel_size": 2}, r"tensor parallelism \(2\)"),
    ],
)
def test_what_forbids_a_form_is_said_before_anything_starts(cache: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(CapabilityError, match=says):
        config_of(scheduler=engine_kwargs({"cache": cache}), **more)
    assert form_of(config_of(scheduler=engine_kwargs({"cache": "off"}), **more)) == "kv"


def test_a_model_that_nobody_looked_at_keeps_kv(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 100}
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", **sizes})
    )
    auto = config_of(str(tmp_path), engine_kwargs({"cache": "auto"}))
    assert form_of(auto) == "kv"
    with pytest.raises(CapabilityError, match="keys of GPTBigCodeForCausalLM are not known to be affine"):
        config_of(str(tmp_path), engine_kwargs({"cache": "hidden"}))


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """A configuration as vLLM makes it where there is a GPU, before the form is decided."""
    config = config_of()
    config.parallel_config.worker_cls = "vllm.v1.worker.gpu_worker.Worker"
    graphs = config.compilation_config
    graphs.cudagraph_mode, graphs.splitting_ops = (
        CUDAGraphMode.FULL_AND_PIECEWISE,
        ["vllm::unified_attention_with_output"],
    )
    config.cache_config.block_size = 16
    for name, value in more.items():
        section, _, field = name.partition("__")
        setattr(getattr(config, section), field, value)
    config.additional_config = wrap({"hybrid": {"cache": "hidden"}})
    return config


def test_on_a_gpu_attention_is_tritons_and_no_graph_holds_it(monkeypatch) -> None:
    config = on_a_gpu(monkeypatch)
    assert prepare(config).form == "hidden"
    assert config.parallel_config.worker_cls == "vllm_hybrid.cache.gpu_worker.HalfBlockGpuWorker"
    assert config.attention_config.backend.name == "TRITON_ATTN"
    assert config.compilation_config.cudagraph_mode is CUDAGraphMode.PIECEWISE
    assert config.compilation_config.splitting_ops[-1] == "vllm::hybrid_hidden_write"
    # The worker, which decides again, comes to the same.
    assert decision_for(config).form == "hidden"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"compilation_config__cudagraph_mode": CUDAGraphMode.FULL}, "cudagraph_mode FULL.*choose PIECEWISE or NONE"),
        ({"compilation_config__cudagraph_mode": CUDAGraphMode.FULL_DECODE_ONLY}, "cudagraph_mode FULL_DECODE_ONLY"),
        ({"attention_config__backend": AttentionBackendEnum.FLASH_ATTN}, "TRITON_ATTN, and FLASH_ATTN was named"),
        ({"cache_config__block_size": 8}, "blocks of 8 tokens"),
    ],
)
def test_what_does_not_go_on_a_gpu_is_refused_at_start(monkeypatch, more: dict[str, Any], says: str) -> None:
    config = on_a_gpu(monkeypatch, **more)
    with pytest.raises(CapabilityError, match=says):
        prepare(config)
    config.additional_config = wrap({"hybrid": {"cache": "auto"}})
    assert prepare(config).form == "kv"  # and nothing is changed
    assert config.parallel_config.worker_cls == "vllm.v1.worker.gpu_worker.Worker"


def test_a_gpu_that_is_not_nvidias_keeps_kv(monkeypatch) -> None:
    config = on_a_gpu(monkeypatch)
    monkeypatch.setattr(type(current_platform), "is_rocm", lambda self: True)
    with pytest.raises(CapabilityError, match="for CPUs and NVIDIA GPUs only"):
        prepare(config)
