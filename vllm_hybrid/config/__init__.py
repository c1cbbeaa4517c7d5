"""The settings of the hybrid scheduler: one schema for the command line, YAML, JSON and Python.

Every setting has a default that leaves vLLM's own behaviour alone, a unit in its name, and a range that is
checked once, here.  The reference in ``docs/configuration.md`` is generated from this schema.  `load_config`
turns whatever an operator may hand in (a mapping, inline JSON, a JSON or YAML file) into a `HybridConfig`, or
raises a `ConfigError` whose single line names the key, the value and what is allowed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, ValidationError, model_validator

from vllm_hybrid.config.clients import ClientConfig, GroupConfig, LimitsConfig
from vllm_hybrid.config.forms import CacheMode as CacheMode
from vllm_hybrid.config.identity import IdentityConfig
from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.config.names import DEFAULT_CLIENT as DEFAULT_CLIENT
from vllm_hybrid.config.names import DEFAULT_LANE as DEFAULT_LANE
from vllm_hybrid.config.names import LANES as LANES
from vllm_hybrid.config.names import MAX_CLIENT_ID_CHARS as MAX_CLIENT_ID_CHARS
from vllm_hybrid.config.names import ClientId, shown
from vllm_hybrid.config.names import IdentityError as IdentityError
from vllm_hybrid.config.names import request_identity as request_identity
from vllm_hybrid.config.names import validate_client_id as validate_client_id
from vllm_hybrid.config.overload import OverloadConfig
from vllm_hybrid.config.presets import NEED_TARGETS, PresetName, PresetOptions, without_effect
from vllm_hybrid.config.section import Fraction, Positive, Section, changed, no_bool
from vllm_hybrid.config.status import StatusConfig


class ConfigError(ValueError):
    """A mistake in the hybrid configuration, said in one line."""


class LaneSlo(Section):
    ttft_s: Positive | None = None
    """Seconds from a request's arrival in which its first token is due. None: no target."""

    tbt_s: Positive | None = None
    """Seconds between two tokens of a request. None: no target."""

    gap: Literal["deadline", "strict"] = "deadline"
    """What tbt_s binds. deadline: token k (the first is 0) is due at arrival + ttft_s + k * tbt_s, or
    k * tbt_s after the first token where ttft_s is not set: an early token leaves slack to the next ones.
    strict: every single gap, counted from the last token. Needs tbt_s."""

    slowdown: Positive | None = None
    """How much longer offline work may make the mean time between two online tokens, relative to what the engine
    predicts for the same online requests alone: 0.1 is 10 %. Single gaps may be long: goes with ttft_s and tbt_s. None:
    no limit of this kind."""

    @model_validator(mode="after")
    def _strict_gap_needs_tbt(self) -> LaneSlo:
        if self.gap == "strict" and self.tbt_s is None:
            raise ValueError("gap = 'strict': has no effect without tbt_s: set tbt_s, or leave gap out")
        return self


class SloConfig(Section):
    online: LaneSlo = LaneSlo()

    idle_step_s: Positive | None = None
    """Longest step, in seconds, that offline work may fill up: the next online arrival waits for that step. None: a
    tenth of slo.online.ttft_s while no online request is in the system, else what the deadlines of those that are there
    leave. Needs slo.online.ttft_s or slo.online.tbt_s."""

    @property
    def has_online_target(self) -> bool:
        return any(t is not None for t in (self.online.ttft_s, self.online.tbt_s, self.online.slowdown))

    @property
    def idle_step_limit_s(self) -> float:
        """The idle step's limit in force; infinite when no online target asks for one."""
        if self.idle_step_s is not None:
            return self.idle_step_s
        return math.inf if self.online.ttft_s is None else self.online.ttft_s / 10

    @model_validator(mode="after")
    def _idle_step_needs_a_target(self) -> SloConfig:
        if self.idle_step_s is not None and not self.has_online_target:
            allowed = "has no effect without online.ttft_s or online.tbt_s: set one of them"
            raise ValueError(f"idle_step_s = {self.idle_step_s}: {allowed}")
        return self


class OfflineLane(Section):
    preempt_interval_s: Positive = 5.0
    """An offline request loses its memory to others at most once in this many seconds, and comes back only where it
    can keep it for as long again; unless nobody at all could run otherwise."""

    min_share: Fraction = 0.0
    """Part of all computed tokens that offline work gets while it is there, whatever online work could use. It costs
    online work that much capacity, and its targets where it is overloaded. 0: offline work gets what is left."""

    order: Literal["prefix", "arrival"] = "prefix"
    """Of a client's offline requests. prefix: those that begin alike together, while the prefix cache holds what they
    share; those that share nothing in order of arrival; none is passed for ever. Needs vLLM's prefix cache."""


class LanesConfig(Section):
    offline: OfflineLane = OfflineLane()


