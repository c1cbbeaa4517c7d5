"""Every mistake in the settings of a Ray application is one line that names the key, the value and what is allowed."""

from importlib.metadata import PackageNotFoundError

import pytest

from vllm_hybrid.config import ConfigError
from vllm_hybrid.ray import errors
from vllm_hybrid.ray.errors import RayAppError, require_ray, require_resources
from vllm_hybrid.ray.schema import Autoscaling, load_ray_config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "ray config: model: must be given"),
        ({"model": "m", "replica": 2}, "ray config: unknown key 'replica'"),
        ({"model": "m", "resources": {"cpu": 1}}, "ray config: unknown key 'resources.cpu'"),
        ({"model": "./nowhere"}, "ray config: model = './nowhere': is not a folder"),
        ({"model": "m", "path": "grpc"}, "ray config: path = 'grpc': must be 'llm' or 'asgi'"),
        (
            {"model": "m", "engine": {"scheduler_cls": "x"}},
            "ray config: engine.scheduler_cls = 'x': is set by hybrid: leave it out",
        ),
        (
            {"model": "m", "engine": {"data_parallel_size": 2}},
            "ray config: engine.data_parallel_size = 2: must be 1: set replicas instead",
        ),
        (
            {"model": "m", "hybrid": {"preset": "drr"}},
            "ray config: hybrid.preset = 'drr': cannot share counters: take hybrid or vtc, or sharing.enabled: false",
        ),
        (
            {"model": "m", "replicas": {"min_replicas": 3, "max_replicas": 2}},
            "max_replicas = 2: must be at least min_replicas, 3",
        ),
        ({"model": "m", "hybrid": {"slo": {"onlin": {}}}}, "hybrid config: unknown key 'slo.onlin': did you mean"),
    ],
)
def test_a_mistake_is_one_line(given, told):
    with pytest.raises(ConfigError) as refused:
        load_ray_config(given)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_defaults():
    config = load_ray_config({"model": "org/some-model"})
    assert (config.served_name, config.most_replicas, config.sharing.enabled) == ("some-model", 1, True)
    scaled = load_ray_config({"model": "m", "name": "x", "replicas": {"max_replicas": 5}})
    assert isinstance(scaled.replicas, Autoscaling)
    assert (scaled.served_name, scaled.most_replicas) == ("x", 5)


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({}, "Ray is not installed: pip install 'vllm-hybrid[ray]' (never ray[llm])"),
        ({"ray": "2.59.1"}, "ray 2.59.1 is installed, vllm_hybrid.ray is made for 2.60.*: "),
        ({"ray": "2.60.3"}, "pyarrow is not installed"),
    ],
)
def test_a_missing_or_wrong_ray_is_named(monkeypatch, installed, told):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(errors, "version", version)
    with pytest.raises(RayAppError) as refused:
        require_ray()
    assert str(refused.value).startswith(told)


def test_too_small_a_cluster_is_named_before_anything_waits():
    nodes = [{"CPU": 2.0}, {"CPU": 4.0}]
    require_resources(nodes, {"CPU": 2.0}, 2, {"CPU": 0.1})
    with pytest.raises(RayAppError, match="a replica needs 5 CPU, the largest node has 4"):
        require_resources(nodes, {"CPU": 5.0}, 1, {})
    with pytest.raises(RayAppError, match=r"3 replicas of 2 CPU each and 0.1 .* need 6.1, the cluster has 6"):
        require_resources(nodes, {"CPU": 2.0}, 3, {"CPU": 0.1})
    with pytest.raises(RayAppError, match="a replica needs 1 GPU, the largest node has 0"):
        require_resources(nodes, {"GPU": 1.0}, 1, {})
