"""The GPU suite runs to its end on a CPU at tiny shapes, so that a GPU's first minutes are not lost to a typo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_hybrid.sim.device import load_device


def suite(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    # Whatever device this machine has is hidden: these tests are about machines without one.
    variables = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    result = suite("--out", str(tmp_path))
    assert (result.returncode, result.stdout) == (0, "make gpu: nothing to do, there is no CUDA device\n")
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_runs_the_stages_and_writes_their_results(tmp_path: Path) -> None:
    names = "ceilings", "kernel-checks", "kernel-times", "steps"
    result = suite("--rehearse", "--stages", ",".join(names), OUT=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert stages == dict.fromkeys(names, "done")
    checks = json.loads((tmp_path / "kernel_checks.json").read_text())["rows"]
    assert len(checks) >= 14 and all(row["right"] for row in checks)
    times = json.loads((tmp_path / "kernel_times.json").read_text())
    assert times["complete"] and times["environment"]["rehearsal"] and times["ceilings"]
    kernels = {row["kernel"] for row in times["rows"]}
    assert {"kv decode (sdpa-contiguous)", "hidden decode", "hidden write", "gather + project", "fp8 read"} <= kernels
    # The grid became a device that the simulator takes.
    device = load_device(str(tmp_path / "device_tiny.json"))
    assert device.step_seconds([(8, 0)], [16, 16]) > 0
    error = json.loads((tmp_path / "device_error_tiny.json").read_text())
    assert error["steps"] == 20 and error["predictor_mape"] > 0


@pytest.mark.e2e
def test_the_engine_stage_serves_every_contender_the_same_load(tmp_path: Path) -> None:
    result = suite("--rehearse", "--stages", "engine", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert [row["scheduler"] for row in rows] == ["Scheduler"] * 2 + ["HybridSyncScheduler"] * 2
    done = [{lane: figures["completed"] for lane, figures in row["lanes"].items()} for row in rows]
    assert done == [done[0]] * 4 and min(done[0].values()) > 0


@pytest.mark.e2e
def test_the_half_blocks_stage_holds_both_forms_against_stock(tmp_path: Path) -> None:
    result = suite("--rehearse", "--stages", "half-blocks", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    stock, hidden, fp8 = json.loads((tmp_path / "half_blocks.json").read_text())["rows"]
    assert [row["cache"] for row in (stock, hidden, fp8)] == ["off", "hidden", "fp8"]
    assert hidden["before_the_first_other_token"] == hidden["tokens"] == stock["tokens"]
    assert hidden["max_logprob_difference"] <= 1e-5 < fp8["max_logprob_difference"] < 0.1


def test_what_was_done_is_kept_when_the_time_is_up(tmp_path: Path) -> None:
    result = suite("--rehearse", "--budget-s", "0.001", "--out", str(tmp_path))
    assert result.returncode == 0
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert set(stages.values()) <= {"done", "skipped: the time is used up"} and "skipped" in stages["steps"]


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    result = suite("--rehearse", "--stages", "steps,naps", "--out", str(tmp_path))
    assert result.returncode == 2 and "naps is none of ceilings, kernel-checks" in result.stderr
