"""The two data sets of Sarathi-Serve's capacity search (OSDI'24), with Poisson arrivals.

Chat lengths are the released trace (total at most 8,192 tokens) or its shipped twin.  No 16k arXiv trace is public:
prompts are Gamma(2.9, mean 8,500) cut to 300..16,000 and outputs log-normal (median 206, sigma .42), which gives
median/P90/std 7,090/12,825/3,638 and 206/356/101 against the paper's 7,059/12,985/3,638 and 208/371.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import fitting, gamma, in_order, stream
from vllm_hybrid.sim.suites.sources import draw_lengths

CHAT_MOST_TOKENS = 8_192
ARXIV_MOST_TOKENS = 16_384
_ARXIV_PROMPT_RANGE = (300, 16_000)


def chat(seed: int, *, qps: float = 1.0, requests: int = 512, source: str = "auto") -> list[SimRequest]:
    rng = stream(seed, "lengths")
    lengths = fitting(lambda: draw_lengths("sharegpt_rounds", source, rng), CHAT_MOST_TOKENS)
    return _poisson(seed, qps, requests, lengths)


def arxiv(seed: int, *, qps: float = 1.0, requests: int = 512) -> list[SimRequest]:
    rng = stream(seed, "lengths")
    return _poisson(seed, qps, requests, fitting(lambda: _arxiv_lengths(rng), ARXIV_MOST_TOKENS))


def _arxiv_lengths(rng: random.Random) -> tuple[int, int]:
    shape, mean_tokens = 2.9, 8_500
    least, most = _ARXIV_PROMPT_RANGE
    while not least <= (prompt := rng.gammavariate(shape, mean_tokens / shape)) <= most:
        pass
    return round(prompt), max(1, round(rng.lognormvariate(math.log(206), 0.42)))


def _poisson(seed: int, qps: float, requests: int, lengths: Iterator[tuple[int, int]]) -> list[SimRequest]:
    arrivals = gamma(stream(seed, "arrivals"), qps, 1.0, requests)
    return in_order(SimRequest("", arrival_s, *next(lengths)) for arrival_s in arrivals)
