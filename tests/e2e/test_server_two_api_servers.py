"""Two API servers in front of one engine: flags reach both, and their metrics add up exactly."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.ending import CALLERS, end_under_load

pytestmark = pytest.mark.e2e

REQUESTS = 60


@pytest.fixture(scope="module")
def server(start_server: Any) -> Any:
    settings = '{"strict": true, "status": {"open": true}, "metrics": {"clients": "names", "first_clients": 2}}'
    flags = (
        "--scheduler",
        "hybrid",
        "--hybrid-config",
        settings,
        "--no-enable-prefix-caching",
        "--shutdown-timeout",
        "8",
    )
    return start_server("--api-server-count", "2", *flags)


def ask(server: Any, number: int) -> Any:
    """A request on a connection of its own, so that both API servers get some; every sixth names a bad lane."""
    lane = "nowhere" if number % 6 == 5 else ("online", "offline")[number % 2]
    xargs = {"client": f"c{number % 5}", "lane": lane}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as api:
        try:
            answer = api.completions.create(
                model="tiny", prompt="w1 w2", max_tokens=10, extra_body={"ignore_eos": True, "vllm_xargs": xargs}
            )
        except openai.BadRequestError as error:
            assert lane == "nowhere"
            return error
    return answer.usage


def test_counters_add_up_over_both_servers(server: Any) -> None:
    before = server.settled()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(server, number), range(REQUESTS)))
    after = server.settled()
    refused = [answer for answer in answers if isinstance(answer, openai.BadRequestError)]
    assert len(refused) == REQUESTS // 6
    assert {error.param for error in refused} == {"vllm_xargs.lane"}
    served = [answer for answer in answers if not isinstance(answer, openai.BadRequestError)]
    for kind, tokens in (("prompt", "prompt_tokens"), ("output", "completion_tokens")):
        counted = sum(after["tokens_total", kind, lane] for lane in ("online", "offline"))
        counted_before = sum(before.get(("tokens_total", kind, lane), 0) for lane in ("online", "offline"))
        assert counted - counted_before == sum(getattr(usage, tokens) for usage in served)
    assert after["policy_errors_total",] == 0
    check_clients(before, after, served)


def check_clients(before: dict[Any, float], after: dict[Any, float], served: list[Any]) -> None:
    """Two clients have labels of their own and three are `other`, the same ones whichever server tells."""

    def gained(name: str, at: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, value in after.items():
            if key[0] == name:
                found[key[at]] = found.get(key[at], 0.0) + value - before.get(key, 0.0)
        return found

    tokens = gained("client_tokens_total", 1)
    assert len(tokens) == 3 and "other" in tokens
    assert sum(tokens.values()) == sum(usage.prompt_tokens + usage.completion_tokens for usage in served)
    firsts, gaps = gained("ttft_seconds_count", 1), gained("tbt_seconds_count", 1)
    assert firsts.keys() == tokens.keys() and sum(firsts.values()) == len(served)
    assert sum(gaps.values()) == sum(usage.completion_tokens - 1 for usage in served)


def test_the_page_is_the_same_whichever_server_answers(server: Any) -> None:
    assert server.settled() == server.settled() == server.settled()


def status(server: Any) -> Any:
    return json.loads(server.get("/v1/hybrid/status"))["engines"]


def test_the_status_is_the_engines_whichever_server_answers(server: Any) -> None:
    assert status(server) == status(server) == status(server) == status(server)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        request = urllib.request.Request(f"{server.url}/v1/hybrid/config", data=b"{}", method="PATCH")
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=30)


def test_sigterm_under_load_gives_everybody_a_result_or_one_clear_error(server: Any) -> None:
    """The last test of the module: it ends both servers, each of which drains its own requests."""
    outcomes = end_under_load(server, "none", lambda: status(server)[0]["lanes"]["online"]["running"] >= 16)
    assert outcomes.keys() <= {"result", "503", "error event", "health 503"}, outcomes
    assert outcomes["result"] and outcomes["health 503"] == 1 and outcomes.total() == CALLERS + 1
