"""Two API servers in front of one engine: flags reach both, and their metrics add up exactly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

REQUESTS = 60


@pytest.fixture(scope="module")
def server(start_server: Any) -> Any:
    flags = ("--scheduler", "hybrid", "--hybrid-config.strict", "true", "--no-enable-prefix-caching")
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


def test_the_page_is_the_same_whichever_server_answers(server: Any) -> None:
    assert server.settled() == server.settled() == server.settled()
