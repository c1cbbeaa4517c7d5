"""One server, configured by vLLM's own YAML file, asked by the real `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

LONG = 400  # tokens; a stream of that length is still running when everything else in its test is done
BAD_IDENTITIES = [
    ({"lane": "batch"}, "vllm_xargs.lane", "one of online, offline"),
    ({"lane": 1}, "vllm_xargs.lane", "one of online, offline"),
    ({"client": ""}, "vllm_xargs.client", "1 to 64 characters"),
    ({"client": "x" * 65}, "vllm_xargs.client", "1 to 64 characters"),
    ({"client": "a\nb"}, "vllm_xargs.client", "1 to 64 characters"),
]


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("config") / "serve.yaml"
    file.write_text(
        "scheduler: hybrid\n"
        "no-enable-prefix-caching: true\n"  # every prompt token is computed, so sums can be exact
        "hybrid-config:\n"
        "  strict: true\n"
        "  slo:\n"
        "    online: {ttft_s: 5, tbt_s: 1}\n"
        "  clients:\n"
        "    alice: {weight: 2}\n"
        "    talker: {limits: {tokens_per_minute: 20}}\n"
    )
    return start_server("--config", str(file))


@pytest.fixture(scope="module")
def api(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def who(max_tokens: int, **xargs: Any) -> dict[str, Any]:
    """Arguments of a request that generates exactly `max_tokens`, on behalf of a client and lane."""
    return {
        "model": "tiny",
        "max_tokens": max_tokens,
        "extra_body": {"ignore_eos": True, "vllm_xargs": xargs} if xargs else {"ignore_eos": True},
    }


def complete(api: openai.OpenAI, prompt: str, max_tokens: int = 8, **xargs: Any) -> Any:
    return api.completions.create(prompt=prompt, **who(max_tokens, **xargs))


def chat(api: openai.OpenAI, text: str, max_tokens: int = 8, stream: bool = False, **xargs: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return api.chat.completions.create(messages=messages, stream=stream, **who(max_tokens, **xargs))


def test_both_lanes_answer_completions_and_chat(api: openai.OpenAI) -> None:
    assert complete(api, "w1 w2 w3").usage.completion_tokens == 8
    assert complete(api, "w1 w2 w3", client="alice", lane="offline").usage.completion_tokens == 8
    assert chat(api, "w4 w5", client="bob", lane="online").usage.completion_tokens == 8


def streamed(api: openai.OpenAI, text: str, max_tokens: int, **xargs: Any) -> Iterator[tuple[int, Any]]:
    """(tokens so far, finish reason) of each chunk; under load one chunk may carry several tokens."""
    usage = {"include_usage": True, "continuous_usage_stats": True}
    messages: Any = [{"role": "user", "content": text}]
    request: Any = {"messages": messages, "stream": True, "stream_options": usage, **who(max_tokens, **xargs)}
    for chunk in api.chat.completions.create(**request):
        yield chunk.usage.completion_tokens, chunk.choices[0].finish_reason if chunk.choices else None


def test_a_stream_of_every_lane_arrives_in_pieces(api: openai.OpenAI) -> None:
    for lane in ("online", "offline"):
        chunks = list(streamed(api, "w6", 40, client="carol", lane=lane))
        assert [reason for _, reason in chunks if reason] == ["length"]
        assert chunks[-1][0] == 40
        assert len(chunks) > 10


@pytest.mark.parametrize(("xargs", "field", "allowed"), BAD_IDENTITIES)
def test_a_bad_lane_or_client_is_refused_before_the_answer_starts(
    api: openai.OpenAI, xargs: dict[str, Any], field: str, allowed: str
) -> None:
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "extra_body": {"vllm_xargs": xargs}}
    messages: Any = [{"role": "user", "content": "w1"}]
    calls = [
        lambda stream: api.completions.create(prompt="w1", stream=stream, **body),
        lambda stream: api.chat.completions.create(messages=messages, stream=stream, **body),
    ]
    for call in calls:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                call(stream)
            assert refused.value.param == field
            assert field in refused.value.message
            assert allowed in refused.value.message


def test_every_other_way_to_generate_refuses_a_bad_lane_too(api: openai.OpenAI) -> None:
    xargs = {"vllm_xargs": {"lane": "batch"}}
    calls = [
        lambda: api.responses.create(model="tiny", input="w1", extra_body=xargs),
        lambda: api.responses.create(model="tiny", input="w1", stream=True, extra_body=xargs),
        lambda: api.completions.create(model="tiny", prompt="w1", n=2, extra_body={"use_beam_search": True, **xargs}),
        lambda: api.completions.create(model="tiny", prompt=["w1", "w2"], extra_body=xargs),
        lambda: api.post("/messages", cast_to=object, body=anthropic_body(xargs)),
        lambda: api.post("/../invocations", cast_to=object, body={"prompt": "w1", **xargs}),
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError, match=r"vllm_xargs\.lane = 'batch'"):
            call()


def anthropic_body(extra: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "user", "content": "w1"}
    return {"model": "tiny", "max_tokens": 4, "messages": [message], **extra}


def test_bad_requests_leave_a_running_stream_alone(api: openai.OpenAI) -> None:
    refused, reasons, tokens = 0, [], 0
    for tokens, reason in streamed(api, "w7 w8", LONG, client="neighbour"):
        reasons += [reason] if reason else []
        if tokens > 60 * refused:
            with pytest.raises(openai.BadRequestError):
                complete(api, "w1", client="neighbour", lane="nowhere")
            refused += 1
    assert refused > 3
    assert reasons == ["length"]
    assert tokens == LONG


def test_a_client_that_hangs_up_is_aborted(server: Any, api: openai.OpenAI) -> None:
    before = server.settled()
    stream = chat(api, "w9", LONG, stream=True, client="leaver", lane="offline")
    next(stream)
    stream.close()
    after = server.settled()
    assert after["requests", "offline", "running"] == 0
    assert 0 < after["tokens_total", "output", "offline"] - before["tokens_total", "output", "offline"] < LONG


def test_metrics_count_every_token_of_each_lane_once(server: Any, api: openai.OpenAI) -> None:
    before = server.settled()
    jobs = [
        {"prompt": f"w{i} w{i + 1} w{i + 2}", "client": f"c{i % 4}", "lane": ("online", "offline")[i % 2]}
        for i in range(24)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: complete(api, max_tokens=12, **job), jobs))
    after = server.settled()
    for lane in ("online", "offline"):
        mine = [answer.usage for answer, job in zip(answers, jobs, strict=True) if job["lane"] == lane]
        key = ("tokens_total", "prompt", lane)
        assert after[key] - before[key] == sum(usage.prompt_tokens for usage in mine)
        key = ("tokens_total", "output", lane)
        assert after[key] - before[key] == sum(usage.completion_tokens for usage in mine)
    assert after["steps_total", "true", "plan"] > before["steps_total", "true", "plan"]
    assert after["steps_total", "true", "fallback"] == after["steps_total", "false", "fallback"] == 0
    assert after["policy_errors_total",] == after["bad_identity_total",] == 0
    assert not any(key[0] == "drain_errors_total" for key in after)
    assert not any(value for key, value in after.items() if key[0] == "requests")


def test_every_lane_and_state_has_its_sample(server: Any) -> None:
    names = server.samples()
    for lane in ("online", "offline"):
        assert {("requests", lane, state) for state in ("waiting", "running", "paused")} <= set(names)
        assert {("preemptions_total", lane, "plan"), ("pauses_total", lane, "step")} <= set(names)
    assert ("predictor_error_ratio",) in names


def test_the_log_shows_the_settings_but_no_clients_name(server: Any) -> None:
    log = server.log()
    assert "HybridSettings(strict=True, slo.online.ttft_s=5.0, slo.online.tbt_s=1.0, clients=<2>)" in log
    assert "alice" not in log


def test_a_client_that_used_up_its_tokens_gets_a_429_with_retry_after(api: openai.OpenAI) -> None:
    complete(api, "w1 w2", 30, client="talker")
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="client 'talker' has used up its 20 tokens") as refused:
            chat(api, "w1", stream=stream, client="talker")
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 61
    assert complete(api, "w1", client="bob").choices
