"""The real trace of the VTC paper, drawn anew from its figures: 27 clients, 1,500 requests in ten minutes.

The trace is not redistributed; what is kept of it is how many requests each client sends in each minute, the quantiles
of the prompts' lengths, and those of the answers' lengths for short and for long prompts.  They were read from the
responses stored in the paper's artifact (VTC-artifact, Apache-2.0, suite `real`).  Requests are spread over their
minute at random, and answers are longer or shorter by client, so that shares of the service are the trace's own.

That long prompts have long answers matters most: drawn independently of each other, lengths hold a tenth less memory
over their time, and a saturated engine serves more tokens a second.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import in_order, stream
from vllm_hybrid.sim.suites.vtc import client_name

Quantiles = Sequence[tuple[float, int]]
"""(share of the requests, tokens that it does not exceed); linear in between."""

# Requests of a client in each tenth of the trace, and the power its output quantiles are drawn with: below 1 answers
# are longer. The clients are the models of a chat arena: they come, are replaced, and go.
CLIENTS: tuple[tuple[tuple[int, ...], float], ...] = (
    ((23, 22, 42, 26, 23, 33, 30, 31, 35, 31), 0.82),
    ((0, 0, 0, 22, 67, 30, 36, 31, 34, 42), 0.74),
    ((56, 38, 44, 23, 14, 5, 4, 4, 6, 5), 1.01),
    ((21, 17, 18, 13, 3, 8, 12, 11, 9, 8), 1.88),
    ((10, 3, 13, 7, 4, 5, 6, 8, 8, 3), 0.89),
    ((0, 0, 0, 0, 9, 14, 15, 12, 8, 8), 0.85),
    ((3, 6, 7, 4, 2, 4, 10, 6, 6, 8), 1.64),
    ((0, 0, 0, 3, 11, 4, 8, 6, 10, 4), 1.27),
    ((9, 1, 5, 4, 3, 5, 10, 2, 1, 4), 1.17),
    ((0, 2, 7, 1, 6, 6, 2, 7, 6, 6), 1.58),
    ((1, 1, 4, 2, 3, 3, 5, 5, 8, 8), 1.70),
    ((2, 0, 2, 6, 4, 2, 5, 3, 3, 9), 1.02),
    ((0, 0, 0, 0, 0, 0, 3, 3, 13, 12), 0.70),
    ((2, 0, 1, 5, 3, 2, 5, 2, 2, 4), 0.91),
    ((0, 0, 0, 2, 2, 2, 8, 1, 2, 8), 1.43),
    ((1, 0, 1, 1, 2, 3, 4, 6, 2, 3), 3.78),
    ((3, 7, 5, 3, 4, 0, 0, 0, 0, 0), 1.47),
    ((0, 0, 0, 0, 0, 0, 0, 4, 6, 12), 1.31),
    ((4, 10, 5, 0, 0, 0, 0, 0, 0, 0), 2.03),
    ((0, 0, 0, 0, 0, 0, 2, 5, 6, 6), 1.04),
    ((5, 3, 4, 0, 0, 0, 0, 0, 0, 0), 0.49),
    ((4, 7, 0, 0, 0, 0, 0, 0, 0, 0), 2.23),
    ((4, 3, 0, 0, 0, 0, 0, 0, 0, 0), 4.00),
    ((3, 0, 0, 0, 0, 0, 0, 0, 0, 0), 4.00),
    ((1, 1, 0, 0, 0, 0, 0, 0, 0, 0), 4.00),
    ((0, 0, 0, 0, 0, 0, 0, 0, 0, 2), 0.64),
    ((0, 0, 0, 0, 0, 0, 0, 0, 0, 1), 0.85),
)

INPUT_QUANTILES: Quantiles = (
    *((0.0, 2), (0.1, 5), (0.2, 10), (0.3, 16), (0.4, 24), (0.5, 40), (0.6, 68), (0.7, 124), (0.75, 161)),
    *((0.8, 214), (0.85, 300), (0.9, 432), (0.95, 653), (0.99, 902), (1.0, 1021)),
)
_OUTPUT_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
_OUTPUT_TOKENS = {  # prompts of fewer tokens than this (and not of fewer than the line before)
    5: (3, 9, 10, 18, 36, 50, 274, 450, 513),
    15: (2, 25, 53, 155, 374, 511, 513, 582, 976),
    40: (2, 47, 145, 338, 512, 513, 518, 669, 816),
    200: (2, 24, 87, 232, 495, 513, 583, 760, 977),
    1022: (3, 33, 117, 256, 510, 513, 768, 945, 977),
}
OUTPUT_QUANTILES: tuple[tuple[int, Quantiles], ...] = tuple(
    (below, tuple(zip(_OUTPUT_SHARES, tokens, strict=True))) for below, tokens in _OUTPUT_TOKENS.items()
)


def real(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    requests = []
    for index, (counts, power) in enumerate(CLIENTS):
        rng = stream(seed, index)
        tenth_s = duration_s / len(counts)
        tenths = [tenth for tenth, count in enumerate(counts) for _ in range(count)]
        for tenth, prompt, answer in zip(tenths, strata(rng, len(tenths)), strata(rng, len(tenths)), strict=True):
            arrival_s = (tenth + rng.random()) * tenth_s
            prompt_tokens = quantile(INPUT_QUANTILES, prompt)
            output_tokens = quantile(answers_to(prompt_tokens), answer**power)
            requests.append(SimRequest("", arrival_s, prompt_tokens, output_tokens, client_name(index)))
    return in_order(requests)


def strata(rng: random.Random, count: int) -> list[float]:
    """Shares from 0 to 1 in random order, one in each of `count` equal parts: a small sample that is like the whole."""
    shares = [(part + rng.random()) / count for part in range(count)]
    rng.shuffle(shares)
    return shares


def answers_to(prompt_tokens: int) -> Quantiles:
    """The quantiles of the answers to prompts of that length."""
    return next(quantiles for below, quantiles in OUTPUT_QUANTILES if prompt_tokens < below)


def quantile(points: Quantiles, share: float) -> int:
    """The number of tokens that `share` of the requests do not exceed."""
    upper = min(bisect_right(points, share, key=lambda point: point[0]), len(points) - 1)
    (low, low_tokens), (high, high_tokens) = points[upper - 1], points[upper]
    return round(low_tokens + (high_tokens - low_tokens) * (share - low) / (high - low))