class FairnessConfig(Section):
    limits: LimitsConfig = LimitsConfig()
    """Of every client that has none of its own (clients.NAME.limits)."""

    cost: Literal["tokens", "profiled", "seconds"] = "tokens"
    """What service is. tokens: input_weight and output_weight. profiled: `profiled` below, which prices long contexts.
    seconds: what the tokens add to the predicted time of their step (weighted tokens until step times are known)."""

    profiled: tuple[Positive, Positive, Positive, Positive, Positive] = (1.146, 0.21002, 0.10075, 0.0039868, 0.0032473)
    """a to e of the cost a + b n_p + c n_q + d n_p n_q + e n_q^2 of a request with n_p prompt and n_q output tokens.
    The default is that of the VTC artifact, in milliseconds on its GPU. Needs cost = profiled."""

    input_weight: Positive = 1.0
    """Service charged to a client per prompt token that was computed (w_p of the VTC paper)."""

    output_weight: Positive = 2.0
    """Service charged to a client per generated token (w_q of the VTC paper)."""

    quantum: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(no_bool)] = 0.0
    """Service by which a client may be ahead of the least served one and still be admitted first, for a request that
    the prefix cache holds more of: locality for fairness. 0: the fair order."""

    charge_cached: Fraction = 0.0
    """Part of its price that a prompt token costs which the prefix cache holds. 0: shared prefixes are free to whoever
    comes later. 1: nobody can ride on another's prefixes."""

    bill_recompute: StrictBool = False
    """Charge prompt tokens again that a preemption makes be computed again. false: the victim does not pay twice."""

    prediction: Literal["none", "mean", "median", "max_tokens"] = "none"
    """What counts, when clients are compared, for output that admitted requests have not generated yet. none: nothing.
    mean: the client's smoothed mean. median: that of its last 64 answers longer than what is generated already.
    max_tokens: all that a request may generate, for callers that use it up."""

    @model_validator(mode="after")
    def _profiled_needs_its_cost(self) -> FairnessConfig:
        if "profiled" in changed(self) and self.cost != "profiled":
            raise ValueError(f"profiled = {list(self.profiled)}: has no effect with cost = {self.cost!r}")
        return self


class MemoryConfig(Section):
    gate: Literal["auto", "none", "max_tokens", "expected"] = "auto"
    """What an admission must leave of the KV pool. none: room for the prompt, as in vLLM; what runs may later have to
    be preempted. expected: what runs is also expected to need, at every moment, by the lengths of each client's earlier
    answers, and a margin; so little is preempted. max_tokens: room for everything that runs up to its max_tokens, so
    that nothing is ever preempted (the engine of the VTC paper); give requests a tight max_tokens then. auto: expected
    with the preset `hybrid`, else none."""


class HybridConfig(Section):
    preset: PresetName = "hybrid"
    """The scheduling policy by name: `hybrid`, or a published one to compare with (docs/presets.md)."""

    presets: PresetOptions = PresetOptions()

    mode: Literal["active", "shadow"] = "active"
    """active: the policy decides. shadow: it decides, stock vLLM's steps are taken all the same, and what would have
    been different is counted (vllm_hybrid_shadow_steps_total). For the preset `hybrid` without the gate max_tokens."""

    strict: StrictBool = False
    """Raise when the policy fails, instead of serving that step as stock vLLM would. For tests."""

    profile: str | None = None
    """File that `vllm-hybrid profile` wrote: step times are known from the first step on. Of another model, dtype,
    machine or vLLM: refused. A relative path starts at the file it stands in. None: learned while the engine runs."""

    cache: CacheMode = "off"
    """Form of the cache beside KV, chosen per request when memory is short; in half the memory. off: none. auto:
    hidden states where that is exact (OPT, GPT-2, Bloom), else none. hidden: the same, but refuse to start where it is
    not exact. fp8: K and V in 8 bits, for any model, at a loss of accuracy."""

    slo: SloConfig = SloConfig()
    lanes: LanesConfig = LanesConfig()
    fairness: FairnessConfig = FairnessConfig()
    memory: MemoryConfig = MemoryConfig()

    identity: IdentityConfig = IdentityConfig()
    overload: OverloadConfig = OverloadConfig()
    metrics: MetricsConfig = MetricsConfig()
    status: StatusConfig = StatusConfig()

    clients: dict[ClientId, ClientConfig] = {}
    """Settings by client id. A client that is not named here has the defaults."""

    groups: dict[ClientId, GroupConfig] = {}
    """Groups of clients by name: the service is shared between groups, then inside each (clients.NAME.group)."""

    @model_validator(mode="after")
    def _groups_are_groups(self) -> HybridConfig:
        for name, client in self.clients.items():
            if client.group is not None and client.group not in self.groups:
                known = ", ".join(self.groups) or "none yet"
                raise ValueError(f"clients.{name}.group = {client.group!r}: must be one of `groups`: {known}")
        return self

    @property
    def memory_gate(self) -> Literal["none", "max_tokens", "expected"]:
        """The gate in force."""
        if self.memory.gate == "auto":
            return "expected" if self.preset == "hybrid" else "none"
        return self.memory.gate

    @property
    def paces(self) -> bool:
        """Whether decodes with time to spare wait for blocks."""
        return self.preset == "hybrid" and self.slo.online.tbt_s is not None

    @property
    def follows_outputs(self) -> bool:
        """Whether the policy asks how far each output has come."""
        return self.slo.has_online_target or self.memory_gate == "expected" or self.fairness.prediction != "none"

    @model_validator(mode="after")
    def _the_policy_has_its_targets(self) -> HybridConfig:
        online = self.slo.online
        if self.preset in NEED_TARGETS and (online.ttft_s is None or online.tbt_s is None):
            raise ValueError(
                f"slo.online = {online.model_dump(exclude_defaults=True)}: must have ttft_s and tbt_s "
                f"with preset = {self.preset!r}"
            )
        return self

    @model_validator(mode="after")
    def _quanta_are_tokens(self) -> HybridConfig:
        if self.preset == "drr" and self.fairness.cost != "tokens":
            raise ValueError(f"fairness.cost = {self.fairness.cost!r}: must be 'tokens' with preset = 'drr'")
        if self.preset == "drr" and self.fairness.quantum:
            raise ValueError(f"fairness.quantum = {self.fairness.quantum}: must be 0 with preset = 'drr'")
        return self

    @model_validator(mode="after")
    def _who_is_hopeless_is_said(self) -> HybridConfig:
        if self.overload.on_hopeless == "reject" and self.slo.online.ttft_s is None:
            raise ValueError("overload.on_hopeless = 'reject': has no effect without slo.online.ttft_s: set it")
        return self

    @model_validator(mode="after")
    def _shadow_is_for_hybrid(self) -> HybridConfig:
        if self.mode == "shadow" and (self.preset != "hybrid" or self.memory_gate == "max_tokens"):
            raise ValueError("mode = 'shadow': must go with preset = 'hybrid' and without memory.gate = 'max_tokens'")
        return self

    @model_validator(mode="after")
    def _the_policy_reads_what_is_given(self) -> HybridConfig:
        key = without_effect(self.preset, changed(self), changed(self.presets))
        if key is not None:
            raise ValueError(f"{key}: has no effect with preset = {self.preset!r}: leave it out, or name its preset")
        return self


