"""What every policy is to the adapter: a planner of steps.

The hybrid policy and the published ones beside it (`presets.py`) answer the same two questions, so that they can be
compared under one adapter, and so that each of them runs on a real server.
"""

from __future__ import annotations

from typing import Protocol

from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView


class Planner(Protocol):
    """Decides steps."""

    always: bool
    """Whether a step must be planned even where one client, and no target, leave vLLM's own step in place."""

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        ...

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """Whether a plan under which everybody decodes is still right `steps` steps later, work being the next step's.

        The caller makes sure that nobody came, left, or could be admitted.
        """
        ...
