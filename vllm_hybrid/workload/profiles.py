"""Statistical twins of real traces, drawn from figures that ship with the package.

The traces themselves may not be redistributed; their figures may (sources and licences: `data/README.md`).
A profile holds requests per window, the coefficient of variation of the gaps, prompt-length quantiles, and
output-length quantiles for each tenth of the prompt lengths.  A twin keeps these and nothing else: no
correlation between neighbours, no shared prefixes.  Gaps are gamma distributed with the profile's variation;
they are drawn in units of expected requests and then stretched by each window's rate, so that a window's
expected count is the profile's and no gap is cut off at a window's edge.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vllm_hybrid.workload.traces import TraceRequest

_MIN_GAP_CV = 0.1


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """The lengths of a set of requests: quantiles, in tokens, at the points of `quantile_points`."""

    quantile_points: tuple[float, ...]
    prompt: tuple[float, ...]
    output_by_prompt_decile: tuple[tuple[float, ...], ...]

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """(prompt tokens, output tokens) of one request; the output depends on the prompt's decile."""
        u = rng.random()
        deciles = self.output_by_prompt_decile
        outputs = deciles[min(len(deciles) - 1, int(u * len(deciles)))]
        prompt = self._at(self.prompt, u)
        return max(1, round(prompt)), max(1, round(self._at(outputs, rng.random())))

    def sample(self, seed: int, count: int) -> list[TraceRequest]:
        """`count` requests that are all there at the start, as offline work is."""
        rng = random.Random(seed)
        return [TraceRequest(0.0, *self.draw(rng)) for _ in range(count)]

    def _at(self, quantiles: Sequence[float], u: float) -> float:
        points = self.quantile_points
        upper = next(i for i, point in enumerate(points) if u <= point)
        if upper == 0:
            return quantiles[0]
        low, high = points[upper - 1], points[upper]
        return quantiles[upper - 1] + (quantiles[upper] - quantiles[upper - 1]) * (u - low) / (high - low)


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """One client's arrivals and lengths."""

    window_s: float
    requests_per_window: tuple[int, ...]
    gap_cv: float
    lengths: LengthProfile

    @property
    def duration_s(self) -> float:
        return self.window_s * len(self.requests_per_window)

    def arrivals(self, rng: random.Random, rate_scale: float, until_s: float) -> Iterator[float]:
        shape = 1 / max(self.gap_cv, _MIN_GAP_CV) ** 2
        # A random first phase: a stream that starts with a whole gap arrives late in every twin.
        due = rng.random() * rng.gammavariate(shape, 1 / shape)
        passed = 0.0
        for index, requests in enumerate(self.requests_per_window):
            expected = requests * rate_scale
            while due < passed + expected:
                arrival_s = (index + (due - passed) / expected) * self.window_s
                if arrival_s >= until_s:
                    return
                yield arrival_s
                due += rng.gammavariate(shape, 1 / shape)
            passed += expected


@dataclass(frozen=True, slots=True)
class TraceProfile:
    """A trace with arrivals, client by client."""

    clients: Mapping[str, ClientProfile]

    @property
    def duration_s(self) -> float:
        return max(client.duration_s for client in self.clients.values())

    def sample(self, seed: int, duration_s: float, rate_scale: float = 1.0) -> list[TraceRequest]:
        """A twin of the trace's first `duration_s` seconds at `rate_scale` times its rate, sorted by time."""
        if not 0 < duration_s <= self.duration_s:
            raise ValueError(f"duration_s = {duration_s}: must be in (0, {self.duration_s:g}]")
        if not rate_scale > 0:
            raise ValueError(f"rate_scale = {rate_scale}: must be greater than 0")
        rng = random.Random(seed)
        twin = [
            TraceRequest(arrival_s, *client.lengths.draw(rng), name)
            for name, client in self.clients.items()
            for arrival_s in client.arrivals(rng, rate_scale, duration_s)
        ]
        return sorted(twin, key=lambda r: r.arrival_s)


def profile_names() -> list[str]:
    return sorted(_shipped()["profiles"])


def load_profile(name: str) -> TraceProfile | LengthProfile:
    """The shipped profile `name`: a `TraceProfile` where the source has arrivals, else a `LengthProfile`."""
    shipped = _shipped()
    if name not in shipped["profiles"]:
        raise ValueError(f"profile {name!r}: must be one of {', '.join(profile_names())}")
    points, figures = tuple(shipped["quantile_points"]), shipped["profiles"][name]
    if "clients" not in figures:
        return _lengths(points, figures)
    return TraceProfile({client: _client(points, f) for client, f in figures["clients"].items()})


@cache
def _shipped() -> dict[str, Any]:
    return json.loads(files("vllm_hybrid.workload").joinpath("data/workload_profiles.json").read_text())


def _lengths(points: tuple[float, ...], figures: Mapping[str, Any]) -> LengthProfile:
    outputs = tuple(tuple(q) for q in figures["output_by_prompt_decile"])
    return LengthProfile(points, tuple(figures["prompt"]), outputs)


def _client(points: tuple[float, ...], figures: Mapping[str, Any]) -> ClientProfile:
    counts = tuple(figures["requests_per_window"])
    return ClientProfile(figures["window_s"], counts, figures["gap_cv"], _lengths(points, figures))
