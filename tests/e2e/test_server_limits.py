"""Limits at the front door, seen by the real `openai` client, a stream refused before it starts; and a restart."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.operator import hybrid
from vllm_hybrid.config.keys import key_hash

pytestmark = pytest.mark.e2e

TOKENS, PLACES = 60, 8
OPS = "sk-ops-4"
CLIENTS = {"alice": {"limits": {"tokens_per_minute": TOKENS}}, "carol": {"weight": 2.0}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    keys, file = folder / "keys.json", folder / "hybrid.json"
    keys.write_text(json.dumps({key_hash(OPS): {"client": "ops", "admin": True, "delegate": True}}))
    identity, overload = {"keys_file": str(keys)}, {"max_requests": PLACES}
    file.write_text(json.dumps({"strict": True, "identity": identity, "overload": overload, "clients": CLIENTS}))
    return file


@pytest.fixture(scope="module")
def server(start_server: Any, settings: Path) -> Any:
    return start_server("--scheduler", "hybrid", "--hybrid-config", str(settings))


@pytest.fixture(scope="module")
def api(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPS, max_retries=0, timeout=120)


def calls(api: openai.OpenAI, client: str, lane: str = "online") -> dict[str, Callable[[], Any]]:
    """Every way to ask for two tokens, streaming or not."""
    xargs = {"vllm_xargs": {"client": client, "lane": lane}}
    words: Any = [{"role": "user", "content": "w1"}]
    made: dict[str, Callable[[], Any]] = {}
    for stream in (False, True):
        chat: Any = {"model": "tiny", "max_tokens": 2, "stream": stream, "extra_body": xargs}
        answer: Any = {"model": "tiny", "input": "w1", "max_output_tokens": 2, "stream": stream, "extra_body": xargs}
        anthropic = {"model": "tiny", "max_tokens": 2, "messages": words, "stream": stream, **xargs}
        text = {"prompt": ["w1", "w2"], "max_tokens": 2, "stream": stream, **xargs}
        made |= {
            f"completions {stream}": lambda chat=chat: api.completions.create(prompt="w1", **chat),
            f"chat {stream}": lambda chat=chat: api.chat.completions.create(messages=words, **chat),
            f"responses {stream}": lambda answer=answer: api.responses.create(**answer),
            f"messages {stream}": lambda body=anthropic: api.post("/messages", cast_to=object, body=body),
            f"invocations {stream}": lambda body=text: api.post("/../invocations", cast_to=object, body=body),
        }
    return made


def check_refused(call: Callable[[], Any], kind: type[openai.APIStatusError], message: str) -> None:
    """A refusal is a status of its own, for streams too, and says when to come back."""
    with pytest.raises(kind, match=message) as refused:
        call()
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 61


def test_a_client_beyond_its_tokens_gets_a_429_with_retry_after(server: Any, api: openai.OpenAI) -> None:
    alice, used = calls(api, "alice"), 0
    while used < TOKENS:
        used += alice["completions False"]().usage.total_tokens
    for call in alice.values():
        check_refused(call, openai.RateLimitError, f"client 'alice' has used up its {TOKENS} tokens")
    assert server.samples()["refused_requests_total", "online", "client_tokens"] == len(alice)
    assert calls(api, "bob")["chat False"]().usage.completion_tokens == 2


def test_a_full_server_gives_a_503_with_retry_after_to_offline_requests_first(server: Any, api: openai.OpenAI) -> None:
    over, running = threading.Event(), threading.Semaphore(0)
    before = server.samples()

    def hold(number: int) -> None:
        """A stream that is held until everybody has been refused."""
        body: Any = {"ignore_eos": True, "vllm_xargs": {"client": f"holder-{number}"}}
        with api.completions.create(model="tiny", prompt="w1", max_tokens=480, stream=True, extra_body=body) as stream:
            next(stream)
            running.release()
            over.wait(60)

    with ThreadPoolExecutor(PLACES) as pool:
        held = [pool.submit(hold, number) for number in range(PLACES * 3 // 4)]
        for _ in held:
            running.acquire()
        try:
            for call in calls(api, "late", "offline").values():
                check_refused(call, openai.InternalServerError, "503.*the server has its hands full")
            assert calls(api, "late")["completions False"]().usage.completion_tokens == 2
            held += [pool.submit(hold, number) for number in range(len(held), PLACES)]
            running.acquire()
            running.acquire()
            for call in calls(api, "late").values():
                check_refused(call, openai.InternalServerError, "503.*the server has its hands full")
        finally:
            over.set()
        for holder in held:
            holder.result()
    after = server.samples()
    ways = len(calls(api, "late"))
    for lane in ("offline", "online"):
        key = ("refused_requests_total", lane, "overload")
        assert after[key] - before[key] == ways
    patient = api.with_options(max_retries=5)  # it comes back when it was told to
    assert calls(patient, "late", "offline")["completions False"]().usage.completion_tokens == 2


def test_a_restart_begins_with_the_file_again(server: Any, settings: Path, start_server: Any) -> None:
    """The last test of the module: it ends the server."""
    written = settings.read_text()
    before = hybrid(server, "config", OPS)
    changed = hybrid(server, "config", OPS, {"clients": {"carol": {"weight": 5}, "dave": {"weight": 3}}}, "PATCH")
    assert changed["config"]["clients"].keys() == {"alice", "carol", "dave"} and changed["version"] == 2
    server.stop()
    assert settings.read_text() == written
    again = start_server("--scheduler", "hybrid", "--hybrid-config", str(settings))
    assert hybrid(again, "config", OPS) == before
