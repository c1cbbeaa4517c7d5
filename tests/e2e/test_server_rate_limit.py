"""A limit on requests per minute, seen by the real `openai` client: also a stream is refused before it starts."""

from __future__ import annotations

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e


def test_a_client_beyond_its_limit_gets_a_429_with_retry_after(start_server: Any) -> None:
    server = start_server(
        "--scheduler", "hybrid", "--hybrid-config", '{"preset": "rpm", "presets": {"rpm": {"limit": 3}}}'
    )
    api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)

    def complete(client: str, **more: Any) -> Any:
        return api.completions.create(
            model="tiny", prompt=["w1 w2", "w3"], max_tokens=4, extra_body={"vllm_xargs": {"client": client}}, **more
        )

    for _ in range(3):
        assert len(complete("alice").choices) == 2
    for more in ({}, {"stream": True}):
        with pytest.raises(openai.RateLimitError, match="client 'alice' has used up") as refused:
            complete("alice", **more)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert len(complete("bob").choices) == 2
