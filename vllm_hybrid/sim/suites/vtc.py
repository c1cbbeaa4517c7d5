"""The suites of the VTC paper (OSDI'24): rates, lengths and bursts as in its artifact's `exp_suite.py`.

"uniform" clients send at fixed gaps, "Poisson" ones share a merged process; an on/off client is silent in every
second minute.  Clients are `client0`, `client1`, ... in the paper's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites.arrivals import in_order, is_on, merged_poisson, ramp, stream, uniform

OVERLOAD_WEIGHTS = (1, 2, 3, 4)
ABLATION_RATES = {  # (pool tokens, input = output tokens) -> requests/s of the two clients
    (35_000, 256): (3.0, 6.0),
    (35_000, 512): (1.5, 3.0),
    (35_000, 768): (1.0, 2.0),
    (65_000, 256): (4.0, 8.0),
    (65_000, 512): (2.0, 4.0),
    (65_000, 768): (1.5, 3.0),
}


def client_name(index: int) -> str:
    return f"client{index}"


def overload(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_uniform(seed, (1.5, 3.0), duration_s))


def proportional(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_uniform(seed, (0.25, 0.5, 1.5), duration_s))


def on_off_less(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_first_on_off(_uniform(seed, (0.5, 2.0), duration_s)))


def on_off_overload(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_first_on_off(_uniform(seed, (2.0, 3.0), duration_s)))


def overload_multi(seed: int, *, duration_s: float = 360.0) -> list[SimRequest]:
    return in_order(_uniform(seed, (0.4,) * 3 + (0.6,) * 5, duration_s))


def overload_weighted(seed: int, *, first_rate: float = 0.4, duration_s: float = 360.0) -> list[SimRequest]:
    """first_rate: the artifact's run without weights has .8 there."""
    return in_order(_uniform(seed, (first_rate, 0.8, 1.2, 1.6), duration_s))


def increase(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    steady = _requests(0, uniform(stream(seed, 0), 0.5, duration_s))
    return in_order([*steady, *_requests(1, ramp(0.2, 2.0, duration_s))])


def dist_shift(seed: int, *, duration_s: float = 900.0) -> list[SimRequest]:
    phase_s = duration_s / 3
    phases = (
        _first_on_off(_uniform(seed, (0.5, 2.0), phase_s)),
        _uniform(seed + 1, (1.0, 1.0), phase_s, start_s=phase_s),
        _uniform(seed + 2, (0.5, 1.5), phase_s, start_s=2 * phase_s),
    )
    return in_order(request for phase in phases for request in phase)


def poisson_short_long(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_short_long(seed, ((64, 64), (256, 256)), duration_s))


def poisson_short_long_2(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    return in_order(_short_long(seed, ((512, 32), (32, 512)), duration_s))


def poisson_on_off_overload(seed: int, *, duration_s: float = 600.0) -> list[SimRequest]:
    lengths = stream(seed, "lengths")
    arrivals = merged_poisson(stream(seed, "arrivals"), (0.5, 2.0), duration_s)
    drawn = [
        SimRequest("", arrival_s, lengths.randrange(16, 512), lengths.randrange(16, 512), client_name(client))
        for arrival_s, client in arrivals
    ]
    return in_order(_first_on_off(drawn))


def ablation(seed: int, *, pool: int = 35_000, length: int = 256, duration_s: float = 600.0) -> list[SimRequest]:
    if (pool, length) not in ABLATION_RATES:
        allowed = ", ".join(f"{p}/{n}" for p, n in ABLATION_RATES)
        raise ValueError(f"pool/length = {pool}/{length}: must be one of {allowed}")
    return in_order(_uniform(seed, ABLATION_RATES[pool, length], duration_s, tokens=length))


def _uniform(
    seed: int, rates: Iterable[float], duration_s: float, start_s: float = 0.0, tokens: int = 256
) -> Iterator[SimRequest]:
    for client, rate in enumerate(rates):
        arrivals = [start_s + arrival_s for arrival_s in uniform(stream(seed, client), rate, duration_s)]
        yield from _requests(client, arrivals, tokens)


def _requests(client: int, arrivals: Iterable[float], tokens: int = 256) -> list[SimRequest]:
    return [SimRequest("", arrival_s, tokens, tokens, client_name(client)) for arrival_s in arrivals]


def _short_long(seed: int, lengths: tuple[tuple[int, int], ...], duration_s: float) -> list[SimRequest]:
    arrivals = merged_poisson(stream(seed, "arrivals"), (8.0, 1.5), duration_s)
    return [SimRequest("", arrival_s, *lengths[client], client_name(client)) for arrival_s, client in arrivals]


def _first_on_off(requests: Iterable[SimRequest]) -> list[SimRequest]:
    return [request for request in requests if request.client != client_name(0) or is_on(request.arrival_s)]
