"""`vllm-hybrid profile`: from a model and an SLO to the two files a server is started with.

Measures the engine on this machine, writes `profile.json`, searches with the user's trace the settings that keep the
SLO, and writes `hybrid.yaml`, which names the profile. Without a trace nothing is searched: `hybrid.yaml` then holds
the targets that were given in seconds, as they are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_FAILED, _BAD_INPUT = 1, 2
PROFILE_FILE, SETTINGS_FILE, PLOT_FILE = "profile.json", "hybrid.yaml", "profile.png"


def add_commands(commands: Any) -> None:
    """Add the sub-command."""
    profile = commands.add_parser("profile", help="measure this engine and find the settings that keep an SLO")
    profile.add_argument("--model", required=True, help="as for vllm serve")
    profile.add_argument("--slo", required=True, metavar="METRIC=LIMIT,...", help="e.g. ttft_p99=2,tbt_p99=0.1")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="CSV or JSONL of the load the SLO must hold for")
    profile.add_argument("--engine", default="", metavar="KEY=VALUE,...", help="engine arguments, e.g. dtype=float16")
    profile.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where the files go (%(default)s)")
    profile.set_defaults(run=profile_command)


def profile_command(given: argparse.Namespace) -> int:
    """Measure, fit, search, write."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from tqdm import tqdm

    from vllm_hybrid.profile.fit import fitted
    from vllm_hybrid.profile.measure import measure
    from vllm_hybrid.profile.search import search, workload
    from vllm_hybrid.profile.target import TargetError, parse
    from vllm_hybrid.workload import TraceError, load_trace

    try:
        targets = parse(given.slo)
        rows = load_trace(given.trace) if given.trace else None
        if rows is None and any(target.relative for target in targets):
            raise TargetError(f"--slo {given.slo}: a relative limit needs --trace")
        engine = yaml.safe_load("{" + given.engine.replace("=", ": ") + "}")
    except (TargetError, TraceError, yaml.YAMLError) as error:
        print(f"vllm-hybrid profile: {error}", file=sys.stderr)
        return _BAD_INPUT
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        measured = measure(given.model, engine, lambda points: tqdm(points, "measuring", unit="batch"))
        profile = fitted(measured)
        (given.out / PROFILE_FILE).write_text(profile.model_dump_json(by_alias=True, indent=1) + "\n")
        _say_profile(profile)
        if rows is None:
            return _write_settings(given.out, _limit(targets, "ttft"), _limit(targets, "tbt"))
        found = search(profile, workload(rows, profile), targets, lambda steps: tqdm(list(steps), "searching"))
    except ValueError as error:
        print(f"vllm-hybrid profile: {error}", file=sys.stderr)
        return _FAILED
    _say_search(found)
    _plot(found, given.out / PLOT_FILE)
    if found.best is None:
        print("no setting keeps the SLO: online work alone is too much for it, or its limits are too tight")
        return _FAILED
    return _write_settings(given.out, found.ttft_s, found.best.tbt_s)


def _limit(targets: Sequence[Any], what: str) -> float | None:
    """The tightest limit on TTFT or on gaps."""
    return min((target.limit for target in targets if target.metric.startswith(what)), default=None)


def _write_settings(folder: Path, ttft_s: float | None, tbt_s: float | None) -> int:
    """`hybrid.yaml` with the targets to aim at."""
    from vllm_hybrid.profile.search import online_targets

    online = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in online_targets(ttft_s, tbt_s).items()}
    path = folder / SETTINGS_FILE
    path.write_text(yaml.safe_dump({"profile": PROFILE_FILE, "slo": {"online": online}}, sort_keys=False))
    print(f"\nwritten: {path} and {folder / PROFILE_FILE}; use them with")
    print(f"  vllm serve MODEL --scheduler hybrid --hybrid-config {path}")
    return 0


def _say_profile(profile: Any) -> None:
    print(f"\n{profile.model} ({profile.dtype}) on {profile.hardware}, vLLM {profile.vllm}")
    errors = ", ".join(f"{name} {error:.1%}" for name, error in profile.errors.items())
    print(f"{len(profile.samples)} steps; mean error on steps not fitted: {errors}")


def _say_search(found: Any) -> None:
    metrics = list(found.limits)
    print("\n" + _row("tbt_s aimed at", [*metrics, "offline tokens/s", "SLO"]))
    print(_row("limit", [f"{found.limits[m]:.4g}" for m in metrics]))
    print(_row("online alone", [f"{found.alone[m]:.4g}" for m in metrics]))
    for trial in found.trials:
        values = [f"{trial.metrics[m]:.4g}" for m in metrics]
        verdict = "taken" if trial is found.best else "kept" if trial.keeps else "broken"
        print(_row(f"{trial.tbt_s:.4g}", [*values, f"{trial.offline_tokens_per_s:.1f}", verdict]))


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<16}" + "".join(f"{cell:>18}" for cell in cells)


def _plot(found: Any, path: Path) -> None:
    """Metrics over their limits and offline tokens/s against the setting; none where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (vllm-hybrid[bench])")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(7, 4))
    tbt_ms = [1000 * trial.tbt_s for trial in found.trials]
    for metric, limit in found.limits.items():
        left.plot(tbt_ms, [trial.metrics[metric] / limit for trial in found.trials], marker="o", label=metric)
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set(xlabel="slo.online.tbt_s aimed at (ms)", ylabel="metric / its limit", xscale="log")
    left.legend(loc="upper left")
    right = left.twinx()
    right.plot(tbt_ms, [trial.offline_tokens_per_s for trial in found.trials], color="grey", linestyle="--")
    right.set_ylabel("offline tokens/s (dashed)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
