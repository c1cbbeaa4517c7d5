"""The real trace of the VTC paper, drawn anew from its figures: 27 clients, 1,500 requests in ten minutes.

The trace is not redistributed; what is kept of it are the requests per client, the quantiles of the lengths, and
when clients come and go, which matters more than both: its clients are the models of a chat arena, and models are
replaced.  The shapes were read from a fifth of the requests stored in the paper's artifact (VTC-artifact, Apache-2.0,
stored responses of the suite `real`).  Prompts are drawn independently of the client; answers are longer or shorter by
client, so that the six largest shares of the service are the published ones (.222 .199 .134 .063 .047 .046).
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

# Requests of a client, when it is there, and the power its output quantiles are drawn with: below 1 answers are longer.
# The stored requests tell that it is the second client whose share of the service is the largest.
_FEW = 1.28  # the clients after the sixth, together
CLIENTS = (
    *((296, STEADY, 0.98), (262, RUSH, 0.58), (199, FADING, 0.98), (120, EBBING, 1.61), (67, NEWCOMER, 0.90)),
    *((66, STEADY, 0.91), (56, EBBING, _FEW), (46, STEADY, _FEW), (44, NEWCOMER, _FEW), (43, STEADY, _FEW)),
    *((40, EARLY, _FEW), (36, STEADY, _FEW), (31, STEADY, _FEW), (26, LATE, _FEW), (25, NEWCOMER, _FEW)),
    *((23, EARLY, _FEW), (22, STEADY, _FEW), (22, LATE, _FEW), (19, EARLY, _FEW), (19, EARLY, _FEW)),
    *((12, LATE, _FEW), (11, EARLY, _FEW), (7, LATE, _FEW), (3, EARLY, _FEW), (2, EARLY, _FEW), (2, EARLY, _FEW)),
    (1, EARLY, _FEW),
)

# (share of the requests, tokens): linear in between; input mean 136, median 40; output mean 256, median 211.
INPUT_QUANTILES = ((0.0, 2), (0.25, 14), (0.5, 40), (0.75, 170), (0.9, 390), (0.97, 640), (1.0, 1021))
OUTPUT_QUANTILES = ((0.0, 2), (0.1, 16), (0.25, 66), (0.5, 211), (0.75, 435), (0.85, 512), (0.97, 513), (1.0, 977))


def real(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    requests = []
    for index, (count, shape, power) in enumerate(CLIENTS):
        rng = stream(seed, index)
        tenth_s = duration_s / len(shape)
        for tenth in rng.choices(range(len(shape)), shape, k=count):
            arrival_s = (tenth + rng.random()) * tenth_s
            lengths = quantile(INPUT_QUANTILES, rng.random()), quantile(OUTPUT_QUANTILES, rng.random() ** power)
            requests.append(SimRequest("", arrival_s, *lengths, client_name(index)))
    return in_order(requests)


def quantile(points: Sequence[tuple[float, int]], share: float) -> int:
    """The number of tokens that `share` of the requests do not exceed."""
    upper = min(bisect_right(points, share, key=lambda point: point[0]), len(points) - 1)
    (low, low_tokens), (high, high_tokens) = points[upper - 1], points[upper]
    return round(low_tokens + (high_tokens - low_tokens) * (share - low) / (high - low))
