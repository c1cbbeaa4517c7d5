"""From the points of a step grid to a device of the simulator, and how far it and the step-time predictor are off.

    python -m benchmarks.gpu.device_file steps_MODEL.json [...]

Writes `device_MODEL.json`, a `table` device (docs/devices.md), and `device_error_MODEL.json`: the mean absolute error
over the mixed steps of that table, which has not seen them, and of the predictor's linear model, fitted to every
second one and held against the others. Needs no GPU, so the points of a machine that lacks pydantic are turned into a
device elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import MODELS, Shape

CARD_BYTES = 139 * 2**30
MEMORY_SHARE = 0.9
RESERVED_BYTES = 4e9  # activations and the engine's own buffers


def kv_tokens(shape: Shape) -> int:
    """Tokens of KV beside the weights on one card."""
    free = CARD_BYTES * MEMORY_SHARE - shape.weight_bytes - RESERVED_BYTES
    return int(free / (shape.layers * shape.kv_token_bytes))


def table_device(measured: dict[str, Any]) -> dict[str, Any]:
    """The device file; a KeyError or an empty curve means that the run was cut before these points."""
    shape, environment = MODELS[measured["model"]], measured["environment"]
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in measured["rows"]:
        by_part.setdefault(row["part"], []).append(row)
    decodes = sorted({row["B"] for row in by_part["decode"]})
    rows = [
        {"decodes": n, "context": _curve((r["ctx"], r["ms"]) for r in by_part["decode"] if r["B"] == n)}
        for n in decodes
    ]
    card = environment.get("gpu", "CPU rehearsal")
    graphs = "on" if environment["graphs"] else "off"
    notes = (
        f"{card}, {shape.name} shapes with random bf16 weights, torch {environment['torch']}, CUDA graphs {graphs},"
        f" attention {measured['attention']}; elementwise kernels not fused. Pool: 90 % of memory less weights, 4 GB."
    )
    return {
        "schema": 1,
        "kind": "table",
        "name": f"h200_{shape.name.replace('-', '_').replace('.', '')}_bf16",
        "kv_tokens": kv_tokens(shape),
        "source": f"benchmarks/gpu, commit {environment['commit']}",
        "licence": "Apache-2.0",
        "notes": notes,
        "layers": shape.layers,
        "dense": _curve((row["T"], row["model_ms"]) for row in by_part["dense"]),
        "sequences": _curve((row["sequences"], row["ms"]) for row in by_part["head"]),
        "attention": {
            "kind": "additive",
            "prefill": _curve((row["P"], row["ms"]) for row in by_part["prefill"]),
            "decode": rows,
        },
    }


def _curve(points: Iterable[tuple[int, float]]) -> dict[str, list[float]]:
    ordered = sorted(points)
    return {"at": [at for at, _ in ordered], "us": [round(ms * 1e3, 3) for _, ms in ordered]}


def errors(measured: dict[str, Any], device_path: Path) -> dict[str, Any]:
    """Mean absolute relative errors over the mixed steps, output head left out on both sides."""
    from vllm_hybrid.policy.latency import StepWork
    from vllm_hybrid.sim.device import load_device
    from vllm_hybrid.sim.device_fit import fit_step_linear

    device = load_device(str(device_path))
    head_s = device.sequences  # type: ignore[attr-defined]
    samples: list[tuple[StepWork, float]] = []
    table_errors = []
    for row in (row for row in measured["rows"] if row["part"] == "step"):
        chunks = [(row["P"], row["before"])] if row["P"] else []
        seconds = row["model_ms"] / 1e3
        table_s = device.step_seconds(chunks, [row["ctx"]] * row["B"]) - head_s(row["B"] + len(chunks)) * 1e-6
        table_errors.append(abs(table_s / seconds - 1))
        pairs = sum(tokens * (before + tokens / 2) for tokens, before in chunks)
        work = StepWork(row["B"], row["P"], float(row["B"] * row["ctx"]), pairs, len(chunks))
        samples.append((work, seconds))
    # The seen and the unseen half interleave over the whole grid.
    fitted = fit_step_linear(samples[::2] if len(samples) >= 40 else samples, name="predictor")
    unseen = samples[1::2] if len(samples) >= 40 else samples
    linear = [abs(_linear_seconds(fitted, work) / seconds - 1) for work, seconds in unseen]
    return {
        "schema": 1,
        "model": measured["model"],
        "steps": len(samples),
        "table_mape": sum(table_errors) / len(table_errors),
        "table_worst": max(table_errors),
        "predictor_mape": sum(linear) / len(linear),
        "predictor_worst": max(linear),
        "predictor_seen_apart": len(samples) >= 40,
    }


def _linear_seconds(device: Any, work: Any) -> float:
    coefficients = device.constant_s, device.decode_s, device.prefill_token_s, device.decode_context_token_s
    return sum(c * x for c, x in zip((*coefficients, device.pair_s), work.features(), strict=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="+", type=Path, help="steps_MODEL.json of a run")
    for path in parser.parse_args(arguments).points:
        measured = json.loads(path.read_text())
        name = measured["model"]
        device_path = path.with_name(f"device_{name}.json")
        try:
            device_path.write_text(json.dumps(table_device(measured), indent=1) + "\n")
            found = errors(measured, device_path)
        except ImportError as missing:
            print(f"  {name}: no device check here ({missing}); run this module on {path.name} where it is installed")
            continue
        path.with_name(f"device_error_{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"  {name}: {found['steps']} mixed steps, mean error of the table {found['table_mape']:.1%},"
            f" of the predictor {found['predictor_mape']:.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
