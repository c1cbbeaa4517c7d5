"""A refusal is what vLLM's server and a Python caller each expect of a bad request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.input_processor import InputProcessor

from vllm_hybrid.serving.request_check import (
    BadIdentity,
    check_identity,
    install_in_engine_client,
    install_in_server,
)


def processor(scheduler_cls: Any) -> Any:
    """As much of an input processor as its first check needs, and no more: what follows it fails by name."""
    scheduler_config = SimpleNamespace(scheduler_cls=scheduler_cls)
    return SimpleNamespace(vllm_config=SimpleNamespace(scheduler_config=scheduler_config))


def test_a_refusal_is_a_400_that_names_the_field_and_a_value_error() -> None:
    with pytest.raises(ValueError) as error:
        check_identity({"lane": "batch"})
    answer = create_error_response(error.value).error
    assert (answer.code, answer.param) == (400, "vllm_xargs.lane")
    assert answer.message == "vllm_xargs.lane = 'batch': must be one of online, offline"


def test_only_engines_with_our_scheduler_check() -> None:
    install_in_engine_client()
    bad = SamplingParams(extra_args={"client": ""})
    with pytest.raises(BadIdentity, match=r"vllm_xargs\.client = ''"):
        InputProcessor._validate_params(processor("vllm_hybrid.Scheduler"), bad, ("generate",))
    with pytest.raises(AttributeError, match="model_config"):  # went on to vLLM's own checks
        InputProcessor._validate_params(processor(None), bad, ("generate",))
    with pytest.raises(AttributeError, match="model_config"):
        good = SamplingParams(extra_args={"client": "alice"})
        InputProcessor._validate_params(processor("vllm_hybrid.Scheduler"), good, ("generate",))


def test_the_server_checks_what_it_is_asked_and_goes_on() -> None:
    install_in_server()
    with pytest.raises(BadIdentity):
        GenerateBaseServing._get_session_id(SimpleNamespace(session_id=None, vllm_xargs={"lane": ""}), None)
    kept = SimpleNamespace(session_id=None, vllm_xargs={"lane": "offline", "session_id": "s1"})
    assert GenerateBaseServing._get_session_id(kept, None) == "s1"
    assert GenerateBaseServing._get_session_id(SimpleNamespace(session_id="s2", vllm_xargs=None), None) == "s2"
