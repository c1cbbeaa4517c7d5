"""SIGTERM to a server under load: what becomes of everybody who is in, and of one who comes too late."""

from __future__ import annotations

import time
import urllib.error
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai

SHORT, LONG = 3, 450  # tokens; the long ones do not end within the --shutdown-timeout of 2 s
CALLERS = 40


def outcome(api: openai.OpenAI, number: int) -> str:
    """How one request ends; every second one streams, two of four are short."""
    stream, tokens = number % 2 == 0, SHORT if number % 4 < 2 else LONG
    try:
        answer: Any = api.completions.create(
            model="tiny", prompt="w1", max_tokens=tokens, stream=stream, extra_body={"ignore_eos": True}
        )
        finished = [chunk.choices[0].finish_reason for chunk in (answer if stream else [answer])]
        return "result" if finished[-1] == "length" else f"cut off: {finished}"
    except openai.APIStatusError as error:
        return str(error.status_code)
    except openai.APIConnectionError as error:
        return f"no answer: {error!r}"
    except openai.APIError as error:  # an error event within a stream
        return "error event" if "shutting down" in str(error) else repr(error)


def end_under_load(server: Any, key: str, under_way: Callable[[], bool]) -> Counter[str]:
    """Send requests, SIGTERM once they are `under_way`, and say how each of them ended."""

    # One for all: on a busy machine forty are made so slowly that the last ones find nobody to talk to.
    api = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)
    with api, ThreadPoolExecutor(CALLERS) as pool:
        asked = [pool.submit(outcome, api, number) for number in range(CALLERS)]
        while not under_way():
            time.sleep(0.05)
        server.terminate()
        late = None
        while late is None:  # /health says when nobody new comes in any more
            with suppress(ConnectionError):
                try:
                    server.get("/health")
                    time.sleep(0.01)
                except urllib.error.HTTPError as error:
                    late = f"health {error.code}"
        outcomes = Counter(call.result(timeout=60) for call in asked)
    server.stop()
    return outcomes + Counter([late])
