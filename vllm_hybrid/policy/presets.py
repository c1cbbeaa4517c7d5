"""The named policies, in one place: what each one tells apart, and who plans for it.

`preset` in the settings selects one on a server and in the simulator alike. A published policy that knows no lanes
sees every request as online; one that knows no clients sees one client: the identity a request carries is folded
accordingly before any policy sees it. Names, options and the settings each one reads: `config/presets.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_hybrid.config import DEFAULT_CLIENT, HybridConfig
from vllm_hybrid.policy.compose import HybridPlanner
from vllm_hybrid.policy.cost import ProfiledPrices, SecondPrices, TokenPrices
from vllm_hybrid.policy.fairness import VirtualCounters, group_name
from vllm_hybrid.policy.gate import ExpectingPlanner, GatedPlanner
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.lengths import PREDICTIONS
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.published.apt import AptPlanner
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.drr import Deficits, DrrPlanner
from vllm_hybrid.policy.published.hygen import HygenPlanner
from vllm_hybrid.policy.published.hygen_predictor import HygenPredictor
from vllm_hybrid.policy.published.orca import OrcaPlanner
from vllm_hybrid.policy.published.prefill_first import PrefillFirstPlanner
from vllm_hybrid.policy.published.qoserve import QoservePlanner
from vllm_hybrid.policy.published.rpm import RequestRate, RpmPlanner
from vllm_hybrid.policy.published.sarathi import FcfsPlanner, SarathiPlanner
from vllm_hybrid.policy.published.sarathi_pp import HygenStarPlanner, SarathiPlusPlanner
from vllm_hybrid.policy.published.vtc import UnliftedCounters, VtcPlanner
from vllm_hybrid.policy.request import ClientKey, Lane
from vllm_hybrid.policy.survival import Survival


@dataclass(frozen=True, slots=True)
class Preset:
    """A policy by name. source: where it was published. counter_class: what it counts service with."""

    summary: str
    source: str
    planner: Callable[[HybridConfig, VirtualCounters, StepTimePredictor], Planner]
    counter_class: type[VirtualCounters] = VirtualCounters
    predictor: Callable[[HybridConfig], StepTimePredictor] = lambda config: StepTimePredictor()
    lanes: bool = False
    clients: bool = False
    by_value: bool = False  # waiting online requests of a client stand in the order of their value
    simulator_only: bool = False  # an emulation for comparisons, refused on a server

    def key(self, lane: Lane, client: str) -> ClientKey:
        """The client and lane of a request, as far as this policy tells them apart."""
        return (lane if self.lanes else Lane.ONLINE), (client if self.clients else DEFAULT_CLIENT)

    def counters(self, config: HybridConfig, predictor: StepTimePredictor) -> VirtualCounters:
        """Fresh counters with the prices and weights of the settings. predictor: of what seconds cost."""
        fairness = config.fairness
        lengths = None if fairness.prediction == "none" else PREDICTIONS[fairness.prediction]()
        counters = self.counter_class(fairness.input_weight, fairness.output_weight, *shares(config), lengths)
        counters.bill_recompute = fairness.bill_recompute
        if fairness.cost == "profiled":
            counters.prices = ProfiledPrices(fairness.profiled)
        elif fairness.cost == "seconds":
            counters.prices = SecondPrices(predictor, TokenPrices(fairness.input_weight, fairness.output_weight))
        return counters

    def make_planner(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> Planner:
        """The planner of this policy, behind the memory gate if the settings ask for it."""
        planner = self.planner(config, counters, predictor)
        if config.memory_gate == "none":
            return planner
        if config.memory_gate == "expected":
            return ExpectingPlanner(planner, Survival(), predictor, config.slo.online.tbt_s if config.paces else None)
        return GatedPlanner(planner, planner.step_tokens if isinstance(planner, BatchPlanner) else 0)


def shares(config: HybridConfig) -> tuple[dict[str, float], dict[str, str]]:
    """The weights of clients and groups, and the groups of clients, as `VirtualCounters` take them."""
    weights = {name: client.weight for name, client in config.clients.items()}
    weights |= {group_name(name): group.weight for name, group in config.groups.items()}
    return weights, {name: group_name(c.group) for name, c in config.clients.items() if c.group is not None}


PRESETS: dict[str, Preset] = {
    "hybrid": Preset(
        "fair between clients, online before offline, within the targets",
        "this project",
        HybridPlanner,
        lanes=True,
        clients=True,
        by_value=True,
    ),
    "fcfs": Preset("in order of arrival, as stock vLLM", "vLLM 0.32", FcfsPlanner),
    "sarathi": Preset(
        "in order of arrival, a fixed number of tokens per step, decodes first",
        "Sarathi-Serve, OSDI'24, arXiv 2403.02310",
        SarathiPlanner,
    ),
    "vtc": Preset(
        "the client that was served least is admitted next",
        "VTC, OSDI'24, arXiv 2401.00588",
        VtcPlanner,
        clients=True,
    ),
    "lcf": Preset(
        "as vtc, but idleness earns credit",
        "ablation of VTC, arXiv 2401.00588",
        VtcPlanner,
        UnliftedCounters,
        clients=True,
    ),
    "drr": Preset(
        "deficit round robin between clients",
        "MDRR of the VTC artifact, arXiv 2401.00588",
        DrrPlanner,
        Deficits,
        clients=True,
    ),
    "rpm": Preset(
        "in order of arrival, so many requests per client and minute",
        "baseline of VTC, arXiv 2401.00588",
        RpmPlanner,
    ),
    "sarathi_pp": Preset(
        "online before offline in a fixed number of tokens per step",
        "Sarathi++, baseline of HyGen, arXiv 2501.14808",
        SarathiPlusPlanner,
        predictor=lambda config: HygenPredictor(None),
        lanes=True,
    ),
    "hygen_star": Preset(
        "as sarathi_pp, with so many offline requests per second",
        "HyGen*, baseline of HyGen, arXiv 2501.14808",
        HygenStarPlanner,
        predictor=lambda config: HygenPredictor(None),
        lanes=True,
    ),
    "hygen": Preset(
        "offline work within a constant budget of seconds per step",
        "HyGen, NeurIPS'25, arXiv 2501.14808",
        HygenPlanner,
        predictor=lambda config: HygenPredictor(config.presets.hygen.coefficients),
        lanes=True,
    ),
    "apt": Preset(
        "who waited longest per block of memory; prompts and decodes in steps of their own",
        "Apt-Serve, SIGMOD'25, arXiv 2504.07494",
        AptPlanner,
    ),
    "qoserve": Preset(
        "by deadline, as many prompt tokens as the slack of the decodes allows",
        "QoServe (Niyama), arXiv 2503.22562",
        QoservePlanner,
        lanes=True,
    ),
    "orca": Preset(
        "whole prompts beside decodes, memory reserved for the longest sequence",
        "Orca, OSDI'22, as compared with by Sarathi-Serve",
        OrcaPlanner,
        simulator_only=True,
    ),
    "prefill_first": Preset(
        "whole prompts before decodes, in steps of their own",
        "vLLM before chunked prefill, as compared with by Sarathi-Serve",
        PrefillFirstPlanner,
        simulator_only=True,
    ),
}


def request_rate(config: HybridConfig) -> RequestRate | None:
    """What refuses requests at their arrival, None if the policy takes all."""
    return RequestRate(config.presets.rpm.limit) if config.preset == "rpm" else None
