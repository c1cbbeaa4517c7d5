"""Workloads: what arrives at a server, when, and how long it is.

A workload is a list of `TraceRequest`s, read from a trace file (`load_trace`) or drawn from the statistical
profile of one (`load_profile`), then fitted to a machine (`window`, `thin`, `rescale_rate`,
`rescale_lengths`).  Standard library only: benchmarks, the simulator and the profiler share it, and none
needs vLLM for it.
"""

from vllm_hybrid.workload.profiles import LengthProfile, TraceProfile, load_profile
from vllm_hybrid.workload.shaping import Scale, duration_s, rescale_lengths, rescale_rate, thin, window
from vllm_hybrid.workload.traces import TraceError, TraceRequest, load_trace

__all__ = [
    "LengthProfile",
    "Scale",
    "TraceError",
    "TraceProfile",
    "TraceRequest",
    "duration_s",
    "load_profile",
    "load_trace",
    "rescale_lengths",
    "rescale_rate",
    "thin",
    "window",
]
