"""A request that names a lane or a client that is none is refused alone, before anything is done for it.

Two places see every request.  vLLM's HTTP handlers ask `_get_session_id` once per prompt on every path, beam
search and batches included, before the answer's status goes out: an error there is a 400 even for a stream.
`InputProcessor._validate_params` sees what reaches the engine in any other way, the Python API above all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, wraps
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_hybrid.config import IdentityError, request_identity
from vllm_hybrid.serving.rate_limit import check_rate
from vllm_hybrid.settings import is_selected


class BadIdentity(VLLMValidationError, ValueError):
    """A 400 to vLLM's server, a ValueError to a Python caller; `parameter` names the field."""

    def __init__(self, error: IdentityError) -> None:
        VLLMValidationError.__init__(self, str(error), parameter=error.field)

    __str__ = Exception.__str__  # the message has named the field already


def check_identity(extra_args: Mapping[str, Any] | None) -> None:
    """Raise BadIdentity unless the lane and client in `extra_args` are a lane and a client."""
    try:
        request_identity(extra_args)
    except IdentityError as error:
        raise BadIdentity(error) from None


@cache
def install_in_engine_client() -> None:
    """Check what this process sends to engines that run our scheduler."""
    from vllm.v1.engine.input_processor import InputProcessor

    validate_params = InputProcessor._validate_params

    @wraps(validate_params)
    def check_and_validate(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if is_selected(self.vllm_config.scheduler_config.scheduler_cls):
            check_identity(getattr(params, "extra_args", None))
        return validate_params(self, params, *args, **kwargs)

    InputProcessor._validate_params = check_and_validate


@cache
def install_in_server() -> None:
    """Check what this API server receives, before it answers."""
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing

    get_session_id = GenerateBaseServing._get_session_id

    @wraps(get_session_id)
    def check_and_get_session_id(request: Any, raw_request: Any) -> Any:
        check_identity(request.vllm_xargs)
        check_rate(request.vllm_xargs, raw_request)
        return get_session_id(request, raw_request)

    GenerateBaseServing._get_session_id = staticmethod(check_and_get_session_id)
