"""What fair queuing costs with many clients: microseconds per arrival and admission, bytes per client that is gone.

    python -m benchmarks.many_clients [--quick] [--check] [--out FILE]

The same number of requests waits, of few clients and of many, in groups or not. An admission takes the first request
of the fair order out, charges its client, and a new one of the same client arrives. CPU time, medians over batches.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from vllm_hybrid.policy.fairness import VirtualCounters, group_name
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waiting import WaitingRequests

CLIENTS = (10, 100, 1_000, 10_000)
WAITING = 100_000
GROUPS = 20
BATCHES, BATCH = 30, 100
TOLERANCES = {
    "growth": 4.0,  # an admission among the most clients against one among the fewest
    "bytes_per_idle_client": 400.0,  # before it is forgotten
}
_serial = itertools.count()


def request(client: int) -> RequestView:
    number = next(_serial)
    return RequestView(
        request_id=f"r{number}",
        key=(Lane.ONLINE, f"client-{client}"),
        arrival_s=0.0,
        priority=0,
        order_s=float(number),
        prompt_tokens=100,
        handle=None,
        missing_tokens=100,
    )


def row(clients: int, waiting: int, grouped: bool) -> dict[str, Any]:
    """Figures of one queue."""
    groups = {f"client-{n}": group_name(str(n % GROUPS)) for n in range(clients)} if grouped else {}
    counters = VirtualCounters(1.0, 2.0, {}, groups)
    queue = WaitingRequests(counters)
    for number in range(waiting):
        view = request(number % clients)
        queue.lift(view.key)
        queue.add(view)
    gc.collect()
    admit_us, arrive_us = [], []
    for _ in range(BATCHES):
        newcomers = []
        begin = time.process_time()
        for _ in range(BATCH):
            walk = queue.walk(Lane.ONLINE, {}, ())
            view = next(walk)
            queue.discard(view)
            walk.close()
            counters.charge(view.key, 100, 30)
            newcomers.append(view)
        middle = time.process_time()
        for view in newcomers:
            queue.lift(view.key)
            queue.add(view)
        end = time.process_time()
        admit_us.append(1e6 * (middle - begin) / BATCH)
        arrive_us.append(1e6 * (end - middle) / BATCH)
    return {
        "clients": clients,
        "waiting": waiting,
        "groups": GROUPS if grouped else 0,
        "admission_us": statistics.median(admit_us),
        "arrival_us": statistics.median(arrive_us),
    }


def bytes_per_idle_client(count: int = 20_000) -> float:
    """What a client leaves behind that was served and has gone, until it is forgotten."""
    counters = VirtualCounters(1.0, 2.0, {})
    queue = WaitingRequests(counters)
    views = [request(number) for number in range(count)]
    gc.collect()
    tracemalloc.start()
    for view in views:
        queue.lift(view.key)
        queue.add(view)
        counters.charge(view.key, 100, 30)
        queue.discard(view)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / count


def main() -> int:
    parser = argparse.ArgumentParser(prog="many_clients", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a tolerance fails")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    waiting = WAITING // 10 if given.quick else WAITING
    rows = [row(clients, waiting, grouped) for grouped in (False, True) for clients in CLIENTS]
    print(f"{'clients':>8}{'groups':>8}{'waiting':>9}{'admission us':>14}{'arrival us':>12}")
    for r in rows:
        print(f"{r['clients']:>8}{r['groups']:>8}{r['waiting']:>9}{r['admission_us']:>14.1f}{r['arrival_us']:>12.1f}")
    idle = bytes_per_idle_client()
    growth = max(
        rows[len(CLIENTS) - 1]["admission_us"] / rows[0]["admission_us"],
        rows[-1]["admission_us"] / rows[len(CLIENTS)]["admission_us"],
    )
    print(
        f"an admission costs {growth:.2f}x among the most clients as among the fewest; an idle client {idle:.0f} bytes"
    )
    found = {"growth": growth, "bytes_per_idle_client": idle}
    failed = [
        f"{name} = {value:.2f}: allowed {TOLERANCES[name]}" for name, value in found.items() if value > TOLERANCES[name]
    ]
    for line in failed:
        print("FAILED:", line)
    if given.out:
        record = {"benchmark": "many_clients", "tolerances": TOLERANCES, "rows": rows, **found, "failed": failed}
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(failed) and given.check)


if __name__ == "__main__":
    sys.exit(main())
