"""A Ray of our own on the loopback, and the processes of a deployment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@contextmanager
def cluster(port: int, cpus: int = 4) -> Iterator[None]:
    """Ray and Serve until the block ends. cpus: logical ones."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_worker_niceness": "0"}
    import ray
    from ray import serve

    folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": QUIET},
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        if os.environ.get("KEEP_RAY_LOGS"):
            print(f"logs of Ray: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def hub() -> Any:
    """The hub's handle as an operator finds it; ValueError while there is none."""
    import ray
    from ray.util import list_named_actors

    from vllm_hybrid.ray.hub import HUB

    for actor in list_named_actors(all_namespaces=True):
        if HUB in actor["name"]:
            return ray.get_actor(actor["name"], namespace=actor["namespace"])
    raise ValueError("no hub")


def engine_of(replica: str) -> int:
    """Process id of a replica's engine core."""
    import psutil
    from ray._private.state import actors

    server = next(a["Pid"] for a in actors().values() if replica in (a["Name"] or "") and a["State"] == "ALIVE")
    children = psutil.Process(server).children(recursive=True)
    return next(child.pid for child in children if "VLLM::EngineCore" in " ".join(child.cmdline()))
