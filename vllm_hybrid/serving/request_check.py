"""A request that names a lane or a client it may not have is refused alone, before anything is done for it.

Three places see every request.  vLLM's HTTP handlers ask `_get_session_id` once per prompt, beam search and batches
included, and `serve_tokens` where tokens come in and go out, before the answer's status goes out: an error there is a
400 or a 403 even for a stream.  `add_request` of the engine client gives what the server sends to the engine, beam
search's children too, the identity that was settled.  `InputProcessor._validate_params` sees what reaches the engine in
any other way, the Python API above all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, wraps
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from vllm_hybrid.config import IdentityError, request_identity
from vllm_hybrid.serving.client_limits import check_limits
from vllm_hybrid.serving.identity import CALL, Call, Caller, Identity, NotEntitled, settle
from vllm_hybrid.settings import is_selected


class BadIdentity(VLLMValidationError, ValueError):
    """A 400 to vLLM's server, a ValueError to a Python caller; `parameter` names the field."""

    def __init__(self, error: IdentityError) -> None:
        VLLMValidationError.__init__(self, str(error), parameter=error.field)

    __str__ = Exception.__str__  # the message has named the field already


class Forbidden(GracefulHTTPError):
    """A 403 to vLLM's server; the message names the field."""

    def __init__(self, error: NotEntitled) -> None:
        super().__init__(str(error), HTTPStatus.FORBIDDEN)


def check_identity(extra_args: Mapping[str, Any] | None) -> None:
    """Raise BadIdentity unless the lane and client in `extra_args` are a lane and a client."""
    try:
        request_identity(extra_args)
    except IdentityError as error:
        raise BadIdentity(error) from None


def settled(xargs: Mapping[str, Any] | None, user: object = None, tier: object = None) -> Identity:
    """The identity of a prompt of the request being served, by fields of its body; NotNow where there is no room."""
    call = CALL.get() or Call(Caller())
    try:
        identity = settle(call, xargs, user, tier)
    except IdentityError as error:
        raise BadIdentity(error) from None
    except NotEntitled as error:
        raise Forbidden(error) from None
    if call.admission is not None:
        call.admission.admit(call, identity)
    return identity


@cache
def install_in_engine_client() -> None:
    """Check what this process sends to engines that run our scheduler."""
    from vllm.v1.engine.input_processor import InputProcessor

    validate_params = InputProcessor._validate_params

    @wraps(validate_params)
    def check_and_validate(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if is_selected(self.vllm_config.scheduler_config.scheduler_cls):
            extra_args = getattr(params, "extra_args", None)
            check_identity(extra_args)
            if CALL.get() is None:  # else it was checked when it arrived
                check_limits(request_identity(extra_args)[1])
        return validate_params(self, params, *args, **kwargs)

    InputProcessor._validate_params = check_and_validate


@cache
def install_in_server() -> None:
    """Check what this API server receives, before it answers."""
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens

    get_session_id, serve_tokens = GenerateBaseServing._get_session_id, ServingTokens.serve_tokens

    @wraps(get_session_id)
    def check_and_get_session_id(request: Any, raw_request: Any) -> Any:
        user, tier = getattr(request, "user", None), getattr(request, "service_tier", None)
        settled(request.vllm_xargs, user, tier)
        return get_session_id(request, raw_request)

    @wraps(serve_tokens)
    async def check_and_serve_tokens(self: Any, request: Any, raw_request: Any = None) -> Any:
        settled(request.sampling_params.extra_args)
        return await serve_tokens(self, request, raw_request)

    GenerateBaseServing._get_session_id = staticmethod(check_and_get_session_id)
    ServingTokens.serve_tokens = check_and_serve_tokens


def mark_requests(engine_client: Any, private_prefixes: bool) -> None:
    """Give every request that this client of the engine sends on behalf of an HTTP call the call's identity."""
    add_request = engine_client.add_request

    @wraps(add_request)
    async def add_marked(request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        call = CALL.get()
        if call is not None:
            extra = "extra_args" if hasattr(params, "extra_args") else "extra_kwargs"  # of sampling, of pooling
            given = getattr(params, extra)
            identity = call.identity or settled(given)
            setattr(params, extra, {**(given or {}), **identity.as_extra_args()})
            if private_prefixes:
                prompt = salted(prompt, identity.client)
        return await add_request(request_id, prompt, params, *args, **kwargs)

    engine_client.add_request = add_marked


def salted(prompt: Any, client: str) -> Any:
    """The prompt with a cache salt that no other client's prompt can have."""
    if isinstance(prompt, str):
        prompt = {"prompt": prompt}
    elif isinstance(prompt, list):
        prompt = {"prompt_token_ids": prompt}
    if not isinstance(prompt, Mapping):
        raise TypeError(f"a prompt of type {type(prompt).__name__} cannot be kept apart by identity.private_prefixes")
    decoder = prompt.get("decoder_prompt")  # of an encoder-decoder: that is where vLLM looks for the salt
    inner = {"decoder_prompt": salted(decoder, client)} if isinstance(decoder, Mapping) else {}
    own = str(prompt.get("cache_salt") or "")
    return {**prompt, **inner, "cache_salt": hashlib.sha256(f"{client}\0{own}".encode()).hexdigest()}
