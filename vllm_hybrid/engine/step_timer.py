"""Seconds each step really took, in sync and async mode.

A step runs from the moment it was scheduled, or from the return of the step before it if that came later, until its
output is handed in. (Under async scheduling `output - scheduled` would count two steps.) Outputs that this scheduler
did not schedule are passed over.
"""

from __future__ import annotations

from collections import deque

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork


class StepTimer:
    """Pairs scheduled steps with their outputs, and teaches the predictor."""

    __slots__ = ("_under_way", "last_output_s", "predictor")

    def __init__(self, predictor: StepTimePredictor) -> None:
        self.predictor = predictor
        self.last_output_s = 0.0
        self._under_way: deque[tuple[object, float, StepWork, int]] = deque()

    def scheduled(self, step: object, now_s: float, work: StepWork, tokens: int) -> None:
        """A step was handed out."""
        self._under_way.append((step, now_s, work, tokens))

    def returned(self, step: object, now_s: float) -> None:
        """The output of a step came back."""
        while any(entry[0] is step for entry in self._under_way):  # those before it will never return
            under_way, scheduled_s, work, tokens = self._under_way.popleft()
            if under_way is step:
                self._learn(scheduled_s, work, tokens, now_s)

    def _learn(self, scheduled_s: float, work: StepWork, tokens: int, now_s: float) -> None:
        if tokens:
            self.predictor.observe(work, now_s - max(scheduled_s, self.last_output_s))
            self.last_output_s = now_s

    def pending_s(self, now_s: float) -> float:
        """Seconds that the steps under way are predicted to take still."""
        if not self._under_way:
            return 0.0
        begun_s = max(self._under_way[0][1], self.last_output_s)
        end_s = begun_s + sum(self.predictor.seconds(work) for _, _, work, tokens in self._under_way if tokens)
        return max(0.0, end_s - now_s)
