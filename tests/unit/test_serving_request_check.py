"""A refusal is what vLLM's server and a Python caller each expect of a bad request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import PoolingParams, SamplingParams
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.input_processor import InputProcessor

from vllm_hybrid.config.identity import Entitlement
from vllm_hybrid.serving.identity import CALL, Call, Caller
from vllm_hybrid.serving.request_check import (
    BadIdentity,
    Forbidden,
    check_identity,
    install_in_engine_client,
    install_in_server,
    mark_requests,
    salted,
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


def sent_by(caller: Caller, *params: Any, private_prefixes: bool = False) -> list[tuple[Any, Any]]:
    """The (prompt, params) that reach the engine when tasks of one HTTP call send `params`."""
    sent: list[tuple[Any, Any]] = []

    async def add_request(request_id: str, prompt: Any, params: Any, *, priority: int = 0) -> None:
        sent.append((prompt, params))

    async def serve() -> None:
        client = SimpleNamespace(add_request=add_request)
        mark_requests(client, private_prefixes)
        CALL.set(Call(caller))
        await asyncio.gather(*(asyncio.create_task(client.add_request("r", {"type": "token"}, p)) for p in params))

    asyncio.run(serve())
    return sent


def test_whatever_a_call_sends_to_the_engine_carries_its_identity() -> None:
    bob = Caller(Entitlement(client="bob", lanes=("offline",)))
    child, batch, pooling = SamplingParams(), SamplingParams(extra_args={"kv": 1, "client": "bob"}), PoolingParams()
    sent_by(bob, child, batch, pooling)
    assert child.extra_args == pooling.extra_kwargs == {"lane": "offline", "client": "bob"}
    assert batch.extra_args == {"kv": 1, "lane": "offline", "client": "bob"}
    with pytest.raises(Forbidden, match=r"vllm_xargs\.client = 'alice'"):
        sent_by(bob, SamplingParams(extra_args={"client": "alice"}))


def test_private_prefixes_keep_clients_apart_and_their_own_salts_too() -> None:
    salts = {
        salted(prompt, client)["cache_salt"] for prompt in ("p", [1, 2], {"type": "token"}) for client in ("a", "b")
    }
    assert len(salts) == 2
    own = salted({"type": "token", "cache_salt": "mine"}, "a")["cache_salt"]
    assert own not in salts and own != salted({"type": "token", "cache_salt": "mine"}, "b")["cache_salt"]
    nested = salted({"type": "enc_dec", "decoder_prompt": {"type": "token"}}, "a")
    assert nested["decoder_prompt"]["cache_salt"] == nested["cache_salt"]
    ((prompt, _),) = sent_by(Caller(Entitlement(client="a")), SamplingParams(), private_prefixes=True)
    assert prompt["cache_salt"] == nested["cache_salt"]
    with pytest.raises(TypeError):
        salted(7, "a")
