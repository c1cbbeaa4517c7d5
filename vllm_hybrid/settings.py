"""How the settings travel through vLLM: in ``additional_config["hybrid"]``, to every process of a server.

vLLM hashes ``additional_config`` into the key of its compile cache (a plain dict whole, as JSON) and
prints it in its log.  So the value we put there is to vLLM a short string that names only what shapes the
compiled graph: a tuning value never costs a recompile, the log shows no client's name, and copies, pickles
and ``asdict`` keep working, because ``additional_config`` stays the plain dict that some models ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.config.presets import SIMULATOR_ONLY

SCHEDULER_CLS = "vllm_hybrid.Scheduler"
SETTINGS_KEY = "hybrid"
KV_ONLY = "kv"


class HybridSettings(str):
    """A `HybridConfig` that hashes and serialises as the name of the graph it needs, and prints redacted.

    form: what of ours the compiled graph depends on, the form of the cache beside KV (`kv`: none); decided when the
    engine's configuration is made, and carried from there to every process.
    """

    config: HybridConfig

    def __new__(cls, config: HybridConfig | None = None, form: str = KV_ONLY) -> HybridSettings:
        self = super().__new__(cls, form)
        self.config = HybridConfig() if config is None else config
        return self

    def __getnewargs__(self) -> tuple[HybridConfig, str]:  # type: ignore[override]
        return self.config, self.form

    @property
    def form(self) -> str:
        """The form of the cache beside KV."""
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"HybridSettings({', '.join(_public_changes(self.config))})"

    __str__ = __repr__


def _public_changes(config: HybridConfig) -> Iterator[str]:
    """What differs from the defaults, as key=value; of the clients and groups only their number."""
    changes = config.model_dump(exclude_defaults=True)
    named = {name: changes.pop(name, {}) for name in ("clients", "groups")}
    yield from _flat(changes)
    yield from (f"{name}=<{len(ids)}>" for name, ids in named.items() if ids)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value!r}"


def wrap(additional_config: Any) -> dict[str, Any]:
    """The same dict with its ``hybrid`` value, a mapping, a file or nothing, made a `HybridSettings`."""
    others = dict(additional_config or {})
    given = others.get(SETTINGS_KEY)
    if not isinstance(given, HybridSettings):
        given = others[SETTINGS_KEY] = HybridSettings(load_config(given))
    if given.config.preset in SIMULATOR_ONLY:
        raise ConfigError(f"preset = {given.config.preset!r}: is for the simulator only: take another one on a server")
    return others


def settings_of(vllm_config: Any) -> HybridConfig:
    """The settings a `VllmConfig` carries; the defaults where it carries none."""
    additional_config = vllm_config.additional_config
    given = additional_config.get(SETTINGS_KEY) if isinstance(additional_config, Mapping) else None
    return given.config if isinstance(given, HybridSettings) else load_config(given)


def form_of(vllm_config: Any) -> str:
    """The form of the cache beside KV that was decided for a `VllmConfig`."""
    additional_config = vllm_config.additional_config
    given = additional_config.get(SETTINGS_KEY) if isinstance(additional_config, Mapping) else None
    return given.form if isinstance(given, HybridSettings) else KV_ONLY


def is_selected(scheduler_cls: object) -> bool:
    """Whether vLLM's ``scheduler_cls``, a qualified name or a class, is a scheduler of ours."""
    if isinstance(scheduler_cls, str):
        return scheduler_cls.startswith("vllm_hybrid.")
    return isinstance(scheduler_cls, type) and any(
        base.__module__.startswith("vllm_hybrid.") for base in scheduler_cls.__mro__
    )


def engine_kwargs(config: Mapping[str, Any] | str | Path | HybridConfig | None = None, **more: Any) -> dict[str, Any]:
    """Keyword arguments that select the scheduler: ``LLM(model, **engine_kwargs({"slo": ...}))``.

    `more` are further arguments of the engine; an ``additional_config`` among them keeps its own keys.
    """
    others = dict(more.pop("additional_config", None) or {})
    if SETTINGS_KEY in others:
        raise ValueError(f"additional_config.{SETTINGS_KEY}: give the settings as engine_kwargs' first argument")
    return {
        **more,
        "scheduler_cls": SCHEDULER_CLS,
        "additional_config": {**others, SETTINGS_KEY: HybridSettings(load_config(config))},
    }
