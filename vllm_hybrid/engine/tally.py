"""What the scheduler did since it was last asked: the source of the metrics."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Any

from vllm_hybrid.engine.ledger import Served
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.request import Lane


class StepMode(StrEnum):
    """How a step was scheduled."""

    STOCK = "stock"  # vLLM's own scheduler, untouched: nothing to decide
    PLAN = "plan"  # a plan made for this step
    REUSE = "reuse"  # the plan of an earlier step, still right
    SHADOW = "shadow"  # vLLM's own scheduler, and a plan to compare with
    FALLBACK = "fallback"  # the policy failed: vLLM's own scheduler served the step


class Tally:
    """Counts events; `drain` hands out what was counted since the last drain."""

    def __init__(self) -> None:
        self.steps: Counter[StepMode] = Counter()
        self.contended: Counter[StepMode] = Counter()  # steps with two or more live clients
        self.preemptions: Counter[Lane] = Counter()
        self.preempted_by_plan: Counter[Lane] = Counter()  # of them; the others are vLLM's, for want of a block
        self.recomputed_tokens: Counter[Lane] = Counter()  # computed, lost by a preemption
        self.pauses: Counter[Lane] = Counter()
        self.parkings: Counter[Lane] = Counter()  # of them: those that gave up their slot too
        self.shadow: Counter[str] = Counter()  # differences between plan and step in shadow mode
        self.budget_tokens = [0, 0]  # of planned steps: granted, used
        self.policy_errors = 0
        self.bad_identities = 0

    def lost(self, lane: Lane, by_plan: bool, tokens: int) -> None:
        """A request lost its memory, and `tokens` that were computed."""
        self.preemptions[lane] += 1
        self.preempted_by_plan[lane] += by_plan
        self.recomputed_tokens[lane] += tokens

    def drain(
        self, served: Served, requests: dict[str, dict[str, int]], predictor: StepTimePredictor
    ) -> dict[str, Any]:
        """Everything counted, as plain numbers, lists and dicts (it crosses a process boundary)."""
        done, fresh = self, Tally()
        result = {
            "requests": requests,
            "tokens": {
                lane.label: {"prompt": served.prompt_tokens[lane], "output": served.output_tokens[lane]}
                for lane in Lane
            },
            "preemptions": {
                lane.label: {
                    "plan": done.preempted_by_plan[lane],
                    "no_block": done.preemptions[lane] - done.preempted_by_plan[lane],
                }
                for lane in Lane
            },
            "recomputed_tokens": {lane.label: done.recomputed_tokens[lane] for lane in Lane},
            "pauses": {
                lane.label: {"step": done.pauses[lane] - done.parkings[lane], "slot": done.parkings[lane]}
                for lane in Lane
            },
            "budget_tokens": {"granted": done.budget_tokens[0], "used": done.budget_tokens[1]},
            "steps": {mode.value: done.steps[mode] for mode in StepMode},
            "contended_steps": {mode.value: done.contended[mode] for mode in StepMode},
            "shadow": dict(done.shadow),
            "policy_errors": done.policy_errors,
            "bad_identity": done.bad_identities,
            "predictor": {"error_ratio": predictor.error_ratio, "samples": predictor.windows},
        }
        self.__dict__.update(fresh.__dict__)
        return result
