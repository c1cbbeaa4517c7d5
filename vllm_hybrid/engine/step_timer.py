"""Seconds each step really took, in sync and async mode.

A step runs from the moment it was scheduled, or from the return of the step before it if that came later, until its
output is handed in. (Under async scheduling `output - scheduled` would count two steps.) Outputs that this scheduler
did not schedule are passed over, and so are steps that compute nothing. Where steps overlap the predictor is told:
then only the sum of several times can be trusted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork


@dataclass(slots=True)
class _UnderWay:
    step: object
    scheduled_s: float
    work: StepWork
    tokens: int
    alone: bool  # when it was scheduled


class StepTimer:
    """Pairs scheduled steps with their outputs, and teaches the predictor."""

    __slots__ = ("_under_way", "last_output_s", "predictor")

    def __init__(self, predictor: StepTimePredictor) -> None:
        self.predictor = predictor
        self.last_output_s = 0.0
        self._under_way: deque[_UnderWay] = deque()

    def scheduled(self, step: object, now_s: float, work: StepWork, tokens: int) -> None:
        """A step was handed out."""
        self._under_way.append(_UnderWay(step, now_s, work, tokens, not self._under_way))

    def returned(self, step: object, now_s: float) -> None:
        """The output of a step came back."""
        while any(entry.step is step for entry in self._under_way):  # those before it will never return
            entry = self._under_way.popleft()
            if entry.step is step:
                self._learn(entry, now_s)

    def _learn(self, entry: _UnderWay, now_s: float) -> None:
        if entry.tokens:
            seconds = now_s - max(entry.scheduled_s, self.last_output_s)
            self.predictor.observe(entry.work, seconds, entry.alone and not self._under_way)
            self.last_output_s = now_s

    def pending_s(self, now_s: float) -> float:
        """Seconds that the steps under way are predicted to take still."""
        if not self._under_way:
            return 0.0
        begun_s = max(self._under_way[0].scheduled_s, self.last_output_s)
        end_s = begun_s + sum(self.predictor.seconds(e.work) for e in self._under_way if e.tokens)
        return max(0.0, end_s - now_s)
