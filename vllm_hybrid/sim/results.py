"""The record of a run as a file: what was run, its figures, and the few series that its plots need.

`NAME.json` holds what the seed decides and is the same byte for byte wherever it is run; `NAME.timing.json` beside it
holds what this machine's clock said. A folder of records is all that a report needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_hybrid import __version__
from vllm_hybrid.sim.answers import answers_of, end_of
from vllm_hybrid.sim.drift import curves, services
from vllm_hybrid.sim.measure import SCHEMA, measure
from vllm_hybrid.sim.statistics import tidy

if TYPE_CHECKING:
    from vllm_hybrid.sim.records import RunRecord
    from vllm_hybrid.sim.sweep import Job, Outcome

_QUANTILES = 101  # points of a distribution that a plot draws
_TIMING = ".timing.json"


class ResultsError(ValueError):
    """A folder or file that holds no records: one line that says which and why."""


def record_of(job: Job, run: RunRecord) -> dict[str, Any]:
    """Everything about a run that its seed decides."""
    contender = {
        "name": run.contender.name,
        "stock": run.contender.stock,
        "hybrid": dict(run.contender.hybrid),
        "engine": dict(run.contender.engine),
    }
    return {
        "schema": SCHEMA,
        "name": job.name,
        "workload": job.load.name,
        "seed": job.load.seed,
        "contender": contender,
        "device": job.device.name,
        "settings": asdict(run.settings),
        "until_s": job.until_s,
        "vllm_hybrid": __version__,
        **measure(run, job.slo, warmup_s=job.warmup_s, weights=job.weights),
        "distributions": _distributions(run, job.warmup_s),
        "service": tidy(curves(services(answers_of(run), job.weights), end_of(run))),
    }


def _distributions(run: RunRecord, warmup_s: float) -> dict[str, Any]:
    """Quantiles 0, 1, ... 100 % of what the plots show, per lane."""
    found: dict[str, Any] = {}
    answers = answers_of(run, warmup_s)
    for lane in ("online", "offline"):
        own = [a for a in answers if a.record.request.lane == lane and not a.record.refused]
        found[lane] = {
            "wait_s": _quantiles([a.wait_s for a in own]),
            "worst_gap_s": _quantiles([a.worst_gap_s for a in own if len(a.gaps_s)]),
            "age_s": _quantiles([a.age_s for a in own]),
        }
    return {lane: tidy(curves) for lane, curves in found.items() if curves["wait_s"]}


def _quantiles(values: list[float]) -> list[float]:
    return [float(f"{q:.5g}") for q in np.quantile(values, np.linspace(0, 1, _QUANTILES))] if values else []


def write(folder: Path, outcome: Outcome) -> Path:
    """Write a record and its timing; returns the record's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.name}.json"
    path.write_text(text_of(outcome.record))
    (folder / f"{outcome.name}{_TIMING}").write_text(text_of(tidy(outcome.timing)))
    return path


def text_of(record: Mapping[str, Any]) -> str:
    """JSON with a line per key; a list of numbers stays on one line, and so does each object in a list."""
    return "\n".join(_lines(record, 0)) + "\n"


def _lines(value: Mapping[str, Any], depth: int) -> list[str]:
    pad = " " * (depth + 1)
    body: list[str] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            inner = _lines(item, depth + 1)
            body += [f"{pad}{json.dumps(str(key))}: {inner[0]}", *inner[1:-1], f"{inner[-1]},"]
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            each = [f"{pad} {json.dumps(element, allow_nan=False)}," for element in item]
            body += [f"{pad}{json.dumps(str(key))}: [", *each[:-1], each[-1].removesuffix(","), f"{pad}],"]
        else:
            body.append(f"{pad}{json.dumps(str(key))}: {json.dumps(item, allow_nan=False)},")
    body[-1:] = [line.removesuffix(",") for line in body[-1:]]
    return ["{", *body, " " * depth + "}"]


def read_all(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(record, timing) of every run in a folder, by file name; the timing is empty where there is none."""
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder")
    paths = [p for p in sorted(folder.glob("*.json")) if not p.name.endswith(_TIMING)]
    if not paths:
        raise ResultsError(f"{folder}: holds no records (*.json); vllm-hybrid simulate --out writes them")
    return [(_read(path), _timing(path)) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(record, dict) or "contender" not in record or "workload" not in record:
        raise ResultsError(f"{path}: is no record of a run (no 'contender' or 'workload' in it)")
    if record.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: schema = {record.get('schema')!r}: must be {SCHEMA}")
    return record


def _timing(path: Path) -> dict[str, Any]:
    beside = path.with_name(path.stem + _TIMING)
    return json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
