"""Fairness over two replicas on real Ray: client A on both, B and C on one each, all backlogged, streaming.

    python -m benchmarks.ray_fairness [--quick] [--check] [--only fairness deaths cost] [--out FILE]

The tiny model of the demo behind `ray.serve.llm`, two replicas of four slots; the router is ours with the choice taken
away (half of A's streams
here, half there, B and C pinned). fairness: the shares with local counters and with the hub. deaths, under the same
load: the hub is killed; then the engine of B's replica is, SIGKILL. cost: seconds of a report to the hub as a real
actor, with 10 to 10,000 clients that all changed. Needs two cores without other work and 6 GB, and takes ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.demo import machine, model
from benchmarks.papers.common import Check, arguments, finish, table
from benchmarks.rayserve.cluster import cluster, engine_of, hub
from benchmarks.rayserve.load import Backlog

PARTS = ("fairness", "deaths", "cost")
PORT = 9165
WIDTH = {"A": 16, "B": 8, "C": 8}
SHARE_TOLERANCE = 0.05  # of a third
SETTLE_S, MEASURE_S = 10.0, 60.0  # less is uneven: eight slots hold requests of 32 tokens
RECOVERY_FACTOR = 3.0
BILLED_TOLERANCE = 0.02
CLIENTS = (10, 1_000, 10_000)
PERIOD_S = 0.2


def settings(folder: str, shared: bool) -> dict[str, Any]:
    return {
        "model": folder,
        "name": "tiny",
        "replicas": 2,
        "resources": {"cpus": 0.5},
        "engine": {
            "enforce_eager": True,
            "dtype": "bfloat16",
            "max_model_len": 512,
            "kv_cache_memory_bytes": 128 << 20,
            "max_num_seqs": 4,
            "enable_prefix_caching": False,  # so that what a client was sent is what it is charged
        },
        "sharing": {"enabled": shared, "period_s": PERIOD_S},
        "routing": {"router_class": "benchmarks.rayserve.pinned:PinnedRouter"},
    }


def deploy(shared: bool) -> float:
    """Seconds until both replicas answer."""
    from vllm_hybrid.ray.app import run

    begin_s = time.monotonic()
    run(settings(str(model.prepare("tiny")), shared))
    return time.monotonic() - begin_s


def backlog() -> Backlog:
    return Backlog(f"http://127.0.0.1:{PORT}", "tiny", WIDTH)


async def shares(measure_s: float) -> dict[str, float]:
    """The shares of the token stream after it has settled."""
    load = backlog()
    await load.start()
    await asyncio.sleep(SETTLE_S)
    begin_s = time.monotonic()
    await asyncio.sleep(measure_s)
    got = load.shares(begin_s, begin_s + measure_s)
    await load.stop()
    return got


def fair(found: Mapping[str, float]) -> bool:
    return all(abs(3 * share - 1) <= SHARE_TOLERANCE for share in found.values())


async def hub_death() -> dict[str, Any]:
    """Kill the hub; how long until there is another one, and until the shares since the kill are fair."""
    import ray

    load = backlog()
    await load.start()
    await asyncio.sleep(SETTLE_S)
    books = hub()
    epoch = (await books.totals.remote())["epoch"]
    killed_s = time.monotonic()
    ray.kill(books)
    recreated_s = await _until(lambda: _another(epoch), 60)
    fair_s = await _until_fair(load, killed_s, recreated_s, 90)
    total = load.shares(killed_s, killed_s + RECOVERY_FACTOR * recreated_s)
    worst = _worst_gap(load, killed_s)
    errors = sum(load.errors.values())
    await load.stop()
    return {
        "recreated_s": recreated_s,
        "fair_again_s": fair_s - killed_s,
        "shares_since_the_kill": total,
        "largest_gap": worst,
        "gap_bound": await _gap_bound(load, recreated_s, killed_s),
        "failed_requests": errors,
    }


async def _another(epoch: str) -> bool:
    try:
        return (await hub().totals.remote())["epoch"] != epoch
    except Exception:  # gone, or not up yet
        return False


async def _until(holds: Any, limit_s: float) -> float:
    begin_s = time.monotonic()
    while not await holds():
        if time.monotonic() - begin_s > limit_s:
            raise TimeoutError(f"nothing happened for {limit_s:g} s")
        await asyncio.sleep(0.1)
    return time.monotonic() - begin_s


async def _until_fair(load: Backlog, killed_s: float, recreated_s: float, limit_s: float) -> float:
    """When the shares since the kill are fair: what was missed without a hub has been made up for. Two in a row."""
    at_s, held = killed_s + recreated_s, 0
    while at_s - killed_s < limit_s:
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        held = held + 1 if fair(load.shares(killed_s, at_s)) else 0
        if held == 2:
            return at_s - 1.0
        at_s += 1.0
    return float("inf")


def _service_gap(load: Backlog, from_s: float, to_s: float) -> float:
    got = {c: 2.0 * sum(1 for at_s, client in load.when if client == c and from_s <= at_s < to_s) for c in WIDTH}
    prompts = {c: tokens / 2 for c, tokens in got.items()}  # as many prompt tokens as output tokens, at half the price
    service = [got[c] + prompts[c] for c in WIDTH]
    return max(service) - min(service)


def _worst_gap(load: Backlog, from_s: float) -> float:
    end_s = load.when[-1][0]
    return max(_service_gap(load, from_s, from_s + s) for s in range(1, int(end_s - from_s)))


async def _gap_bound(load: Backlog, outage_s: float, killed_s: float) -> float:
    """2 (N U + (N - 1) r D) with D the outage and the time in which it is noticed; r from the run."""
    from benchmarks.rayserve.load import OUTPUT_TOKENS

    slots, prompt, price = 4, 32, 2
    unit = slots * (prompt + price * OUTPUT_TOKENS)
    before = [1 for at_s, _ in load.when if killed_s - SETTLE_S / 2 <= at_s < killed_s]
    replica_rate = 3.0 * len(before) / (SETTLE_S / 2) / 2  # 2 units a token, half as much again for prompts; 2 replicas
    stale_s = outage_s + 2 * PERIOD_S
    return 2 * (2 * unit + replica_rate * stale_s)


async def engine_death() -> dict[str, Any]:
    """Kill the engine of B's replica under load, and hold what is charged against what was sent."""
    load = backlog()
    await load.start()
    await asyncio.sleep(SETTLE_S)
    received, before = load.service(), await _counters()
    replicas = sorted((await hub().totals.remote())["replicas"])
    killed_s = time.monotonic()
    os.kill(engine_of(replicas[0]), signal.SIGKILL)
    from ray import serve

    async def whole() -> bool:
        states = next(
            d.replica_states
            for name, d in serve.status().applications["default"].deployments.items()
            if name.startswith("Hybrid")
        )
        names = (await hub().totals.remote())["replicas"]
        return dict(states) == {"RUNNING": 2} and replicas[0] not in names and len(names) == 2

    replaced_s = await _until(whole, 180)
    await asyncio.sleep(SETTLE_S)
    end_s = time.monotonic()
    shares_after = load.shares(end_s - SETTLE_S, end_s)
    errors, failed = dict(load.errors), list(load.failed)
    got = {client: value - received[client] for client, value in load.service().items()}
    charged = {client: value - before[client] for client, value in (await _counters()).items() if client in before}
    await load.stop()
    return {
        "failed": {client: errors.get(client, 0) for client in WIDTH},
        "last_failure_after_s": max((at_s - killed_s for at_s, _ in failed), default=0.0),
        "kinds": sorted({kind.split(": ")[1] for _, kind in failed}),
        "replaced_s": replaced_s,
        "charged_of_received": {client: charged[client] / got[client] for client in WIDTH},
        "shares_after": shares_after,
    }


