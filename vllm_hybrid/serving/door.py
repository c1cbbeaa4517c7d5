"""The door of the server: who comes in, and how far.

With keys in use a path is closed unless it is known to be open: vLLM's own `--api-key` guards four prefixes and leaves
`/invocations`, which runs inference, to everybody. Any key opens the paths of inference; what operators use (sleep,
profiling, adapters, aborting requests by id, ...) opens to keys with `admin: true` only. Without keys nothing is closed
here, except what shows or changes other clients' business (`/v1/hybrid/`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from vllm_hybrid.config import HybridConfig, IdentityError
from vllm_hybrid.config.keys import Keys, load_keys
from vllm_hybrid.serving.identity import Call, Caller, NoKey, caller_of

OPEN = frozenset({"/health", "/ping", "/version", "/metrics", "/hybrid"})
_INFERENCE = ("/v1/", "/v2/", "/inference/v1/", "/cohere/")
_INFERENCE_PATHS = frozenset(
    {
        *("/invocations", "/generative_scoring", "/tokenize", "/detokenize"),
        *("/classify", "/pooling", "/score", "/rerank"),
    }
)
_OPERATORS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/inference/v1/abort_requests"})


class Refusal(Exception):
    """An answer to give instead of letting the request in."""

    def __init__(self, status: HTTPStatus, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Door:
    """Lets requests in. keys: None where no keys are in use."""

    def __init__(self, config: HybridConfig, keys: Keys | None = None) -> None:
        self._settings = config.identity
        self._keys = keys

    @classmethod
    def of(cls, config: HybridConfig) -> Door:
        """The door these settings describe."""
        return cls(config, load_keys(config.identity))

    def admit(self, scope: Mapping[str, Any]) -> Call:
        """The call that a request or a websocket begins, or a Refusal."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN or scope.get("method") == "OPTIONS":
            return Call(Caller())
        try:
            caller = caller_of(scope["headers"], self._settings, self._keys)
        except NoKey:
            ask = ((b"www-authenticate", b"Bearer"),)
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "a known API key is needed (Authorization: Bearer KEY)", ask
            ) from None
        except IdentityError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
        if self._keys is not None and not caller.is_admin and not _is_inference(path):
            raise Refusal(HTTPStatus.FORBIDDEN, f"{path[:80]!r} needs a key with `admin: true`")
        return Call(caller, self._settings.named_in)


def _is_inference(path: str) -> bool:
    return (path.startswith(_INFERENCE) or path in _INFERENCE_PATHS) and path not in _OPERATORS


async def refuse(scope: Mapping[str, Any], send: Any, refusal: Refusal) -> None:
    """Answer a request, or close a websocket, in the form of OpenAI's errors."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
        return
    body = json.dumps(error_body(refusal.status, refusal.message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(status: HTTPStatus, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as vLLM's server words it."""
    return {"error": {"message": message, "type": status.phrase, "param": param, "code": status.value}}
