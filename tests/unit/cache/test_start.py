"""The form is decided where the engine's configuration is made, and makes another graph to vLLM's compile cache."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from vllm_hybrid import engine_kwargs
from vllm_hybrid.cache.capability import CapabilityError
from vllm_hybrid.settings import form_of, settings_of

OPT = str(Path(__file__).parents[2] / "conformance/models/facebook/opt-125m")
OURS = "vllm_hybrid.cache.worker.HalfBlockCpuWorker"


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
