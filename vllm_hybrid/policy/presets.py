"""The named policies, in one place: what each one tells apart, and who plans for it.

`preset` in the settings selects one on a server and in the simulator alike. A published policy that knows no lanes
sees every request as online; one that knows no clients sees one client: the identity a request carries is folded
accordingly before any policy sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_hybrid.config import DEFAULT_CLIENT, HybridConfig
from vllm_hybrid.policy.compose import HybridPlanner
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.request import ClientKey, Lane


def _virtual_counters(config: HybridConfig) -> VirtualCounters:
    weights = {name: client.weight for name, client in config.clients.items()}
    return VirtualCounters(config.fairness.input_weight, config.fairness.output_weight, weights)


@dataclass(frozen=True, slots=True)
class Preset:
    """A policy by name. source: where it was published."""

    summary: str
    source: str
    planner: Callable[[HybridConfig, VirtualCounters, StepTimePredictor], Planner]
    counters: Callable[[HybridConfig], VirtualCounters] = _virtual_counters
    lanes: bool = True
    clients: bool = True
    simulator_only: bool = False  # an emulation for comparisons, refused on a server

    def key(self, lane: Lane, client: str) -> ClientKey:
        """The client and lane of a request, as far as this policy tells them apart."""
        return (lane if self.lanes else Lane.ONLINE), (client if self.clients else DEFAULT_CLIENT)


PRESETS: dict[str, Preset] = {
    "hybrid": Preset("fair between clients, online before offline, within the targets", "this project", HybridPlanner),
}
