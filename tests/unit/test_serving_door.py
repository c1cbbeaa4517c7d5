"""The door: with keys everything is closed that is not known to be open."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from vllm_hybrid.config import HybridConfig, load_config
from vllm_hybrid.config.identity import Entitlement
from vllm_hybrid.config.keys import key_hash
from vllm_hybrid.serving.door import Door, Refusal

KEYS = {
    key_hash("user"): Entitlement(client="alice"),
    key_hash("ops"): Entitlement(client="ops", admin=True),
}
KEYED = Door(load_config({"identity": {"keys_file": "keys.yaml"}}), KEYS)
INFERENCE = ["/v1/completions", "/v1/messages", "/invocations", "/inference/v1/generate", "/tokenize", "/v1/realtime"]
OPERATION = [
    "/sleep",
    "/collective_rpc",
    "/v1/load_lora_adapter",
    "/inference/v1/abort_requests",
    "/unheard-of",
    "/docs",
]


def status(path: str, key: str | None = None, door: Door = KEYED, root: str = "") -> HTTPStatus | None:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    try:
        door.admit({"type": "http", "method": "POST", "path": root + path, "root_path": root, "headers": headers})
    except Refusal as refusal:
        return refusal.status
    return None


@pytest.mark.parametrize("path", INFERENCE)
def test_inference_needs_a_key_and_any_key_will_do(path: str) -> None:
    assert status(path) is HTTPStatus.UNAUTHORIZED
    assert status(path, "stranger") is HTTPStatus.UNAUTHORIZED
    assert status(path, "user") is status(path, "ops") is None
    assert status(path, root="/behind") is HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("path", OPERATION)
def test_what_operators_use_needs_their_key(path: str) -> None:
    assert status(path) is HTTPStatus.UNAUTHORIZED
    assert status(path, "user") is HTTPStatus.FORBIDDEN
    assert status(path, "ops") is None


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/metrics"])
def test_what_machines_probe_stays_open(path: str) -> None:
    assert status(path) is None


def test_without_keys_nothing_is_closed() -> None:
    door = Door(HybridConfig())
    assert [status(path, door=door) for path in [*INFERENCE, *OPERATION]] == [None] * 12
