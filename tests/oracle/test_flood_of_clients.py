"""A hundred thousand client ids: nothing that the scheduler, its metrics or their labels keep grows with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.oracle.ours import HYBRID
from tests.oracle.shadow import ShadowWorker
from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.metrics import HybridMetrics
from vllm_hybrid.sim.modelfree import EngineLoop, World, build, make_request

pytestmark = pytest.mark.oracle

CLIENTS, AT_ONCE, SERVED_OF = 100_000, 500, 50
MOST_KEPT = 3000  # twice the counters at which idle ones are looked through, and what is in the engine


def containers(thing: Any, seen: set[int], path: str) -> Iterator[tuple[str, int]]:
    """Every collection that our objects hold, and its size."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, dict | list | set | frozenset | tuple | deque):
        yield path, len(thing)
        values = thing.values() if isinstance(thing, dict) else thing
        for value in list(values)[:50]:
            yield from containers(value, seen, f"{path}[]")
    elif type(thing).__module__.startswith("vllm_hybrid"):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        for name in {*getattr(thing, "__dict__", {}), *slots}:
            yield from containers(getattr(thing, name, None), seen, f"{path}.{name}")


def largest(*things: Any) -> tuple[str, int]:
    return max(
        (found for thing in things for found in containers(thing, set(), type(thing).__name__)), key=lambda f: f[1]
    )


def test_a_flood_of_client_ids_fills_nothing() -> None:
    world = World(max_seqs=64, step_tokens=1024)
    scheduler = build(HYBRID, world)
    loop = EngineLoop(scheduler, ShadowWorker(world))
    registry, labels = CollectorRegistry(), ClientLabels(MetricsConfig(clients="names"))
    metrics = HybridMetrics(registry)
    for first in range(0, CLIENTS, AT_ONCE):
        names = [f"c{number}" for number in range(first, first + AT_ONCE)]
        for number, name in enumerate(names):
            lane = ("online", "offline")[number % 2]
            loop.add(make_request(name, [number], 1, loop.now_s, extra_args={"client": name, "lane": lane}))
        for number, name in enumerate(names):
            if number % SERVED_OF:
                loop.abort(name)
        while loop.busy:
            loop.step()
        drained = scheduler.report.drain()
        labels.know(row["client"] for row in drained["clients"])
        metrics.record(0, drained, labels.of)
    assert loop.finished == {f"c{number}" for number in range(0, CLIENTS, SERVED_OF)}
    assert largest(scheduler, labels)[1] < MOST_KEPT, largest(scheduler, labels)
    assert len(scheduler.report.clients(100)["clients"]) == 100
    page = generate_latest(registry).decode()
    assert len(page) < 100_000 and page.count('client="') < 1000
