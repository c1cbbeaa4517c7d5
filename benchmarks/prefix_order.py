"""What the order of offline requests is worth where they share prefixes: arrival against prefix order.

    python -m benchmarks.prefix_order [--quick] [--only DEVICE ...] [--check] [--workers N] [--out FILE]

Groups of offline requests share a few-shot prefix of 1,000 tokens; question and answer have GSM8K's lengths; members of
all groups are there from the beginning, mixed at random, more than are served in the time.  The prefixes together are
several times the device's KV pool, so that few are found again in order of arrival.  Same engine, same scheduler
(`hybrid`), `lanes.offline.order` alone differs; stock vLLM is there too.  What the load leaves to win at most is
computed beside (`ceiling`).
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from vllm_hybrid.policy.prefix_order import MOST_PASSED
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate
from vllm_hybrid.sim.suites.sources import draw_lengths

DEVICES = ("h100_llama31_8b_bf16", "a100_llama2_7b_fp16")
PREFIX_TOKENS = 1_000
GROUPS, MEMBERS = 2_000, 16
QUICK_GROUPS, QUICK_MEMBERS = 400, 4
WINDOW_S, QUICK_WINDOW_S = 200.0, 30.0
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
    """One order on one device. members: requests of a group; window_s: how long they are served."""

    device: str
    order: str
    groups: int
    members: int
    window_s: float = WINDOW_S

    @property
    def name(self) -> str:
        return f"{self.device} {self.order}"


def requests_of(run: Run) -> list[SimRequest]:
    """All requests, waiting from the beginning."""
    rng = random.Random(SEED)
    members = [group for group in range(run.groups) for _ in range(run.members)]
    rng.shuffle(members)
    lane = "online" if run.order == "stock" else "offline"  # stock knows no lanes
    requests = []
    for number, group in enumerate(members):
        prompt, output = draw_lengths("gsm8k_test", "auto", rng)
        tokens = PREFIX_TOKENS + prompt
        requests.append(SimRequest(f"r{number}", 0.0, tokens, output, "batch", lane, (group,), PREFIX_TOKENS))
    return requests


def ceiling(run: Run) -> float:
    """About the most that prefix order can be worth: finished requests per second, relative to order of arrival.

    Steady states of full steps. In order of arrival as much of the prefixes is found as the pool holds of all; in
    prefix order all but one of a group find it, and every slot is used.
    """
    device, requests = load_device(run.device), requests_of(run)
    output = statistics.fmean(r.output_tokens for r in requests)
    own = statistics.fmean(r.prompt_tokens for r in requests) - PREFIX_TOKENS
    held = min(SETTINGS.max_seqs, int(device.kv_tokens / (PREFIX_TOKENS + own + output / 2)))
    lost = max(0.0, 1 - device.kv_tokens / (run.groups * PREFIX_TOKENS))
    context = round(PREFIX_TOKENS + own + output / 2)

    def finished_per_s(decodes: int, prompt_tokens: float) -> float:
        fit = int(SETTINGS.step_tokens / (1 + prompt_tokens / output))  # decodes, and the prompts that replace them
        decodes = min(decodes, fit)
        chunk = round(decodes / output * prompt_tokens)
        return decodes / output / device.step_seconds([(chunk, 0)], [context] * decodes)

    arrival = finished_per_s(held, own + lost * PREFIX_TOKENS)
    return finished_per_s(SETTINGS.max_seqs, own + PREFIX_TOKENS / run.members) / arrival


def served(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Finished requests per second, prefix hits, and how late anybody was picked."""
    device, contender = load_device(run.device), ORDERS[run.order]
    record = simulate(requests_of(run), contender, device, SETTINGS, until_s=run.window_s, seed=SEED)
    everybody = record.requests
    started = [r for r in everybody if r.scheduled_s is not None]
    done = [r for r in started if r.finished_s is not None]
    found = {
        "requests": len(everybody),
        "finished": len(done),
        "finished_per_s": len(done) / run.window_s,
        "hit_share": sum(r.cached_tokens for r in started) / sum(r.request.prompt_tokens for r in started),
        "within_bound": within_bound([r.scheduled_s for r in everybody]),
        "preemptions": sum(r.preemptions for r in started),
        "policy_errors": record.policy_errors,
    }
    return found, {"cpu_s": record.cpu_s}


def within_bound(scheduled_s: Sequence[float | None]) -> bool:
    """Whether nobody was picked, or waits still, after more picks than the bound allows; the oldest stands first."""
    picked = sorted((s, older) for older, s in enumerate(scheduled_s) if s is not None)
    places = {older: place for place, (_, older) in enumerate(picked)}
    return all(places.get(older, len(picked)) <= (older + 1) * (MOST_PASSED + 1) for older in range(len(scheduled_s)))


def main() -> int:
    given = arguments("prefix_order", __doc__.splitlines()[0], DEVICES)
    groups, members, window_s = GROUPS, MEMBERS, WINDOW_S
    if given.quick:
        groups, members, window_s = QUICK_GROUPS, QUICK_MEMBERS, QUICK_WINDOW_S
    devices = DEVICES[1:] if given.quick else tuple(given.only or DEVICES)
    runs = [Run(device, order, groups, members, window_s) for device in devices for order in ORDERS]
    watch = Stopwatch()
    outcomes = run_all(served, runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    timing = {run.name: spent for run, (_, spent) in zip(runs, outcomes, strict=True)}
    ceilings = {run.device: ceiling(run) for run in runs if run.order == "prefix"}
    print(f"{groups} prefixes with {members} requests each, {window_s:g} s, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(run, results, ceilings) for run in runs]))
    told: dict[str, Any] = {
        "seed": SEED,
        "prefix_tokens": PREFIX_TOKENS,
        "groups": groups,
        "members": members,
        "window_s": window_s,
    }
    told |= {"ceilings": ceilings}
    checks = [check for device in devices for check in _checks(device, results, given.quick)]
    return finish(given, told | {"runs": results}, {"wall_s": watch.seconds, "runs": timing}, checks)


def _row(run: Run, results: Mapping[str, Any], ceilings: Mapping[str, float]) -> dict[str, str]:
    found = results[run.name]
    gain = found["finished_per_s"] / results[f"{run.device} arrival"]["finished_per_s"]
    return {
        "device": run.device,
        "order": run.order,
        "finished": str(found["finished"]),
        "finished/s": f"{found['finished_per_s']:.1f}",
        "x arrival": f"{gain:.2f}",
        "(about the most)": f"{ceilings[run.device]:.2f}" if run.order == "prefix" else "-",
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
