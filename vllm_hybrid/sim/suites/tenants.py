"""Several tenants and one that misbehaves: does its load stay its own problem?

The neighbours send the same requests in every mix (chat lengths of the Azure conversation twin, Poisson arrivals);
`adversary=False` leaves the adversary out, which is what the neighbours would see alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import fitting, gamma, in_order, is_on, stream
from vllm_hybrid.workload import LengthProfile, TraceProfile, load_profile

ADVERSARY = "adversary"
_MOST_CHAT_TOKENS = 4_096
_Misbehave = Callable[[int, float, float], Iterator[SimRequest]]  # (seed, qps, duration_s)


def flood(
    seed: int,
    *,
    neighbours: int = 4,
    qps: float = 0.5,
    adversary_qps: float = 10.0,
    duration_s: float = 300.0,
    adversary: bool = True,
) -> list[SimRequest]:
    """Ordinary requests, far more than a fair share."""
    return _mix(seed, neighbours, qps, duration_s, adversary, adversary_qps, _flood)


def huge_prompts(
    seed: int,
    *,
    neighbours: int = 4,
    qps: float = 0.5,
    adversary_qps: float = 1.0,
    duration_s: float = 300.0,
    adversary: bool = True,
) -> list[SimRequest]:
    """Prompts of 8,000 tokens that want 16 back."""
    return _mix(seed, neighbours, qps, duration_s, adversary, adversary_qps, _fixed(8_000, 16))


def tiny_requests(
    seed: int,
    *,
    neighbours: int = 4,
    qps: float = 0.5,
    adversary_qps: float = 50.0,
    duration_s: float = 300.0,
    adversary: bool = True,
) -> list[SimRequest]:
    """16 tokens in, 16 out, very many of them."""
    return _mix(seed, neighbours, qps, duration_s, adversary, adversary_qps, _fixed(16, 16))


def on_off_flood(
    seed: int,
    *,
    neighbours: int = 4,
    qps: float = 0.5,
    adversary_qps: float = 20.0,
    duration_s: float = 300.0,
    adversary: bool = True,
) -> list[SimRequest]:
    """Half a minute of flood, half a minute of rest: does the rest buy the next burst?"""
    return _mix(seed, neighbours, qps, duration_s, adversary, adversary_qps, _on_off)


def _mix(
    seed: int,
    neighbours: int,
    qps: float,
    duration_s: float,
    adversary: bool,
    adversary_qps: float,
    misbehave: _Misbehave,
) -> list[SimRequest]:
    requests = [request for index in range(neighbours) for request in _chat(seed, f"neighbour{index}", qps, duration_s)]
    if adversary:
        requests += misbehave(seed, adversary_qps, duration_s)
    return in_order(requests)


def _chat(seed: int, client: str, qps: float, duration_s: float) -> Iterator[SimRequest]:
    rng = stream(seed, f"lengths/{client}")
    lengths = fitting(lambda: _chat_lengths().draw(rng), _MOST_CHAT_TOKENS)
    for arrival_s in _poisson(seed, client, qps, duration_s):
        yield SimRequest("", arrival_s, *next(lengths), client)


def _flood(seed: int, qps: float, duration_s: float) -> Iterator[SimRequest]:
    return _chat(seed, ADVERSARY, qps, duration_s)


def _on_off(seed: int, qps: float, duration_s: float) -> Iterator[SimRequest]:
    return (request for request in _chat(seed, ADVERSARY, qps, duration_s) if is_on(request.arrival_s, 30.0))


def _fixed(prompt_tokens: int, output_tokens: int) -> _Misbehave:
    def misbehave(seed: int, qps: float, duration_s: float) -> Iterator[SimRequest]:
        for arrival_s in _poisson(seed, ADVERSARY, qps, duration_s):
            yield SimRequest("", arrival_s, prompt_tokens, output_tokens, ADVERSARY)

    return misbehave


def _poisson(seed: int, client: str, qps: float, duration_s: float) -> list[float]:
    arrivals = gamma(stream(seed, f"arrivals/{client}"), qps, 1.0, round(2 * qps * duration_s) + 50)
    return [arrival_s for arrival_s in arrivals if arrival_s < duration_s]


@cache
def _chat_lengths() -> LengthProfile:
    profile = load_profile("azure_conv_2023")
    assert isinstance(profile, TraceProfile)
    return next(iter(profile.clients.values())).lengths
