"""The settings on their way through vLLM: what its hash, its log and its copies make of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

import vllm_hybrid
from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.settings import HybridSettings, engine_kwargs, is_selected, settings_of, wrap

TUNED = {
    "slo": {"online": {"ttft_s": 1}},
    "clients": {"secret-tenant": {"weight": 2, "group": "secret-team"}},
    "groups": {"secret-team": {"weight": 3}},
}


def vllm_config(additional_config: Any) -> Any:
    return SimpleNamespace(additional_config=additional_config)


def as_vllm_hashes(additional_config: dict[str, Any]) -> str:
    return json.dumps(additional_config, sort_keys=True)


def test_tuning_does_not_change_what_vllm_hashes() -> None:
    stock_like, tuned = engine_kwargs(), engine_kwargs(TUNED)
    assert as_vllm_hashes(stock_like["additional_config"]) == as_vllm_hashes(tuned["additional_config"])
    assert tuned["additional_config"] and all(tuned["additional_config"].values())  # never taken for absent


def test_foreign_keys_are_kept_and_hashed() -> None:
    one = engine_kwargs(TUNED, additional_config={"gdn_prefill_backend": "triton"})["additional_config"]
    assert one["gdn_prefill_backend"] == "triton"
    two = engine_kwargs(TUNED)["additional_config"]
    assert as_vllm_hashes(one) != as_vllm_hashes(two)
    two["gdn_prefill_backend"] = "triton"  # vLLM assigns into it
    assert as_vllm_hashes(one) == as_vllm_hashes(two)


def test_no_client_is_named_in_a_log() -> None:
    additional_config = engine_kwargs(TUNED)["additional_config"]
    for shown in (repr(additional_config), str(additional_config["hybrid"]), f"{additional_config['hybrid']!r}"):
        assert "secret" not in shown
    assert repr(additional_config["hybrid"]) == "HybridSettings(slo.online.ttft_s=1.0, clients=<1>, groups=<1>)"


@dataclasses.dataclass
class Arguments:
    additional_config: dict[str, Any]


def test_settings_survive_the_copies_vllm_makes() -> None:
    original = engine_kwargs(TUNED)["additional_config"]
    copies = [
        pickle.loads(pickle.dumps(original)),
        copy.deepcopy(original),
        dict(original),
        dataclasses.asdict(Arguments(original))["additional_config"],
    ]
    for found in copies:
        assert settings_of(vllm_config(found)) == load_config(TUNED)
        assert repr(found) == repr(original)


def test_settings_are_read_from_whatever_carries_them() -> None:
    assert settings_of(vllm_config({})) == HybridConfig()
    assert settings_of(vllm_config({"hybrid": TUNED})) == load_config(TUNED)
    assert settings_of(vllm_config(object())) == HybridConfig()  # some other plugin's hashable object
    with pytest.raises(ConfigError, match="must be inline JSON"):
        settings_of(vllm_config({"hybrid": "kv"}))  # settings that went through JSON are lost, and must not be defaults


def test_plain_settings_are_wrapped_once() -> None:
    wrapped = wrap({"hybrid": TUNED, "other": 1})
    assert isinstance(wrapped["hybrid"], HybridSettings)
    assert wrap(wrapped) == wrapped == {"hybrid": HybridSettings(), "other": 1}
    assert wrap(wrapped)["hybrid"].config == load_config(TUNED)
    assert wrap(None)["hybrid"].config == HybridConfig()


def test_engine_kwargs_select_the_scheduler_and_keep_the_rest() -> None:
    kwargs = vllm_hybrid.engine_kwargs(TUNED, max_model_len=512)
    assert kwargs["scheduler_cls"] == "vllm_hybrid.Scheduler"
    assert kwargs["max_model_len"] == 512
    with pytest.raises(ConfigError, match="unknown key 'slow'"):
        engine_kwargs({"slow": 1})
    with pytest.raises(ValueError, match=r"additional_config\.hybrid: give the settings as engine_kwargs' first"):
        engine_kwargs(TUNED, additional_config={"hybrid": {}})


def test_our_schedulers_are_recognised() -> None:
    assert is_selected("vllm_hybrid.Scheduler")
    assert is_selected(type("Ours", (), {"__module__": "vllm_hybrid.engine.scheduler"}))
    assert not is_selected(None)
    assert not is_selected("vllm.v1.core.sched.scheduler.Scheduler")
    assert not is_selected(dict)
