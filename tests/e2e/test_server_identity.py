"""A server that knows its callers by their keys, as the real `openai` client meets it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest

from vllm_hybrid.config.keys import key_hash

pytestmark = pytest.mark.e2e

ALICE, BOB, OPS = "sk-alice-1", "sk-bob-2", "sk-ops-3"
HEADER = "x-fairness-id"
TOKENS = 8


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = {
        ALICE: {"client": "alice"},
        BOB: {"client": "bob", "lanes": ["offline"]},
        OPS: {"client": "ops", "admin": True, "delegate": True},
    }
    keys.write_text(json.dumps({key_hash(key): entry for key, entry in entries.items()}))
    settings = {"strict": True, "identity": {"keys_file": str(keys), "header": HEADER, "private_prefixes": True}}
    return start_server("--scheduler", "hybrid", "--hybrid-config", json.dumps(settings), "--enable-scale-out")


def api(server: Any, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


def ways(api: openai.OpenAI, **extra: Any) -> dict[str, Any]:
    """Every way to generate TOKENS tokens, as calls without arguments."""
    words: Any = [{"role": "user", "content": "w1 w2"}]
    body: dict[str, Any] = {"model": "tiny", "max_tokens": TOKENS}
    more = {"ignore_eos": True, **extra}
    responses = {"model": "tiny", "input": "w1", "max_output_tokens": TOKENS}
    raw = {"prompt": "w1", **body, **more}
    anthropic = {**body, "messages": words, **extra}
    tokens = {"model": "tiny", "token_ids": [7, 8], "sampling_params": {"max_tokens": TOKENS, "ignore_eos": True}}
    return {
        "completion": lambda: api.completions.create(prompt="w1", extra_body=more, **body),
        "completion stream": lambda: list(api.completions.create(prompt="w1", stream=True, extra_body=more, **body)),
        "chat": lambda: api.chat.completions.create(messages=words, extra_body=more, **body),
        "chat stream": lambda: list(api.chat.completions.create(messages=words, stream=True, extra_body=more, **body)),
        "beam": lambda: api.completions.create(prompt="w1", n=2, extra_body={"use_beam_search": True, **more}, **body),
        "responses": lambda: api.responses.create(extra_body=extra, **responses),
        "messages": lambda: api.post("/messages", cast_to=object, body=anthropic),
        "invocations": lambda: api.post("/../invocations", cast_to=object, body=raw),
        "tokens": lambda: api.post("/../inference/v1/generate", cast_to=object, body={**tokens}),
    }


WAYS = list(ways(openai.OpenAI(api_key="-", base_url="http://localhost")))


def served(server: Any) -> tuple[float, float]:
    """Output tokens of the online and of the offline lane so far."""
    samples = server.settled()
    return samples["tokens_total", "output", "online"], samples["tokens_total", "output", "offline"]


def test_two_keys_are_two_clients_in_two_lanes_on_every_path(server: Any) -> None:
    online, offline = served(server)
    for name, call in ways(api(server, ALICE)).items():
        assert call(), name
    after_alice = served(server)
    assert after_alice[1] == offline and after_alice[0] - online >= TOKENS * (len(WAYS) - 2)  # two may end earlier
    for call in ways(api(server, BOB)).values():
        call()
    after_bob = served(server)
    assert after_bob[0] == after_alice[0] and after_bob[1] - after_alice[1] >= TOKENS * (len(WAYS) - 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_keyless_call_is_a_401_on_every_path(server: Any, way: str) -> None:
    for key in ("-", "sk-alice"):
        with pytest.raises(openai.AuthenticationError) as refused:
            ways(api(server, key))[way]()
        assert refused.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "tokens"])
def test_a_wish_beyond_the_key_is_a_403_that_names_it(server: Any, way: str) -> None:
    for wish, named in [({"client": "alice"}, "vllm_xargs.client = 'alice'"), ({"lane": "online"}, "vllm_xargs.lane")]:
        with pytest.raises(openai.PermissionDeniedError, match=named):
            ways(api(server, BOB), vllm_xargs=wish)[way]()


@pytest.mark.parametrize("way", ["completion stream", "chat", "responses", "invocations"])
def test_a_service_tier_is_a_lane_or_a_403(server: Any, way: str) -> None:
    before = served(server)
    ways(api(server, ALICE), service_tier="flex")[way]()
    after = served(server)
    assert after[0] == before[0] and after[1] > before[1]
    with pytest.raises(openai.PermissionDeniedError, match="service_tier = 'priority'"):
        ways(api(server, BOB), service_tier="priority")[way]()


def test_a_body_of_tokens_that_names_another_client_is_a_403(server: Any) -> None:
    parameters = {"max_tokens": 2, "extra_args": {"client": "alice"}}
    for stream in (False, True):
        body = {"model": "tiny", "token_ids": [7], "sampling_params": parameters, "stream": stream}
        with pytest.raises(openai.PermissionDeniedError, match="client = 'alice'"):
            api(server, BOB).post("/../inference/v1/generate", cast_to=object, body=body)


def test_forged_headers_change_nothing(server: Any) -> None:
    before = served(server)
    forged = {HEADER: "alice", "X-Session-ID": "alice", "X-Client-Id": "alice", "X-Hybrid-Lane": "online"}
    for value in ("alice", "", "x" * 300, "a b"):
        api(server, BOB).completions.create(
            model="tiny", prompt="w1", max_tokens=2, extra_headers={**forged, HEADER: value}
        )
    assert served(server)[0] == before[0]
    with pytest.raises(openai.BadRequestError, match=HEADER):
        api(server, OPS).completions.create(model="tiny", prompt="w1", extra_headers={HEADER: "a b"})


def test_what_operators_use_is_closed_to_users_and_probes_are_open(server: Any) -> None:
    def status(path: str, key: str) -> int:
        request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status(path, ALICE) for path in ("/openapi.json", "/sleep", "/v1/models")] == [403, 403, 200]
    assert [status(path, "") for path in ("/openapi.json", "/v1/models", "/health", "/metrics")] == [401, 401, 200, 200]
    assert status("/openapi.json", OPS) == 200


def test_no_key_is_in_the_log(server: Any) -> None:
    log: str = server.log()
    assert "identity.keys_file=" in log
    assert not any(secret in log for key in (ALICE, BOB, OPS) for secret in (key, key_hash(key)))
