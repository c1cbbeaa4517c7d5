"""HyGen's setting, judged on a window that nothing was tuned on: each knob is found on the window before.

The search is that of `hygen_search`, the same for HyGen and HyGen*. Hybrid needs none: it is told the target itself, as
a tolerance of the mean, or as a gap, so much longer than the P99 of online alone on the window before. What counts is
the next window: whether the target is kept there and how much offline work was done, beside what a clairvoyant could
have done at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.papers.hygen_search import (
    DEVICE,
    GRIDS,
    SEED,
    SETTINGS,
    STEP_TOKENS,
    Bench,
    Search,
    Target,
    contender,
    reached,
    requests_of,
)
from vllm_hybrid.sim.device import Device, load_device
from vllm_hybrid.sim.run import simulate

ALONE = "sarathi"
TUNED, JUDGED = 0, 1  # windows
_TILE = 32  # tokens between two points at which the device's price of a token is looked at


def judged(search: Search) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy under each target on the other window, and what that cost on this machine."""
    bench = Bench(search)
    alone, later = bench.run(ALONE, None, TUNED), bench.run(ALONE, None, JUDGED)
    found: dict[str, Any] = {"alone": later}
    if search.policy == ALONE:
        steps = _steps_alone(search)
        token_s = sum(seconds * decodes for seconds, decodes in steps)
        for target in search.targets:
            allowed_s = target.tolerance * token_s if target.metric == "mean" else math.inf
            most = most_offline_tokens(steps, search.window_s, allowed_s, load_device(DEVICE))
            found[target.name] = {"bound": most}
        return found, {"cpu_s": bench.cpu_s, "runs": len(bench.runs) + 1}
    for target in search.targets:
        knob, about = knob_of(bench, search, target, alone)
        there = later if knob is None else bench.run(search.policy, knob, JUDGED)
        found[target.name] = {
            "knob": knob,
            **about,
            "ratio": there[target.metric] / later[target.metric],
            **{key: there[key] for key in ("offline", "mean_ttft_ms", "preemptions", "recomputed_tokens")},
        }
    return found, {"cpu_s": bench.cpu_s, "runs": len(bench.runs)}


def knob_of(bench: Bench, search: Search, target: Target, alone: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """A policy's setting for a target, from the window it is tuned on, and how that was found; None: none keeps it."""
    if search.policy not in GRIDS:
        return (target.tolerance if target.metric == "mean" else (1 + target.tolerance) * alone["p99"] / 1000), {}
    grid, tuned = GRIDS[search.policy], reached(bench, search, target, alone)
    knob = tuned["knob"]
    finite = knob is not None and knob < grid.value(grid.rungs - 1)
    return knob, {"finite": finite, "tuned": {"ratio": tuned["ratio"], "offline": tuned["offline"]}}


def _steps_alone(search: Search) -> list[tuple[float, int]]:
    """Seconds and decodes of each step of the online requests alone."""
    online = [r for r in requests_of(search.qps, search.window_s, JUDGED) if r.lane == "online"]
    device, alone = load_device(DEVICE), contender(ALONE, None)
    record = simulate(online, alone, device, SETTINGS, until_s=search.window_s, seed=SEED)
    return list(zip(record.steps.seconds, record.steps.decodes, strict=True))


def most_offline_tokens(steps: Sequence[tuple[float, int]], window_s: float, allowed_s: float, device: Device) -> float:
    """Offline tokens per second that no policy exceeds beside these online steps.

    steps: seconds and online decodes of each step of the online requests alone. allowed_s: online tokens times the
    seconds that they may be longer. Memory, the KV that decodes read, and who comes when are no obstacle here: time
    without an online step is full of prompts without any context, and an online step takes STEP_TOKENS - decodes more
    tokens, free as far as its weights hide them, then at the lowest price the device has for a token.
    """
    seconds = [device.step_seconds([(tokens, 0)], []) for tokens in range(_TILE, STEP_TOKENS + 1, _TILE)]
    prices = [(later - earlier) / _TILE for earlier, later in pairwise(seconds)]
    token_s = min(price for price in prices if price > 0.5 * max(prices))
    free = _TILE * (1 + sum(price <= 0.5 * max(prices) for price in prices))
    tokens = max(0.0, window_s - sum(s for s, _ in steps)) * STEP_TOKENS / seconds[-1]
    left_s = allowed_s
    for _, decodes in sorted(steps, key=lambda step: step[1]):  # few online tokens first: they cost least
        hidden = max(0, free - decodes)
        room = max(0, STEP_TOKENS - decodes - hidden)
        more = min(room, left_s / (decodes * token_s)) if decodes else room
        tokens += hidden + more
        left_s -= more * decodes * token_s if decodes else 0.0
    return tokens / window_s
