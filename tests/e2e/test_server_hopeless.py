"""Too late for a first token, seen by the real `openai` client: given up in time, or refused before it begins."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

TTFT_S = 1.5


def api(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_a_request_without_a_first_token_in_time_is_given_up(start_server: Any) -> None:
    settings = {
        "strict": True,
        "slo": {"online": {"ttft_s": TTFT_S}},
        "overload": {"on_hopeless": "reject"},
        "clients": {"late": {"limits": {"max_running": 1}}},
    }
    server = start_server("--scheduler", "hybrid", "--hybrid-config", json.dumps(settings))
    client = api(server)
    late: Any = {"ignore_eos": True, "vllm_xargs": {"client": "late"}}
    for _ in range(20):  # the first one warms the engine up, and may be given up itself
        with contextlib.suppress(openai.InternalServerError):
            client.completions.create(model="tiny", prompt="w1", max_tokens=2)
            break
    before = server.samples()["refused_requests_total", "online", "hopeless"]
    # They run one after the other, each for much of the target: the last ones cannot be in time.

    def ask(_: int) -> Any:
        try:
            return client.completions.create(model="tiny", prompt="w1", max_tokens=500, extra_body=late)
        except openai.InternalServerError as error:
            return error

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(ask, range(12)))
    refused = [o for o in outcomes if isinstance(o, openai.InternalServerError)]
    assert 0 < len(refused) < len(outcomes)
    for error in refused:
        assert "no first token within the target" in str(error) and error.status_code == 503
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert server.samples()["refused_requests_total", "online", "hopeless"] == before + len(refused)
    assert client.completions.create(model="tiny", prompt="w1", max_tokens=2).usage.completion_tokens == 2


def test_who_would_wait_too_long_is_refused_at_once(start_server: Any) -> None:
    settings = {"strict": True, "overload": {"reject_ttft_s": 0.0005}}
    server = start_server("--scheduler", "hybrid", "--hybrid-config", json.dumps(settings))
    client = api(server)
    chat: Any = {"model": "tiny", "prompt": "w1", "max_tokens": 2}
    client.completions.create(**chat)  # no pace is known: it comes in, and gives one
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match=r"503.*too late") as refused:
            client.completions.create(stream=stream, **chat)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    offline: Any = {"vllm_xargs": {"lane": "offline"}}
    assert client.completions.create(**chat, extra_body=offline).usage.completion_tokens == 2
    assert server.samples()["refused_requests_total", "online", "ttft"] == 2
