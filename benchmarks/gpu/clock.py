"""Times of device work: the median of at least seven event timings, inside a CUDA graph unless asked otherwise.

A graph removes the gaps between launches, as vLLM's own graphs do; timed once with and once without, the difference is
what launching costs. On a CPU (rehearsals) the host's clock stands in and the figures mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

LEAST_SAMPLES, MOST_SAMPLES, SAMPLE_MS = 7, 60, 12.0


@dataclass(slots=True)
class Timing:
    """Milliseconds of one repetition."""

    ms: float
    ms_min: float
    iqr: float
    n: int

    @classmethod
    def of(cls, samples_ms: list[float]) -> Timing:
        ordered = sorted(samples_ms)
        quarter = len(ordered) // 4
        iqr = ordered[-1 - quarter] - ordered[quarter]
        return cls(*(round(ms, 6) for ms in (statistics.median(ordered), ordered[0], iqr)), len(ordered))


class Clock:
    def __init__(self, device: torch.device, graphs: bool = True) -> None:
        self.device = device
        self.graphs = graphs and device.type == "cuda"

    def measure(self, work: Callable[[], object], repetitions: int = 1) -> Timing:
        """The time of one of the `repetitions` that `work` does."""
        if self.device.type != "cuda":
            samples = [self._host_ms(work) for _ in range(2)]
        else:
            samples = self._device_ms(self._prepared(work))
        return Timing.of([ms / repetitions for ms in samples])

    @staticmethod
    def _host_ms(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return max((time.perf_counter() - begin) * 1e3, 1e-4)

    def _prepared(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` compiled and warm, as a graph's replay if graphs are on."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if not self.graphs:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    @staticmethod
    def _device_ms(work: Callable[[], object]) -> list[float]:
        def one() -> tuple[torch.cuda.Event, torch.cuda.Event]:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            work()
            events[1].record()
            return events

        work()
        first = one()
        torch.cuda.synchronize()
        wanted = int(SAMPLE_MS / max(first[0].elapsed_time(first[1]), 1e-3))
        timed = [one() for _ in range(min(MOST_SAMPLES, max(LEAST_SAMPLES, wanted)))]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in timed]
