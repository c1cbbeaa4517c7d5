"""The router of the fairness measurement: B and C are sent to one replica each, A to both in turn."""

from __future__ import annotations

import itertools
from typing import Any

from vllm_hybrid.ray.choice import Routed
from vllm_hybrid.ray.router import HybridRouter

PINS = {"B": 0, "C": -1}


class PinnedRouter(HybridRouter):
    """Ours, with the choice taken away."""

    def initialize_state(self, **settings: Any) -> None:
        super().initialize_state(**settings)
        self._turn = itertools.count()

    def ranked(self, request: Routed, loads: dict[str, dict[str, float]]) -> list[str]:
        names = sorted(loads)
        return [names[PINS.get(request.client, next(self._turn)) % len(names)]]
