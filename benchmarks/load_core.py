"""Keeps one core busy until its parent ends: half the time arithmetic, half the time moving memory.

    python -m benchmarks.load_core CORE

The neighbour of a measured engine: what runs beside it is then the same every time.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

_TURN_S = 0.05
_BUFFER_BYTES = 64 << 20  # more than the caches hold


def main(core: int) -> None:
    """Alternate between the two until the parent is gone."""
    os.sched_setaffinity(0, {core})
    parent = os.getppid()
    matrix = np.random.default_rng(0).normal(size=(256, 256))
    source = np.ones(_BUFFER_BYTES // 8)
    target = np.empty_like(source)
    while os.getppid() == parent:
        until_s = time.perf_counter() + _TURN_S
        while time.perf_counter() < until_s:
            matrix @ matrix
        until_s = time.perf_counter() + _TURN_S
        while time.perf_counter() < until_s:
            np.copyto(target, source)


if __name__ == "__main__":
    main(int(sys.argv[1]))
