"""What the order of offline requests is worth where they share prefixes: arrival against prefix order.

    python -m benchmarks.prefix_order [--quick] [--only DEVICE ...] [--check] [--workers N] [--out FILE]

Groups of offline requests share a few-shot prefix of 1,000 tokens; question and answer have GSM8K's lengths; members of
all groups are there from the beginning, mixed at random.  The prefixes together are four times the device's KV pool.
Same engine, same scheduler (`hybrid`), `lanes.offline.order` alone differs; stock vLLM is there too.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.policy.prefix_order import MOST_PASSED
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites.sources import draw_lengths

DEVICES = ("h100_llama31_8b_bf16", "a100_llama2_7b_fp16")
PREFIX_TOKENS, MEMBERS, QUICK_MEMBERS = 1_000, 10, 6
PREFIXES_OF_POOL, QUICK_PREFIXES_OF_POOL = 4.0, 1.2
SETTINGS = EngineSettings(max_seqs=256, step_tokens=2_048, prefix_caching=True, max_model_len=4_096)
SEED = 1
LEAST_GAIN = 1.8
ORDERS = {
    "stock": Contender("stock", stock="fcfs"),
    "arrival": Contender("arrival", hybrid={"lanes": {"offline": {"order": "arrival"}}}),
    "prefix": Contender("prefix", hybrid={"lanes": {"offline": {"order": "prefix"}}}),
}


@dataclass(frozen=True)
class Run:
    """One order on one device. members: requests of a group; prefixes: all of them together, in pools."""

    device: str
    order: str
    members: int
    prefixes: float

    @property
    def name(self) -> str:
        return f"{self.device} {self.order}"


def requests_of(run: Run) -> list[SimRequest]:
    """All requests, waiting from the beginning."""
    rng, groups = random.Random(SEED), round(run.prefixes * load_device(run.device).kv_tokens / PREFIX_TOKENS)
    members = [group for group in range(groups) for _ in range(run.members)]
    rng.shuffle(members)
    lane = "online" if run.order == "stock" else "offline"  # stock knows no lanes
    requests = []
    for number, group in enumerate(members):
        prompt, output = draw_lengths("gsm8k_test", "auto", rng)
        tokens = PREFIX_TOKENS + prompt
        requests.append(SimRequest(f"r{number}", 0.0, tokens, output, "batch", lane, (group,), PREFIX_TOKENS))
    return requests


def served(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Finished requests per second, prefix hits, and how late anybody was picked."""
    record = simulate(requests_of(run), ORDERS[run.order], load_device(run.device), SETTINGS, seed=SEED)
    done = record.requests
    prompt = sum(r.request.prompt_tokens for r in done)
    started = sorted(range(len(done)), key=lambda i: (done[i].scheduled_s, i))
    latest = max((place - (older + 1) * (MOST_PASSED + 1) for place, older in enumerate(started)), default=0)
    found = {
        "requests": len(done),
        "finished_per_s": len(done) / record.end_s,
        "hit_share": sum(r.cached_tokens for r in done) / prompt,
        "prompt_tokens": prompt,
        "output_tokens": sum(r.request.output_tokens for r in done),
        "within_bound": latest <= 0,
        "oldest_s": max(r.scheduled_s or record.end_s for r in done),
        "preemptions": sum(r.preemptions for r in done),
        "policy_errors": record.policy_errors,
    }
    return found, {"cpu_s": record.cpu_s}


def main() -> int:
    given = arguments("prefix_order", __doc__.splitlines()[0], DEVICES)
    members, prefixes = (QUICK_MEMBERS, QUICK_PREFIXES_OF_POOL) if given.quick else (MEMBERS, PREFIXES_OF_POOL)
    devices = DEVICES[1:] if given.quick else tuple(given.only or DEVICES)
    runs = [Run(device, order, members, prefixes) for device in devices for order in ORDERS]
    watch = Stopwatch()
    outcomes = run_all(served, runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    timing = {run.name: spent for run, (_, spent) in zip(runs, outcomes, strict=True)}
    print(f"Offline requests with shared prefixes, {members} to a prefix, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(run, results) for run in runs]))
    told = {"seed": SEED, "prefix_tokens": PREFIX_TOKENS, "members": members, "prefixes_of_pool": prefixes}
    checks = [check for device in devices for check in _checks(device, results, given.quick)]
    return finish(given, told | {"runs": results}, {"wall_s": watch.seconds, "runs": timing}, checks)


def _row(run: Run, results: Mapping[str, Any]) -> dict[str, str]:
    found = results[run.name]
    gain = found["finished_per_s"] / results[f"{run.device} arrival"]["finished_per_s"]
    return {
        "device": run.device,
        "order": run.order,
        "requests": str(found["requests"]),
        "finished/s": f"{found['finished_per_s']:.1f}",
        "x arrival": f"{gain:.2f}",
        "prefix hits": f"{found['hit_share']:.1%}",
        "preempted": str(found["preemptions"]),
    }


def _checks(device: str, results: Mapping[str, Any], quick: bool) -> list[Check]:
    arrival, prefix = (results[f"{device} {order}"] for order in ("arrival", "prefix"))
    gain = prefix["finished_per_s"] / arrival["finished_per_s"]
    least = 1.0 if quick else LEAST_GAIN  # the quick load is too small for the claim
    hits = f"{arrival['hit_share']:.1%} -> {prefix['hit_share']:.1%}"
    return [
        Check(f"{device}: finished requests/s, prefix / arrival", f"{gain:.2f}", f"at least {least:g}", gain >= least),
        Check(f"{device}: prefix hits", hits, "more", prefix["hit_share"] > arrival["hit_share"]),
        Check(
            f"{device}: nobody is picked later than the bound",
            str(prefix["within_bound"]),
            f"after (older + 1) * {MOST_PASSED + 1} picks",
            bool(prefix["within_bound"]),
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
