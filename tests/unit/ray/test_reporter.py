"""The way between engine and hub: every leg is bounded, a failed round is tried again, alone the engine goes on."""

import asyncio

import pytest

from tests.unit.policy.world import ONLINE, plain_counters
from vllm_hybrid.policy.remote import SharedCounters
from vllm_hybrid.ray.books import Books
from vllm_hybrid.ray.reporter import Reporter

pytestmark = pytest.mark.asyncio
A = (ONLINE, "a")
PERIOD_S, TIMEOUT_S, ALONE_S = 0.005, 0.02, 0.06


class Engine:
    """What an engine core answers to the three utility calls."""

    def __init__(self) -> None:
        self.counters = plain_counters()
        self.shared = SharedCounters(self.counters)
        self.alone = 0

    async def call_utility_async(self, method, *arguments):
        if method == "hybrid_shared_report":
            return self.shared.report(lambda key: False)
        if method == "hybrid_shared_apply":
            return self.shared.apply(*arguments)
        assert method == "hybrid_shared_alone"
        self.alone += 1
        return self.shared.alone()


class Hub:
    """An actor handle whose calls may hang; `find` is the look-up, which may fail."""

    def __init__(self) -> None:
        self.books = Books("e1", 10.0)
        self.hangs = self.is_gone = False
        self.report = self

    def find(self):
        if self.is_gone:
            raise ValueError("no such actor")
        return self

    async def remote(self, name, report):
        if self.hangs:
            await asyncio.sleep(60)
        if self.is_gone:
            raise ConnectionError
        return self.books.report(name, report, 0.0)


@pytest.fixture
def world():
    engine, hub = Engine(), Hub()
    return engine, hub, Reporter(engine, "r0", hub.find, PERIOD_S, TIMEOUT_S, ALONE_S)


def counter(hub, client="a"):
    return hub.books.service(10)["online"].get(client, 0.0)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def running(reporter):
    task = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    return task


async def test_service_reaches_the_hub(world):
    engine, hub, reporter = world
    engine.counters.charge(A, 10, 0)
    task = await running(reporter)
    await until(lambda: counter(hub) == 10)
    engine.counters.charge(A, 5, 0)
    await until(lambda: counter(hub) == 15)
    task.cancel()


@pytest.mark.parametrize("how", ["hangs", "is_gone"])
async def test_without_the_hub_the_engine_counts_alone_and_nothing_is_lost(world, how):
    engine, hub, reporter = world
    task = await running(reporter)
    await until(lambda: reporter.rounds > 1)
    setattr(hub, how, True)
    engine.counters.charge(A, 10, 0)
    await until(lambda: engine.alone == 1)
    await asyncio.sleep(3 * TIMEOUT_S)
    assert engine.alone == 1, "told once"
    setattr(hub, how, False)
    await until(lambda: counter(hub) == 10)
    task.cancel()


async def test_a_new_hub_is_told_everything(world):
    engine, hub, reporter = world
    engine.counters.charge(A, 10, 0)
    task = await running(reporter)
    await until(lambda: counter(hub) == 10)
    hub.books = Books("e2", 10.0)
    engine.counters.charge(A, 5, 0)
    await until(lambda: counter(hub) == 15)
    task.cancel()
