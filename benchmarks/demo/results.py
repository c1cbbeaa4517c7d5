"""The demo's result as one JSON document, with the keys of `vllm bench serve` where they exist.

Per tenant it also keeps when each request was due and how long its first token took, so that the plot can be
drawn again without running anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.demo import metrics
from benchmarks.demo.client import Replay
from benchmarks.demo.report import Check
from benchmarks.demo.run import Run

# json.dumps puts every number of a list on a line of its own; these lists are read as one thing.
_NUMBER_LIST = re.compile(r"\[\s+([-\d.,\s]+?)\s+\]")


def document(about: dict[str, Any], runs: Sequence[Run], results: Sequence[Check]) -> dict[str, Any]:
    return {
        **about,
        "schedulers": {run.scheduler: _run(run) for run in runs},
        "checks": [asdict(check) for check in results],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    compact = _NUMBER_LIST.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    path.write_text(compact + "\n")


def _run(run: Run) -> dict[str, Any]:
    window = run.contention
    return {
        "flags": list(run.flags),
        "capacity_at_warmup": round(run.capacity, 1),
        "total_token_throughput": run.tokens_per_s,
        "duration": run.seconds,
        "policy": asdict(run.policy),
        "flood": _phase(run.flood),
        "burst": {
            **_phase(run.burst),
            "backlogged_s": window.seconds,
            "service": window.service,
            "service_share": {tenant: window.share(tenant) for tenant in window.service},
        },
        "answers": run.answers,
    }


def _phase(replay: Replay) -> dict[str, Any]:
    tenants = sorted({o.item.tenant for o in replay.outcomes})
    return {
        **metrics.bench_serve_keys(replay),
        "client_cpu_share": replay.client_cpu_share,
        "client_stall_s": replay.client_stall_s,
        "latest_send_s": replay.latest_send_s,
        "tenants": {tenant: _tenant(replay, tenant) for tenant in tenants},
    }


def _tenant(replay: Replay, tenant: str) -> dict[str, Any]:
    answered = [o for o in replay.outcomes if o.item.tenant == tenant and o.tokens]
    return {
        **metrics.bench_serve_keys(replay, tenant),
        "start_times": [round(o.item.due_s, 3) for o in answered],
        "ttfts": [round(o.ttft_s, 3) for o in answered],
    }
