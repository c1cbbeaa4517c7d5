"""The real trace of the VTC paper, drawn anew from its figures: 27 clients, 1,500 requests in ten minutes.

The trace is not redistributed; what is kept of it are the requests per client, the quantiles of the lengths, and
when clients come and go, which matters more than both: its clients are the models of a chat arena, and models are
replaced.  The shapes were read from a fifth of the requests stored in the paper's artifact (VTC-artifact, Apache-2.0,
stored responses of the suite `real`).  Lengths are drawn independently of the client.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import in_order, stream
from vllm_hybrid.sim.suites.vtc import client_name

# Requests in each tenth of the trace, relative to each other.
STEADY = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
RUSH = (0, 0, 0, 0, 70, 36, 36, 36, 36, 38)
FADING = (14, 12, 10, 8, 5, 3, 1, 1, 1, 1)
EBBING = (21, 20, 18, 15, 13, 10, 10, 10, 8, 7)
NEWCOMER = (0, 0, 0, 0, 24, 22, 20, 18, 16, 14)
LATE = (0, 0, 0, 0, 0, 0, 1, 2, 2, 2)
EARLY = (3, 3, 3, 1, 0, 0, 0, 0, 0, 0)

CLIENTS = (
    *((296, STEADY), (262, RUSH), (199, FADING), (120, EBBING), (67, NEWCOMER), (66, STEADY), (56, EBBING)),
    *((46, STEADY), (44, NEWCOMER), (43, STEADY), (40, EARLY), (36, STEADY), (31, STEADY), (26, LATE)),
    *((25, NEWCOMER), (23, EARLY), (22, STEADY), (22, LATE), (19, EARLY), (19, EARLY), (12, LATE)),
    *((11, EARLY), (7, LATE), (3, EARLY), (2, EARLY), (2, EARLY), (1, EARLY)),
)

# (share of the requests, tokens): linear in between; input mean 136, median 40; output mean 256, median 211.
INPUT_QUANTILES = ((0.0, 2), (0.25, 14), (0.5, 40), (0.75, 170), (0.9, 390), (0.97, 640), (1.0, 1021))
OUTPUT_QUANTILES = ((0.0, 2), (0.1, 16), (0.25, 66), (0.5, 211), (0.75, 435), (0.85, 512), (0.97, 513), (1.0, 977))


def real(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    requests = []
    for index, (count, shape) in enumerate(CLIENTS):
        rng = stream(seed, index)
        tenth_s = duration_s / len(shape)
        for tenth in rng.choices(range(len(shape)), shape, k=count):
            arrival_s = (tenth + rng.random()) * tenth_s
            lengths = quantile(INPUT_QUANTILES, rng.random()), quantile(OUTPUT_QUANTILES, rng.random())
            requests.append(SimRequest("", arrival_s, *lengths, client_name(index)))
    return in_order(requests)


def quantile(points: Sequence[tuple[float, int]], share: float) -> int:
    """The number of tokens that `share` of the requests do not exceed."""
    upper = min(bisect_right(points, share, key=lambda point: point[0]), len(points) - 1)
    (low, low_tokens), (high, high_tokens) = points[upper - 1], points[upper]
    return round(low_tokens + (high_tokens - low_tokens) * (share - low) / (high - low))
