"""One line for what can be wrong before anything waits: no Ray, another Ray, too small a cluster, a bad config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

SUPPORTED_RAY = "2.60"


class RayAppError(RuntimeError):
    """The application cannot be built or started; the message is one line that names the cause."""


def require_ray() -> None:
    """Raise unless Ray of the supported minor version is installed, with what `ray.serve.llm` imports."""
    try:
        installed = version("ray")
    except PackageNotFoundError:
        raise RayAppError("Ray is not installed: pip install 'vllm-hybrid[ray]' (never ray[llm])") from None
    if not installed.startswith(f"{SUPPORTED_RAY}."):
        raise RayAppError(
            f"ray {installed} is installed, vllm_hybrid.ray is made for {SUPPORTED_RAY}.*: "
            f"pip install 'ray[serve]=={SUPPORTED_RAY}.*'"
        )
    try:
        version("pyarrow")
    except PackageNotFoundError:
        raise RayAppError("pyarrow is not installed, ray.serve.llm imports it: pip install pyarrow") from None


def require_resources(
    nodes: Sequence[Mapping[str, float]], replica: Mapping[str, float], count: int, besides: Mapping[str, float]
) -> None:
    """Raise where `count` replicas and what runs beside them do not fit the cluster: Serve would wait for ever."""
    for resource, each in replica.items():
        has = [node.get(resource, 0.0) for node in nodes]
        if each > max(has, default=0.0):
            largest = f"the largest node has {max(has, default=0.0):g}"
            raise RayAppError(f"resources: a replica needs {each:g} {resource}, {largest}")
        other = besides.get(resource, 0.0)
        needed = each * count + other
        if needed > sum(has) + 1e-6:
            raise RayAppError(
                f"resources: {count} replicas of {each:g} {resource} each and {other:g} for the ingress need "
                f"{needed:g}, the cluster has {sum(has):g}"
            )
