"""Admission of whole prompts in order of arrival, as systems did it before prompts were cut into chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.published.orders import by_arrival
from vllm_hybrid.policy.request import RequestView


def whole_prompts(view: StepView, tokens: int, requests: float, something_runs: bool) -> Iterator[RequestView]:
    """Prompts that fit into `tokens` whole, at most `requests` of them; the first that does not fit stops the line.

    One larger than any step would wait for ever: it is cut where nothing else runs.
    """
    with contextlib.closing(by_arrival(view)) as line:
        for v in filter(view.ready, line):
            needed = view.admissible_tokens(v, 0)
            if requests < 1 or not needed or (needed > tokens and something_runs):
                return
            something_runs = True
            tokens -= needed
            requests -= 1
            yield v
