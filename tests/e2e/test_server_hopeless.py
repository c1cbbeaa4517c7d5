"""Too late for a first token, seen by the real `openai` client: given up in time, or refused before it begins."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

TTFT_S = 1.5  # shorter than the stream that holds the place, long enough for a busy machine


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
    # The only place of the client is taken by a stream that goes on longer than the target.
    began = threading.Event()

    def hold() -> None:
        with client.completions.create(
            model="tiny", prompt="w1", max_tokens=500, stream=True, extra_body=late
        ) as stream:
            until_s = time.monotonic() + 2.5 * TTFT_S
            for _ in stream:
                began.set()
                if time.monotonic() > until_s:
                    break

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert began.wait(60)
        asked_s = time.monotonic()
        with pytest.raises(openai.InternalServerError, match=r"503.*no first token within the target") as refused:
            client.completions.create(model="tiny", prompt="w1", max_tokens=2, extra_body=late)
        waited_s = time.monotonic() - asked_s
        holder.result()
    assert waited_s > 0.9 * TTFT_S
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert server.samples()["refused_requests_total", "online", "hopeless"] == before + 1
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
