"""The named policies as an operator meets them: their names, their options, and which other settings each one reads.

A setting that the selected policy does not read is refused, so that nobody measures a policy with an option that did
nothing. To add a policy: its name in `PresetName`, a section in `PresetOptions` if it has options, a line in `READS`
if it reads more than those, and its entry in `policy/presets.py`.
"""

from __future__ import annotations

from typing import Literal

from vllm_hybrid.config.section import Count, Positive, Section

PresetName = Literal[
    "hybrid",
    "fcfs",
    "sarathi",
    "vtc",
    "lcf",
    "drr",
    "rpm",
    "sarathi_pp",
    "hygen_star",
    "hygen",
    "apt",
    "qoserve",
    "orca",
    "prefill_first",
]

# The sections at the top of the settings that a policy reads beside its own options. `fairness` and `clients` are the
# prices and weights of whoever counts service, `slo` the targets of whoever looks at time.
READS: dict[str, frozenset[str]] = {
    "hybrid": frozenset({"slo", "lanes", "fairness", "clients", "groups", "memory", "profile"}),
    "fcfs": frozenset({"memory"}),
    "sarathi": frozenset({"memory"}),
    "sarathi_pp": frozenset({"memory"}),
    "hygen_star": frozenset({"memory"}),
    "vtc": frozenset({"fairness", "clients", "groups", "memory"}),
    "lcf": frozenset({"fairness", "clients", "groups", "memory"}),
    "drr": frozenset({"fairness", "clients", "memory"}),
    "rpm": frozenset({"memory"}),
    "hygen": frozenset({"memory"}),
    "apt": frozenset({"slo"}),  # preempting is what it does: no gate
    "qoserve": frozenset({"memory", "slo"}),
    "orca": frozenset(),
    "prefill_first": frozenset({"memory"}),
}

NEED_TARGETS = frozenset({"apt", "qoserve"})  # they decide nothing without slo.online.ttft_s and tbt_s
SIMULATOR_ONLY = frozenset({"orca", "prefill_first"})  # emulations for comparisons, refused on a server


class FixedBudget(Section):
    """Options of the policies with a fixed token budget (Sarathi)."""

    token_budget: Count | None = None
    """Most tokens of a step: the largest number whose step meets the target between tokens, found by profiling (the
    paper: 512 for strict targets, 2048 for relaxed ones). None: vLLM's max_num_batched_tokens."""


class HygenStarOptions(FixedBudget):
    """Options of HyGen*."""

    offline_rate: Positive = 1.0
    """Offline requests let in per second: the largest rate with which the online requests meet their targets, found by
    profiling."""


class DrrOptions(Section):
    """Options of deficit round robin."""

    quantum: Positive | None = None
    """Service that a client is granted per round. None: a twentieth of the tokens the KV pool holds."""


class RpmOptions(Section):
    """Options of the limit on requests per minute."""

    limit: Count = 20
    """Requests of one client accepted within 60 seconds; more are refused."""


class HygenOptions(FixedBudget):
    """Options of HyGen."""

    step_budget_s: Positive | None = None
    """Predicted seconds a step may take for offline work to be added: the largest budget with which the online
    requests meet their targets, found by profiling. None: no limit."""

    coefficients: tuple[float, float, float, float, float, float] | None = None
    """The predictor's seconds per unit of: 1, prefill tokens, context tokens of decodes, squared prefill tokens,
    prefills, decodes; from a profile of the device. None: learned while the engine runs."""


class QoserveOptions(Section):
    """Options of QoServe."""

    prompt_token_price_s: Positive = 0.008
    """Seconds by which a prompt token that is left to compute puts a request back in the line (the paper's alpha)."""

    ttlt_s: Positive = 600.0
    """Seconds from the arrival of an offline request in which its last token is due."""

    offline_tbt_s: Positive = 0.4
    """Seconds between two tokens of an offline request."""

    expected_output_tokens: Count = 150
    """Output tokens expected of an offline request: so many gaps are left between its prompt's deadline and ttlt_s."""


class OrcaOptions(Section):
    """Options of Orca."""

    batch_requests: Count = 16
    """Most requests at a time."""

    reserve_tokens: Count = 2048
    """Memory reserved for each request: the longest sequence the engine is set up for."""


class PresetOptions(Section):
    """The options of each policy, by its name."""

    sarathi: FixedBudget = FixedBudget()
    sarathi_pp: FixedBudget = FixedBudget()
    hygen_star: HygenStarOptions = HygenStarOptions()
    drr: DrrOptions = DrrOptions()
    rpm: RpmOptions = RpmOptions()
    hygen: HygenOptions = HygenOptions()
    qoserve: QoserveOptions = QoserveOptions()
    orca: OrcaOptions = OrcaOptions()


def without_effect(preset: str, sections: set[str], options: set[str]) -> str | None:
    """A key that was set and that `preset` does not read, None if there is none.

    sections: the top sections that were changed; options: the presets whose options were.
    """
    idle = [f"presets.{name}" for name in options - {preset}]
    idle += sections & frozenset.union(*READS.values()) - READS[preset]
    return min(idle, default=None)
