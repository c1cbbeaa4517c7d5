"""The router of the fairness measurement: B and C are sent to one replica each, A's streams half and half."""

from __future__ import annotations

from vllm_hybrid.ray.choice import Routed
from vllm_hybrid.ray.router import HybridRouter

PINS = {"B": 0, "C": -1}


class PinnedRouter(HybridRouter):
    """Ours, with the choice taken away."""

    def ranked(self, request: Routed, loads: dict[str, dict[str, float]]) -> list[str]:
        names = sorted(loads)
        stream = int(request.prefix.strip("[ ").partition(",")[0])  # a prompt begins with its stream
        return [names[PINS.get(request.client, stream) % len(names)]]