async def _counters() -> dict[str, float]:
    return dict((await hub().service.remote())["online"])


def hub_cost(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a report of a thread of its own, everything changed since the last one."""
    import ray

    from vllm_hybrid.ray.hub import FairnessHub

    actor = FairnessHub.options(num_cpus=0).remote(60.0)
    found = {}
    for clients in CLIENTS:
        name, since = f"r{clients}", 0
        epoch = ray.get(actor.report.remote(name, _report("", 0, 0, True, 0)))["epoch"]
        times = []
        for number in range(rounds):
            report = _report(epoch, since, clients, number == 0, number + 1)
            begin_s = time.perf_counter()
            answer = ray.get(actor.report.remote(name, report))
            times.append(1000 * (time.perf_counter() - begin_s))
            since = answer["version"]
        times.sort()
        found[str(clients)] = {"p50_ms": statistics.median(times), "p99_ms": times[int(0.99 * len(times))]}
    return found


def _report(epoch: str, since: int, clients: int, join: bool, number: int) -> dict[str, Any]:
    rows = [[0, f"client-{i}", 0, float(number), 0.0, True, ""] for i in range(clients)]
    return {"epoch": epoch, "join": join, "heard": epoch, "since": since, "rows": rows}


def measure(parts: tuple[str, ...], quick: bool) -> dict[str, Any]:
    """The figures of the parts asked for."""
    from ray import serve

    measure_s = 10.0 if quick else MEASURE_S
    found: dict[str, Any] = {}

    def note(name: str, figures: Any) -> None:
        found[name] = figures
        print(f"{name}: {figures}", flush=True)

    # An interrupted run keeps the parts that it has finished.
    with contextlib.suppress(KeyboardInterrupt), cluster(PORT):
        if "cost" in parts:
            note("cost", hub_cost(20 if quick else 100))
        if "fairness" in parts:
            deploy(shared=False)
            note("local", asyncio.run(shares(measure_s)))
            serve.delete("default")
        if "fairness" in parts or "deaths" in parts:
            note("ready_s", deploy(shared=True))
        if "fairness" in parts:
            note("shared", asyncio.run(shares(measure_s)))
        if "deaths" in parts:
            note("hub_death", asyncio.run(hub_death()))
            note("engine_death", asyncio.run(engine_death()))
    return found


def checks(found: Mapping[str, Any]) -> list[Check]:
    held = []
    if "shared" in found:
        wanted = f"at most {SHARE_TOLERANCE:.0%}"
        off = max(abs(3 * share - 1) for share in found["shared"].values())
        held.append(Check("shared counters: shares off each a third", f"{off:.1%}", wanted, off <= SHARE_TOLERANCE))
        # B and C have half of their replica each; which of the two gets more of the machine is the machine's choice.
        off = abs(2 * found["local"]["A"] - 1)
        held.append(Check("local counters: A's share off a half", f"{off:.1%}", wanted, off <= SHARE_TOLERANCE))
    if "hub_death" in found:
        died = found["hub_death"]
        limit_s = RECOVERY_FACTOR * died["recreated_s"]
        again_s, gap, bound = died["fair_again_s"], died["largest_gap"], died["gap_bound"]
        held += [
            Check("hub killed: fair again", f"{again_s:.1f} s", f"within {limit_s:.1f} s", again_s <= limit_s),
            Check("hub killed: service gap", f"{gap:.0f}", f"at most {bound:.0f}", gap <= bound),
            Check("hub killed: failed requests", str(died["failed_requests"]), "0", died["failed_requests"] == 0),
        ]
    if "engine_death" in found:
        died = found["engine_death"]
        others, most = died["failed"]["C"], max(died["charged_of_received"].values())
        limit = 1 + BILLED_TOLERANCE
        held += [
            Check("engine killed: failures of the other replica's client", str(others), "0", others == 0),
            Check("engine killed: most charged / received", f"{most:.3f}", f"at most {limit:g}", most <= limit),
        ]
    return held


def main() -> int:
    given = arguments("ray_fairness", __doc__.splitlines()[0], PARTS)
    parts = ("cost",) if given.quick else tuple(given.only or PARTS)
    begin_s = time.monotonic()
    found = measure(parts, given.quick)
    print(f"{'+'.join(parts)}: {time.monotonic() - begin_s:.0f} s\n")
    if "shared" in found:
        print(table([{"counters": n, **{c: f"{found[n][c]:.3f}" for c in WIDTH}} for n in ("local", "shared")]))
    told = {"machine": machine.describe(), "width": WIDTH, "period_s": PERIOD_S, **found}
    return finish(given, told, {"wall_s": time.monotonic() - begin_s}, checks(found))


if __name__ == "__main__":
    sys.exit(main())
