"""Where real lengths and arrivals come from: a trace that lies beside the repository, or its twin from the package.

Traces may not be redistributed, their figures may (`workload/data/README.md`).  `source` is `auto` (the trace where
it is there, else the twin), `trace` or `twin`.  The trace is looked for in the folder `VLLM_HYBRID_TRACES` names,
else in `../shared/data` beside the repository.
"""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

from vllm_hybrid.workload import LengthProfile, TraceProfile, TraceRequest, load_profile, load_trace

SOURCES = ("auto", "trace", "twin")
TRACES_VARIABLE = "VLLM_HYBRID_TRACES"
_BESIDE_REPOSITORY = Path(__file__).resolve().parents[4] / "shared" / "data"


class MissingDataError(ValueError):
    """A trace file that this workload needs is not there."""


def trace_path(file_name: str) -> Path:
    return Path(os.environ.get(TRACES_VARIABLE) or _BESIDE_REPOSITORY) / file_name


def has_trace(file_name: str) -> bool:
    return trace_path(file_name).is_file()


def require_trace(file_name: str) -> Path:
    path = trace_path(file_name)
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file: set {TRACES_VARIABLE} to the folder that holds {file_name}")
    return path


def timed(profile: str, source: str, seed: int, file_name: str = "") -> tuple[TraceRequest, ...]:
    """The whole trace `profile`, or a twin of it, sorted by arrival."""
    file_name = file_name or f"{profile}.csv.gz"
    if _from_trace(file_name, source):
        return _whole_trace(require_trace(file_name))
    twin = load_profile(profile)
    assert isinstance(twin, TraceProfile), f"{profile} has no arrivals"
    return tuple(twin.sample(seed, twin.duration_s))


def draw_lengths(profile: str, source: str, rng: random.Random) -> tuple[int, int]:
    """(prompt, output) lengths of one request, drawn from the trace's rows or from its quantiles."""
    file_name = f"{profile}.csv.gz"
    if _from_trace(file_name, source):
        row = rng.choice(_rows_of_lengths(require_trace(file_name)))
        return row.prompt_tokens, row.output_tokens
    lengths = _length_profile(profile)
    assert isinstance(lengths, LengthProfile), f"{profile} has arrivals of its own"
    return lengths.draw(rng)


def _from_trace(file_name: str, source: str) -> bool:
    if source not in SOURCES:
        raise ValueError(f"source = {source!r}: must be one of {', '.join(SOURCES)}")
    return source == "trace" or (source == "auto" and has_trace(file_name))


_length_profile = cache(load_profile)


@cache
def _whole_trace(path: Path) -> tuple[TraceRequest, ...]:
    return tuple(load_trace(path))


@cache
def _rows_of_lengths(path: Path) -> tuple[TraceRequest, ...]:
    return tuple(load_trace(path, timed=False))
