"""What a Ray Serve application of ours is made from: one schema for Python, `serve run` and a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationError, model_validator

from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.config.names import shown
from vllm_hybrid.config.section import Count, Fraction, Positive, Section, no_bool

SHARING_PRESETS = ("hybrid", "vtc")
_OURS = ("scheduler_cls", "additional_config", "model", "served_model_name")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(no_bool)]


class Resources(Section):
    cpus: Amount = 1.0
    """Logical CPUs of Ray that a replica takes: server, engine and workers together."""

    gpus: Annotated[int, Field(ge=0), BeforeValidator(no_bool)] = 0
    """GPUs of a replica: tensor_parallel_size times pipeline_parallel_size. 0: vLLM's CPU build."""

    ingress_cpus: Amount = 0.1
    """Logical CPUs of the HTTP ingress in front of the replicas (path llm)."""


class Autoscaling(Section):
    min_replicas: Count = 1
    """Replicas that always stay; with none, the first request of any lane would wake one."""

    max_replicas: Count = 2
    """Replicas under the pressure of online work."""

    online_per_replica: Positive = 8.0
    """Online requests, waiting and running, that a replica is meant to hold."""

    offline_max_replicas: Annotated[int, Field(ge=0), BeforeValidator(no_bool)] = 0
    """Replicas that an offline backlog may ask for. 0: offline work uses what is there."""

    offline_per_replica: Positive = 64.0
    """Offline requests that a replica is meant to hold, where offline work may ask."""

    upscale_delay_s: Positive = 10.0
    """Seconds that pressure lasts before a replica is added."""

    downscale_delay_s: Positive = 300.0
    """Seconds without pressure before a replica is taken away. Offline requests on it are cut."""

    @model_validator(mode="after")
    def _in_order(self) -> Autoscaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas = {self.max_replicas}: must be at least min_replicas, {self.min_replicas}")
        if self.offline_max_replicas > self.max_replicas:
            allowed = f"must be at most max_replicas, {self.max_replicas}"
            raise ValueError(f"offline_max_replicas = {self.offline_max_replicas}: {allowed}")
        return self


class Sharing(Section):
    enabled: StrictBool = True
    """One fairness over all replicas. false: every replica counts for itself, and a client that uses all of them gets
    a share of each."""

    period_s: Positive = 0.2
    """Seconds between two reports of a replica. Counters of others are at most twice as old, and an engine step."""

    timeout_s: Positive = 1.0
    """Seconds a call to the hub, or to the engine for it, may take before it is given up and tried again."""

    alone_after_s: Positive = 3.0
    """Seconds without an answer of the hub after which nobody is taken to be backlogged elsewhere any more; in the hub,
    seconds without a report after which a replica is taken to be gone."""


class Routing(Section):
    router_class: str = "vllm_hybrid.ray.router:HybridRouter"
    """Which class routes requests, as module:Class; a Ray RequestRouter."""

    prefix_chars: Annotated[int, Field(ge=0), BeforeValidator(no_bool)] = 256
    """Characters of a prompt by which requests count as sharing a prefix (path llm). 0: prefixes play no part."""

    imbalance: Fraction = 0.25
    """How much fuller, in parts of its slots, the replica that holds a prefix may be than the one that would be chosen
    without it."""

    stats_period_s: Positive = 1.0
    """Seconds between two looks at the load of a replica."""


class RayConfig(Section):
    model: str
    """Folder of the model, or its name on the hub."""

    name: str | None = None
    """What clients call the model. None: the last part of `model`."""

    path: Literal["llm", "asgi"] = "llm"
    """llm: ray.serve.llm, which routes by client, lane and prefix. asgi: vLLM's complete HTTP surface in every replica,
    routed by headers."""

    replicas: Count | Autoscaling = 1
    """A fixed number, or how to scale."""

    resources: Resources = Resources()
    engine: dict[str, Any] = {}
    """Arguments of vLLM's engine, as in vllm.LLM(...)."""

    hybrid: Any = HybridConfig()
    """Settings of the scheduler: a mapping, inline JSON or a file (docs/configuration.md)."""

    env: dict[str, str] = {}
    """Environment of the replicas."""

    max_ongoing_requests: Count = 256
    """Requests in a replica, waiting ones included; more wait in the ingress, where no fairness is kept."""

    sharing: Sharing = Sharing()
    routing: Routing = Routing()

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        return self.name or Path(self.model).name

    @property
    def most_replicas(self) -> int:
        """How many there may be."""
        return self.replicas.max_replicas if isinstance(self.replicas, Autoscaling) else self.replicas

    @model_validator(mode="before")
    @classmethod
    def _settings_are_checked(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        model = given.get("model")
        if isinstance(model, str) and Path(model).expanduser().is_dir():  # replicas may run in another folder
            model = str(Path(model).expanduser().resolve())
        return {**given, "hybrid": load_config(given.get("hybrid"))} | ({"model": model} if "model" in given else {})

    @model_validator(mode="after")
    def _engine_is_ours(self) -> RayConfig:
        for key in _OURS:
            if key in self.engine:
                where = "model / name" if "model" in key else "hybrid"
                raise ValueError(f"engine.{key} = {shown(self.engine[key])}: is set by {where}: leave it out")
        if self.engine.get("data_parallel_size", 1) != 1:
            raise ValueError(
                f"engine.data_parallel_size = {self.engine['data_parallel_size']}: must be 1: set replicas instead"
            )
        if self.sharing.enabled and self.hybrid.preset not in SHARING_PRESETS:
            allowed = f"cannot share counters: take {' or '.join(SHARING_PRESETS)}, or sharing.enabled: false"
            raise ValueError(f"hybrid.preset = {self.hybrid.preset!r}: {allowed}")
        if "/" in self.model and self.model[0] in "./~" and not Path(self.model).expanduser().is_dir():
            raise ValueError(f"model = {self.model!r}: is not a folder")
        return self


def load_ray_config(given: Mapping[str, Any] | RayConfig) -> RayConfig:
    """The checked settings, or a ConfigError of one line that names the key, the value and what is allowed."""
    if isinstance(given, RayConfig):
        return given
    try:
        return RayConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError("ray config: " + "; ".join(map(_one_line, error.errors()))) from None


def _one_line(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"] if part not in ("Autoscaling", "constrained-int"))
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}"
    if error["type"] == "missing":
        return f"{path}: must be given"
    if error["type"] == "value_error" and (" = " in message or message.startswith("hybrid config")):
        return f"{path}.{message}" if path else message
    return f"{path} = {shown(error['input'])}: {message}"
