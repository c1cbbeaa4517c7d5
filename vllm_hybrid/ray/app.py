"""Builds the Ray Serve application from the schema, and starts it where it can start.

`build_hybrid_app` is also what a Serve config file names as its `import_path` (`vllm_hybrid.ray.app:build_hybrid_app`)
with the schema as `args`. What would make Serve wait for ever is checked before anything is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_hybrid.ray.errors import RayAppError, require_ray, require_resources
from vllm_hybrid.ray.schema import Autoscaling, RayConfig, load_ray_config

GRACEFUL_SHUTDOWN_S = 10.0
_START_TRIES = 2  # of a replica, before the application fails


def build_hybrid_app(config: Mapping[str, Any] | RayConfig) -> Any:
    """The application for `serve.run`, or as the `import_path` of a Serve config file.

    Raises ConfigError or RayAppError, one line each: bad settings, no Ray or another one, too few resources.
    """
    require_ray()
    checked = load_ray_config(config)
    import ray

    if ray.is_initialized():
        _check_resources(checked)
    return _llm_app(checked) if checked.path == "llm" else _asgi_app(checked)


def run(config: Mapping[str, Any] | RayConfig, *, name: str = "default", route_prefix: str = "/") -> None:
    """Build and deploy, and return when every replica is ready. Raises RayAppError of one line if one cannot start."""
    checked = load_ray_config(config)
    require_ray()
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init()
    app = build_hybrid_app(checked)
    try:
        serve.run(app, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        reason = _start_failure(serve.status().applications.get(name)) or str(error).splitlines()[0]
        serve.delete(name)
        raise RayAppError(reason) from None


def _start_failure(application: Any) -> str | None:
    """The line of ours in what Serve says about a deployment that failed."""
    for deployment in application.deployments.values() if application else ():
        for line in reversed(deployment.message.splitlines()):
            if " did not start: " in line:
                return line.strip().rpartition("RayAppError: ")[2]
    return None


def _check_resources(config: RayConfig) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    own = config.resources
    replica = {"CPU": own.cpus} | ({"GPU": float(own.gpus)} if own.gpus else {})
    besides = {"CPU": own.ingress_cpus if config.path == "llm" else 0.0}
    least = config.replicas.min_replicas if isinstance(config.replicas, Autoscaling) else config.replicas
    require_resources(nodes, replica, least, besides)


def _deployment_options(config: RayConfig) -> dict[str, Any]:
    """What both paths tell Serve about the deployment."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, DeploymentActorConfig, RequestRouterConfig

    routing, sharing, replicas = config.routing, config.sharing, config.replicas
    options: dict[str, Any] = {
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_constructor_retry_count": _START_TRIES,
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
        "request_router_config": RequestRouterConfig.model_validate(
            {
                "request_router_class": routing.router_class,
                "request_router_kwargs": {
                    "imbalance": routing.imbalance,
                    "prefix_chars": routing.prefix_chars,
                    "header": config.hybrid.identity.header,
                },
                "request_routing_stats_period_s": routing.stats_period_s,
                "request_routing_stats_timeout_s": max(5.0, routing.stats_period_s),
            }
        ),
    }
    if sharing.enabled:
        options["deployment_actors"] = [
            DeploymentActorConfig(
                name="vllm-hybrid-hub",
                actor_class="vllm_hybrid.ray.hub:FairnessHub",
                init_kwargs={"ttl_s": sharing.alone_after_s},
                actor_options={"num_cpus": 0},
            )
        ]
    if isinstance(replicas, Autoscaling):
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=replicas.min_replicas,
            max_replicas=replicas.max_replicas,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function="vllm_hybrid.ray.autoscaling:LanePolicy",
                policy_kwargs={
                    "least": replicas.min_replicas,
                    "online_per_replica": replicas.online_per_replica,
                    "offline_max_replicas": replicas.offline_max_replicas,
                    "offline_per_replica": replicas.offline_per_replica,
                },
            ),
        )
    else:
        options["num_replicas"] = replicas
    return options


def _llm_app(config: RayConfig) -> Any:
    from ray.serve.llm import LLMConfig, build_openai_app

    from vllm_hybrid.ray.llm_server import SETTINGS, HybridLLMServer
    from vllm_hybrid.settings import SCHEDULER_CLS, SETTINGS_KEY

    own = config.resources
    hardware: dict[str, Any] = {"accelerator_config": {"kind": "gpu"}}
    if not own.gpus:
        hardware = {
            "accelerator_config": {"kind": "cpu"},
            "placement_group_config": {"bundles": [{"CPU": own.cpus}]},
        }
        if Path(config.model).is_dir():
            hardware["callback_config"] = {"callback_class": "vllm_hybrid.ray.local_model.LocalModel"}
    hybrid = config.hybrid.model_dump(mode="json", exclude_unset=True)
    llm = LLMConfig(
        model_loading_config={"model_id": config.served_name, "model_source": config.model},
        engine_kwargs={**config.engine, "scheduler_cls": SCHEDULER_CLS, "additional_config": {SETTINGS_KEY: hybrid}},
        deployment_config={
            **_deployment_options(config),
            "ray_actor_options": {"num_cpus": own.cpus if own.gpus else 0},
        },
        server_cls=HybridLLMServer,
        runtime_env={"env_vars": config.env},
        experimental_configs={SETTINGS: _plain(config)},
        log_engine_metrics=True,
        **hardware,
    )
    ingress = {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": own.ingress_cpus}}
    return build_openai_app({"llm_configs": [llm], "ingress_deployment_config": ingress})


def _asgi_app(config: RayConfig) -> Any:
    from ray import serve

    from vllm_hybrid.ray.asgi_server import HybridAsgiServer

    own = config.resources
    actor = {"num_cpus": own.cpus, "num_gpus": own.gpus, "runtime_env": {"env_vars": config.env}}
    deployment = serve.deployment(**_deployment_options(config), ray_actor_options=actor)
    return deployment(serve.ingress()(HybridAsgiServer)).bind(_plain(config))


def _plain(config: RayConfig) -> dict[str, Any]:
    """The settings as plain data, for the replicas."""
    return config.model_dump(mode="json", exclude={"hybrid"}) | {
        "hybrid": config.hybrid.model_dump(mode="json", exclude_unset=True)
    }
