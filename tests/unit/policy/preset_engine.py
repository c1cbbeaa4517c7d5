"""The toy engine under a published policy, with the identities folded as its preset asks."""

from collections.abc import Callable
from typing import Any

from tests.unit.policy.toy_engine import Machine, ToyEngine
from vllm_hybrid.config import load_config
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.presets import PRESETS
from vllm_hybrid.policy.request import RequestView


class PresetEngine(ToyEngine):
    """settings: as an operator writes them. check: told of every plan before it is carried out."""

    def __init__(
        self,
        machine: Machine,
        settings: dict[str, Any],
        check: Callable[[StepView, StepPlan], None] = lambda view, plan: None,
    ) -> None:
        config = load_config(settings)
        self.preset = PRESETS[config.preset]
        super().__init__(machine, self.preset.counters(config, StepTimePredictor()))
        self.predictor = self.preset.predictor(config)
        self.planner = self.preset.make_planner(config, self.counters, self.predictor)
        self._check = check
        self._plan, self.planner.plan = self.planner.plan, self._checked

    def _checked(self, view: StepView) -> StepPlan:
        plan = self._plan(view)
        self._check(view, plan)
        return plan

    def add(self, view: RequestView, output_tokens: int) -> None:
        view.key = self.preset.key(*view.key)
        super().add(view, output_tokens)
