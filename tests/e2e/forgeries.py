"""Requests that claim to be somebody else's, in every way that bytes on a connection allow."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

NAMES = (
    "x-fairness-id",
    "X-Fairness-Id",
    "x-client-id",
    "x-session-id",
    "x-hybrid-lane",
    "x-vllm-priority",
    "x-api-key",
)
NAMES += ("x-forwarded-user", "x-hybrid-weight", "x_fairness_id", "authorization", "x-request-id", "cookie")
VALUES = (
    "alice",
    "carol",
    "admin",
    "online",
    "99",
    "",
    " ",
    "Bearer sk-none",
    "ünï".encode().decode("latin-1"),
    "x" * 5000,
)
VALUES += ("bob\r\nx-fairness-id: alice", "bob\r\n alice", "alice\0", "bob, alice", "../alice", "'; drop", "\xff\xfe")
CLAIMS: dict[str, tuple[Any, ...]] = {
    "client": ("alice", "carol", "admin", "", "a b", "ü", "x" * 65, "bob\r\nalice", 7, 1.5, ["alice"], "bob"),
    "lane": ("online", "ONLINE", "batch", "", 0, ["online"], "offline"),
    "weight": (99, -1, "99", 1e300),
    "hybrid": ("alice", ["online"]),
    "kv": ("online",),
}
FIELDS: dict[str, tuple[Any, ...]] = {
    "service_tier": ("priority", "default", "scale", "flex", "cheap", 7),
    "user": ("alice", "x" * 5000, "ü\n"),
    "priority": (-(2**62), 5),
    "cache_salt": ("alice", "salt"),
    "session_id": ("alice",),
    "metadata": ({"client": "alice"},),
    "client": ("alice",),
    "lane": ("online",),
    "weight": (99,),
}


def send_forged(server: Any, key: str, seed: int, count: int) -> Iterator[int]:
    """The statuses of `count` forged requests of the key's bearer, one after the other on as few connections as go."""
    rng, where = random.Random(seed), urlsplit(server.url)
    connection: socket.socket | None = None
    for _ in range(count):
        request = _forged(rng, key)
        if connection is None:
            connection = socket.create_connection((where.hostname, where.port), timeout=120)
        connection.sendall(request)
        answer = HTTPResponse(connection, method="POST")
        try:
            answer.begin()
            answer.read()
        except (HTTPException, ConnectionError) as error:
            raise AssertionError(f"no answer to {request[:300]!r}") from error
        yield answer.status
        if answer.will_close or answer.status == 400:
            connection.close()
            connection = None


def _forged(rng: random.Random, key: str) -> bytes:
    body: dict[str, Any] = {"model": "tiny", "prompt": "w1", "max_tokens": 1}
    if rng.random() < 0.6:
        body["vllm_xargs"] = {name: rng.choice(CLAIMS[name]) for name in rng.sample(sorted(CLAIMS), rng.randint(1, 2))}
    for name in rng.sample(sorted(FIELDS), rng.randint(0, 2)):
        body[name] = rng.choice(FIELDS[name])
    headers = [(rng.choice(NAMES), rng.choice(VALUES)) for _ in range(rng.randint(0, 3))]
    return _request(rng.choice(["/v1/completions", "/invocations"]), key, headers, json.dumps(body).encode())


def _request(path: str, key: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    given = [
        ("host", "localhost"),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("authorization", f"Bearer {key}"),
        *headers,
    ]
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
