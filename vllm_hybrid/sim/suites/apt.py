"""Apt-Serve's load (SIGMOD'25): conversation lengths, and arrivals from Poisson to very bursty ones.

Lengths are the log-normal fit to ShareGPT up to 2,048 tokens; gaps are gamma distributed with a coefficient of
variation of 1, 5 or 10.  In overload every share of met targets depends on how many requests there are: keep the 800.
"""

from __future__ import annotations

import math
import random

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import fitting, gamma, in_order, stream

MOST_TOKENS = 2_048
_PROMPT_MEAN, _PROMPT_SIGMA = 161, 1.2
_OUTPUT_MEAN, _OUTPUT_SIGMA = 338, 0.9


def apt(seed: int, *, qps: float = 3.0, cv: float = 1.0, requests: int = 800) -> list[SimRequest]:
    rng = stream(seed, "lengths")
    lengths = fitting(lambda: _lengths(rng), MOST_TOKENS)
    arrivals = gamma(stream(seed, f"arrivals/{cv:g}"), qps, cv, requests)
    return in_order(SimRequest("", arrival_s, *next(lengths)) for arrival_s in arrivals)


def _lengths(rng: random.Random) -> tuple[int, int]:
    prompt = lognormal_of_mean(rng, _PROMPT_MEAN, _PROMPT_SIGMA)
    return prompt, lognormal_of_mean(rng, _OUTPUT_MEAN, _OUTPUT_SIGMA)


def lognormal_of_mean(rng: random.Random, mean: float, sigma: float) -> int:
    """At least one token."""
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))
