"""What every stage is given: the device, its ceilings, the time that is left, and a file per result.

A result is on disk the moment it is there: the machine may be taken away, or the command killed, at any time. A
rehearsal runs the same code at tiny shapes on a CPU, kernels in Triton's interpreter, so that a typo does not cost
device time.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.gpu.clock import Clock, Timing

SCHEMA = 1


class Skip(Exception):
    """A stage does not run here; the message says why."""


@dataclass(slots=True)
class Bench:
    device: torch.device
    out: Path
    deadline_s: float
    """On the monotonic clock."""

    rehearsal: bool = False
    graphs: bool = True
    ceilings: dict[str, float] = field(default_factory=dict)
    """copy_gbs, matmul_tflops: measured on this card, in this run."""

    @property
    def clock(self) -> Clock:
        return Clock(self.device, self.graphs)

    def time_left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    @property
    def multiprocessors(self) -> int:
        return torch.cuda.get_device_properties(self.device).multi_processor_count if self.device.type == "cuda" else 2

    def free_bytes(self) -> int:
        """Memory that a stage may plan with."""
        return torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 1 << 24

    def write(self, name: str, **content: Any) -> Path:
        """Write (or write again) the result file of a stage."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{name}.json"
        body = {"schema": SCHEMA, "environment": environment(self), "ceilings": self.ceilings, **content}
        path.with_suffix(".part").write_text(json.dumps(body, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
        return path

    def row(
        self, key: dict[str, Any], timing: Timing, nbytes: float, flops: float, predicted_ms: float | None = None
    ) -> dict[str, Any]:
        """One measured point beside its floor. nbytes and flops are the least that the task needs."""
        row = {**key, **asdict(timing), "bytes": int(nbytes), "flops": int(flops)}
        if self.ceilings:
            floor_ms = max(nbytes / self.ceilings["copy_gbs"] / 1e6, flops / self.ceilings["matmul_tflops"] / 1e9)
            row["share"] = round(floor_ms / timing.ms, 4)
            row["predicted_ms"] = round(floor_ms if predicted_ms is None else predicted_ms, 6)
        return row


def environment(bench: Bench) -> dict[str, Any]:
    """Where a figure comes from."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "graphs": bench.clock.graphs,
        "rehearsal": bench.rehearsal,
        "plan": os.environ.get("VP_PLAN"),
        "commit": _output("git", "rev-parse", "HEAD"),
    }
    if bench.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(bench.device)
        asked = "driver_version,clocks.sm,clocks.mem,temperature.gpu"
        found["driver_sm_mhz_mem_mhz_celsius"] = _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    return found


def _output(*command: str) -> str | None:
    """What a command prints; None where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
