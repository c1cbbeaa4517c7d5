"""Without a GPU Triton's kernels run in its interpreter, which must be chosen before anything imports Triton.

vLLM's CPU build uses no Triton, so nothing else sees the difference.

Workers of xdist that start engines get a core each: vLLM binds its threads to the cores it may use, and two engines
that bind theirs to the same ones wait for each other at every layer.
"""

import os

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and config.option.markexpr == "e2e":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