def load_config(source: Mapping[str, Any] | HybridConfig | str | Path | None) -> HybridConfig:
    """Settings from a mapping, inline JSON, or the path of a .json, .yaml or .yml file."""
    if isinstance(source, HybridConfig):
        return source
    try:
        return HybridConfig.model_validate(read_settings(source))
    except ValidationError as error:
        raise ConfigError(f"hybrid config: {mistakes(error)}") from None


def read_settings(source: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """The settings as they are written, not yet checked."""
    data = _read(source) if isinstance(source, str | Path) else {} if source is None else source
    if not isinstance(data, Mapping):
        raise ConfigError(f"hybrid config = {shown(data)}: must be a mapping of settings")
    data = dict(data)
    inline = isinstance(source, Mapping) or str(source).strip().startswith("{")
    if source is not None and not inline and isinstance(data.get("profile"), str):
        data["profile"] = str(Path(str(source).strip()).parent / data["profile"])
    return data


def _read(source: str | Path) -> Any:
    text = str(source).strip()
    if isinstance(source, str) and text.startswith("{"):
        return _parse(text, "inline JSON", json.loads)
    path = Path(text)
    parsers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
    }
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        allowed = "inline JSON ({...}) or the path of a .json, .yaml or .yml file"
        raise ConfigError(f"hybrid config = {shown(text)}: must be {allowed}")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"hybrid config file {text!r}: {reason}") from None
    data = _parse(content, f"file {text!r}", parse)
    return {} if data is None else data  # an empty YAML file asks for the defaults


def _parse(text: str, where: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        at, problem = f"line {error.lineno} column {error.colno}", error.msg
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "malformed"
        at = f"line {mark.line + 1} column {mark.column + 1}" if mark else "an unknown position"
    raise ConfigError(f"hybrid config {where}: {problem} at {at}")


def mistakes(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    return "; ".join(map(_one_line, error.errors()))


_BY_NAME: dict[str, type[BaseModel]] = {"clients": ClientConfig, "groups": GroupConfig}  # mappings from names

_ALLOWED = {
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping of client ids to settings",
    "bool_type": "must be true or false",
    "float_parsing": "must be a number",
}


def _one_line(error: Any) -> str:
    """A pydantic error as `key = value: what is allowed`."""
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(loc)
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] == "value_error" and " = " in message:  # the validator has named key and value itself
        if "[key]" in error["loc"]:  # an id that is none; its place is the mapping
            return f"{loc[0]}: {message}"
        return ".".join([*loc, message]).replace(".client id = ", " = ")
    return f"{'.'.join(loc)} = {shown(error['input'])}: {_ALLOWED.get(error['type'], message)}"


def _unknown_key(loc: list[str]) -> str:
    allowed = sorted(_section_at(loc[:-1]).model_fields)
    close = get_close_matches(loc[-1], allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key {shown('.'.join(loc))}: {hint}allowed here: {', '.join(allowed)}"


def _section_at(loc: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = HybridConfig
    for key in loc:
        if key in _BY_NAME:
            section = _BY_NAME[key]
            continue
        if section in _BY_NAME.values() and key not in section.model_fields:
            continue  # a name
        section = section.model_fields[key].annotation  # type: ignore[assignment]
    return section
