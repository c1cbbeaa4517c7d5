"""What the arguments of `vllm-hybrid simulate` mean: devices, workloads, settings and contenders by their names.

Everything that can be known to be wrong is refused here, before the first run starts, in one line with the argument,
its value and what is allowed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

from vllm_hybrid.config import ConfigError, load_config, read_settings
from vllm_hybrid.config.presets import READS
from vllm_hybrid.policy.presets import PRESETS
from vllm_hybrid.sim.device import DeviceError, device_names, load_device
from vllm_hybrid.sim.measure import Slo
from vllm_hybrid.sim.records import Contender, EngineSettings, SimError, SimRequest
from vllm_hybrid.sim.suites import WORKLOADS, MissingDataError, WorkloadError, make_workload, workload_names
from vllm_hybrid.sim.sweep import Job, Load
from vllm_hybrid.workload import TraceError, load_trace

# These names mean vLLM's own class; fcfs does not where the settings put a memory gate before every policy.
STOCK = {"fcfs": "fcfs", "priority": "priority", "stock": "fcfs"}


class UsageError(ValueError):
    """An argument that means nothing."""


MISTAKES = (UsageError, ConfigError, DeviceError, TraceError, SimError, WorkloadError, MissingDataError)


def names() -> dict[str, list[str]]:
    """What there is to choose from."""
    return {"devices": device_names(), "workloads": workload_names(), "presets": _preset_names()}


def jobs(given: argparse.Namespace) -> list[Job]:
    """Every workload under every contender. Raises one of `MISTAKES`."""
    if not given.device:
        raise UsageError("--device: is missing; vllm-hybrid simulate --list names them")
    device = load_device(given.device)
    settings, slo = engine_settings(given.engine), service_level(given.slo)
    until_s = _number("--duration", given.duration) if given.duration else None
    config = hybrid_config(given, slo)
    entrants = contenders(given.preset, config, read_settings(given.hybrid_config))
    clients = load_config({"clients": config.get("clients", {})}).clients
    weights = {name: client.weight for name, client in clients.items()}
    blocks = (settings.pool_tokens or device.kv_tokens) // settings.block_size
    longest = min(blocks * settings.block_size, settings.max_model_len)
    loads = [load(given, seed, longest, until_s) for seed in _seeds(given.seeds)]
    return [Job(each, who, device, settings, slo, until_s, weights=weights) for each in loads for who in entrants]


def hybrid_config(given: argparse.Namespace, slo: Slo) -> dict[str, Any]:
    """The settings of our class: those of --hybrid-config, and what else a server of this load would be told."""
    settings = read_settings(given.hybrid_config)
    suite = WORKLOADS.get(given.workload)
    clients = suite.clients if suite else {}
    promise = {key: value for key, value in asdict(slo).items() if value is not None}
    return {
        **({"clients": dict(clients)} if clients else {}),
        **({"slo": {"online": promise}} if promise else {}),
        **settings,
    }


def contenders(presets: str, config: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Contender]:
    """Who schedules: stock's own class under its own names, else our class with that preset.

    Each preset is told what it reads of `config`; what was `asked` for and none of them reads is refused.
    """
    memory = config.get("memory")
    gated = isinstance(memory, Mapping) and memory.get("gate", "auto") not in ("auto", "none")
    found = []
    for name in _split("--preset", presets):
        if name in STOCK and not (gated and name == "fcfs"):
            found.append(Contender(name, stock=STOCK[name]))
        elif name in PRESETS:
            found.append(Contender(name, hybrid=_told(name, config)))
            load_config(found[-1].hybrid)
        else:
            raise UsageError(f"--preset: {_unknown(name, _preset_names())}")
    unread = _keys(asked) - {"preset"} - {key for contender in found for key in _keys(contender.hybrid)}
    if unread:
        raise UsageError(f"--hybrid-config: {min(unread)} has no effect with --preset {presets}: leave it out")
    return found


def _keys(config: Mapping[str, Any]) -> set[str]:
    """The sections, those of the presets' options each by itself."""
    options = config.get("presets", {})
    names = options if isinstance(options, Mapping) else [options]
    return (config.keys() - {"presets"}) | {f"presets.{name}" for name in names}


