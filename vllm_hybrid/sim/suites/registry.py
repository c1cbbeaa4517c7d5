"""The workloads by name, and the one function that makes them.

An unknown name or parameter, or a value out of range, is a `WorkloadError`: one line that says what is allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites import apt, sarathi, tenants, traces, vtc, vtc_real
from vllm_hybrid.sim.suites.sources import has_trace


class WorkloadError(ValueError):
    """A workload that cannot be made: one line that says why."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A named workload; `clients` is the section of that name in the configuration it is meant for."""

    name: str
    description: str
    build: Callable[..., list[SimRequest]]
    clients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs: str = ""  # a trace file without a twin

    @property
    def is_available(self) -> bool:
        return not self.needs or has_trace(self.needs)

    @property
    def parameters(self) -> dict[str, Any]:
        """Name -> default."""
        signature = inspect.signature(self.build)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


_WEIGHTED = {vtc.client_name(i): {"weight": weight} for i, weight in enumerate(vtc.OVERLOAD_WEIGHTS)}

_ALL = (
    Suite("overload", "VTC: two clients that both ask for more than their share, 1.5 and 3 requests/s", vtc.overload),
    Suite("proportional", "VTC: three clients, two of them below their share", vtc.proportional),
    Suite("on_off_less", "VTC: a light on/off client beside an overloading one", vtc.on_off_less),
    Suite("on_off_overload", "VTC: an on/off client that overloads, beside a steady one", vtc.on_off_overload),
    Suite("poisson_short_long", "VTC: many short requests against few long ones", vtc.poisson_short_long),
    Suite("poisson_short_long_2", "VTC: long prompts against long outputs", vtc.poisson_short_long_2),
    Suite("increase", "VTC: a steady client beside one whose rate grows", vtc.increase),
    Suite("dist_shift", "VTC: three phases of five minutes: on/off, equal, proportional", vtc.dist_shift),
    Suite("poisson_on_off_overload", "VTC: Poisson, mixed lengths, one client on/off", vtc.poisson_on_off_overload),
    Suite("overload-multi", "VTC: eight clients that all overload", vtc.overload_multi),
    Suite("overload-weighted", "VTC: four clients with weights 1:2:3:4", vtc.overload_weighted, _WEIGHTED),
    Suite("real", "VTC: 27 clients that come and go, 1,500 requests (drawn from the trace's figures)", vtc_real.real),
    Suite("ablation", "VTC: two clients on the pools of 35,000 and 65,000 tokens", vtc.ablation),
    Suite("sarathi-chat", "Sarathi: chat lengths, Poisson arrivals", sarathi.chat),
    Suite("sarathi-arxiv", "Sarathi: arXiv 16k lengths, Poisson arrivals", sarathi.arxiv),
    Suite("hygen", "HyGen: Azure conversation online, endless arXiv summarization offline", traces.hygen),
    Suite("apt", "Apt-Serve: conversation lengths, gamma arrivals", apt.apt),
    Suite("azure_conv", "the Azure conversation trace of 2023 or its twin", traces.azure_conv),
    Suite("servegen", "clients of a cloud service (ServeGen) or their twins", traces.servegen),
    Suite("mooncake", "Mooncake conversations with shared prefixes", traces.mooncake, needs=traces.MOONCAKE_FILE),
    Suite("tenants-flood", "neighbours beside a client that floods", tenants.flood),
    Suite("tenants-huge", "neighbours beside a client with huge prompts", tenants.huge_prompts),
    Suite("tenants-tiny", "neighbours beside a client with very many tiny requests", tenants.tiny_requests),
    Suite("tenants-on-off", "neighbours beside a client that floods every other half minute", tenants.on_off_flood),
)
_MAY_BE_ZERO = {"start_s", "neighbours"}

WORKLOADS: Mapping[str, Suite] = {suite.name: suite for suite in _ALL}


def workload_names() -> list[str]:
    return list(WORKLOADS)


def make_workload(name: str, seed: int, **parameters: Any) -> list[SimRequest]:
    """The requests of workload `name`, sorted by arrival; the same list for the same arguments."""
    if name not in WORKLOADS:
        raise WorkloadError(f"workload {name!r}: must be one of {', '.join(workload_names())}")
    suite = WORKLOADS[name]
    for parameter, value in parameters.items():
        _check(suite, parameter, value)
    try:
        return suite.build(seed, **parameters)
    except ValueError as error:
        if type(error) is not ValueError:  # a trace that is missing or broken says so itself
            raise
        raise WorkloadError(f"workload {name!r}: {error}") from None


def _check(suite: Suite, parameter: str, value: Any) -> None:
    allowed = suite.parameters
    if parameter not in allowed:
        raise WorkloadError(f"workload {suite.name!r}: {parameter!r}: must be one of {', '.join(allowed)}")
    default = allowed[parameter]
    if isinstance(default, bool | str) or default is None:
        return
    kind, least = (int, 1) if isinstance(default, int) else (int | float, None)
    if parameter in _MAY_BE_ZERO:
        least = 0
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or (value <= 0 if least is None else value < least):
        bound = "a number greater than 0" if least is None else f"a number of at least {least}"
        raise WorkloadError(f"workload {suite.name!r}: {parameter} = {value!r}: must be {bound}")
