"""Where the load's arrivals and lengths come from, and how the output names it.

In this order: the trace the user gives; the Azure conversation trace where it lies beside the repository (it may
not be part of it); else its statistical twin, drawn from figures that ship with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_hybrid.workload import LengthProfile, TraceProfile, TraceRequest, load_profile, load_trace

DATA_DIR = Path(__file__).resolve().parents[3] / "shared" / "data"
_ONLINE, _OFFLINE = "azure_conv_2023", "arxiv_summarization"
_TWIN_REQUESTS = 2000


@dataclass(frozen=True, slots=True)
class Source:
    """Requests as they were traced or drawn, before they are fitted to this machine."""

    online: Sequence[TraceRequest]
    offline: Sequence[TraceRequest]
    description: str


def find_source(trace: Path | None, seed: int, data_dir: Path = DATA_DIR) -> Source:
    online, online_from = _online(trace, seed, data_dir)
    offline, offline_from = _offline(seed, data_dir)
    return Source(online, offline, f"online: {online_from}; offline: {offline_from}")


def _online(trace: Path | None, seed: int, data_dir: Path) -> tuple[list[TraceRequest], str]:
    if trace is not None:
        return load_trace(trace), f"trace {trace.name}"
    beside = data_dir / f"{_ONLINE}.csv.gz"
    if beside.exists():
        return load_trace(beside), f"trace {_ONLINE} (Azure, CC-BY 4.0)"
    profile = load_profile(_ONLINE)
    assert isinstance(profile, TraceProfile)
    return profile.sample(seed, profile.duration_s), f"statistical twin of {_ONLINE} (Azure, CC-BY 4.0)"


def _offline(seed: int, data_dir: Path) -> tuple[list[TraceRequest], str]:
    beside = data_dir / f"{_OFFLINE}.csv.gz"
    if beside.exists():
        return load_trace(beside, timed=False), f"lengths of {_OFFLINE} (vidur, MIT)"
    profile = load_profile(_OFFLINE)
    assert isinstance(profile, LengthProfile)
    return profile.sample(seed, _TWIN_REQUESTS), f"statistical twin of {_OFFLINE} (vidur, MIT)"