def _told(preset: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for one preset: without the sections that only others read, and without their options."""
    for_others = frozenset.union(*READS.values()) - READS[preset] | {"presets"}
    told = {key: value for key, value in config.items() if key not in for_others}
    options = config.get("presets")
    own = {preset: options[preset]} if isinstance(options, Mapping) and preset in options else {}
    return told | {"preset": preset} | ({"presets": own} if own else {})


def engine_settings(text: str) -> EngineSettings:
    """vLLM's settings, from KEY=VALUE,..."""
    kinds = get_type_hints(EngineSettings)
    given: dict[str, Any] = {}
    for key, value in _pairs("--engine", text).items():
        if key not in kinds:
            raise UsageError(f"--engine: {_unknown(key, [f.name for f in fields(EngineSettings)])}")
        given[key] = _of_kind(f"--engine {key}", value, kinds[key])
    return replace(EngineSettings(), **given)


def service_level(text: str) -> Slo:
    """What online requests are promised, from KEY=SECONDS,..."""
    given = {}
    for key, value in _pairs("--slo", text).items():
        if key not in Slo.__dataclass_fields__:
            raise UsageError(f"--slo: {_unknown(key, list(Slo.__dataclass_fields__))}")
        given[key] = _number(f"--slo {key}", value)
    return Slo(**given)


def load(given: argparse.Namespace, seed: int, longest: int, until_s: float | None) -> Load:
    """The requests of one seed: of a workload that ships with the package, or of the user's trace."""
    if given.trace is not None:
        if given.parameters:
            raise UsageError("--parameters: are those of a --workload, and there is none")
        name, requests = given.trace.name.split(".")[0], _of_trace(given, longest)
    elif given.workload is None:
        raise UsageError(
            "--workload or --trace: one of them must be given; vllm-hybrid simulate --list names workloads"
        )
    elif given.workload not in WORKLOADS:
        raise UsageError(f"--workload: {_unknown(given.workload, workload_names())}")
    elif given.columns:
        raise UsageError("--columns: are those of a --trace, and there is none")
    else:
        name, requests = given.workload, make_workload(given.workload, seed, **_parameters(given))
    return Load(name, seed, [r for r in requests if until_s is None or r.arrival_s < until_s])


def _of_trace(given: argparse.Namespace, longest: int) -> list[SimRequest]:
    rows = load_trace(given.trace, columns=_pairs("--columns", given.columns), most_tokens=longest)
    return [
        SimRequest(
            f"r{index:06d}",
            row.arrival_s,
            row.prompt_tokens,
            row.output_tokens,
            client=row.client,
            lane=row.lane,
            hash_ids=row.hash_ids,
            priority=int(row.lane == "offline"),  # for vLLM's own `priority`
        )
        for index, row in enumerate(rows)
    ]


def _parameters(given: argparse.Namespace) -> dict[str, Any]:
    """The workload's parameters, each of the type of its default."""
    defaults = WORKLOADS[given.workload].parameters
    found = {}
    for key, value in _pairs("--parameters", given.parameters).items():
        if key not in defaults:
            raise UsageError(f"--parameters: {_unknown(key, list(defaults))}")
        kind = type(defaults[key])
        found[key] = value if kind is str else _of_kind(f"--parameters {key}", value, kind)
    return found


def _preset_names() -> list[str]:
    return sorted({*STOCK, *PRESETS})


def _unknown(name: str | None, allowed: Sequence[str]) -> str:
    close = get_close_matches(name or "", allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name!r} is unknown; {hint}must be one of {', '.join(allowed)}"


def _split(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} = {text!r}: must be names with a comma between two of them")
    if len(set(parts)) != len(parts):
        raise UsageError(f"{option} = {text!r}: names something twice")
    return parts


def _pairs(option: str, text: str) -> dict[str, str]:
    return dict(_each_pair(option, text)) if text else {}


def _each_pair(option: str, text: str) -> Iterator[tuple[str, str]]:
    for part in _split(option, text):
        key, equals, value = (item.strip() for item in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"{option} = {part!r}: must be KEY=VALUE")
        yield key, value


def _seeds(text: str) -> list[int]:
    return [int(_of_kind("--seeds", part, int)) for part in _split("--seeds", text)]


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{option} = {text!r}: must be a number of seconds above 0")
    return number


def _of_kind(option: str, text: str, kind: Any) -> Any:
    """`text` as a setting of type `kind`."""
    if kind is bool:
        if text not in ("true", "false"):
            raise UsageError(f"{option} = {text!r}: must be true or false")
        return text == "true"
    wanted = "a number" if kind is float else "a whole number"
    try:
        number = (float if kind is float else int)(text)
    except ValueError:
        raise UsageError(f"{option} = {text!r}: must be {wanted}") from None
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"{option} = {text!r}: must not be negative")
    return number
