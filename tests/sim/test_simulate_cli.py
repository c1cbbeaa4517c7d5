"""`vllm-hybrid simulate` and `report` from the command to the page, on the real scheduler classes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle

TRACE = "when,prompt,output,client\n" + "".join(
    f"{0.2 * i:.1f},{40 + 13 * i % 400},{5 + i % 30},{'ab'[i % 3 == 0]}\n" for i in range(40)
)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    code = "import sys; from vllm_hybrid.cli import main; sys.exit(main())"
    arguments = tuple(map(str, arguments))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def simulate(folder: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    trace = folder / "mine.csv"
    trace.write_text(TRACE)
    columns = "arrival_s=when,prompt_tokens=prompt,output_tokens=output"
    return command(
        *("simulate", "--trace", trace, "--columns", columns, "--device", "a10g_llama2_7b"),
        *("--slo", "ttft_s=1,tbt_s=.2", "--out", out, *more),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulate")


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    result = simulate(folder, folder / "parallel", "--preset", "fcfs,priority,hybrid", "--workers", "2")
    assert result.returncode == 0, result.stderr
    return result


def test_the_table_has_a_row_per_policy_and_the_speed(done: subprocess.CompletedProcess[str]) -> None:
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"fcfs", "priority", "hybrid"} <= rows.keys()
    assert "40/40" in rows["hybrid"]
    assert re.search(r"[\d,]+ steps in .* steps/s per core", done.stdout)


def test_a_record_and_a_timing_per_run(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    names = {path.name for path in (folder / "parallel").iterdir()}
    assert {
        f"mine-{p}-seed0.{kind}" for p in ("fcfs", "priority", "hybrid") for kind in ("json", "timing.json")
    } == names
    record = json.loads((folder / "parallel" / "mine-hybrid-seed0.json").read_text())
    assert record["completed"] == 40
    assert record["policy"]["errors"] == 0
    assert [client["client"] for client in record["clients"]] == ["a", "b"]
    assert not [key for key in record if "wall" in key or "cpu" in key]


def test_the_same_seed_gives_the_same_bytes_however_many_workers(
    done: subprocess.CompletedProcess[str], folder: Path
) -> None:
    again = simulate(folder, folder / "alone", "--preset", "fcfs,hybrid", "--workers", "1")
    assert again.returncode == 0, again.stderr
    for name in ("mine-fcfs-seed0.json", "mine-hybrid-seed0.json"):
        assert (folder / "alone" / name).read_bytes() == (folder / "parallel" / name).read_bytes()


def test_the_report_is_one_page_that_fetches_nothing(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    page = folder / "report.html"
    result = command("report", folder / "parallel", "-o", page)
    assert result.returncode == 0, result.stderr
    html = page.read_text()
    assert html.count("<svg") == 2
    assert "<td>priority</td>" in html
    assert not re.search(r"""(src|href)=["'](https?:)?//|<script|@import|url\(http""", html)


def test_no_worker_outlives_a_sweep_that_was_killed(tmp_path: Path) -> None:
    code = "import sys; from vllm_hybrid.cli import main; sys.exit(main())"
    seeds = ",".join(map(str, range(40)))
    arguments = ("--workload", "overload", "--device", "a10g_llama2_7b", "--preset", "fcfs", "--seeds", seeds)
    arguments += ("--duration", "60")  # a run that is under way is finished
    sweep = subprocess.Popen(
        [sys.executable, "-c", code, "simulate", *arguments, "--out", tmp_path, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    group = sweep.pid
    while not any(tmp_path.iterdir()):
        assert sweep.poll() is None
        time.sleep(0.1)
    sweep.kill()
    sweep.wait()
    with pytest.raises(ProcessLookupError):
        while True:
            os.killpg(group, 0)  # raises when nobody is left in the group
            time.sleep(0.1)


def test_a_run_that_fails_is_named_and_takes_no_other_with_it(tmp_path: Path) -> None:
    """Half the pool is too little for the longest request, and only one contender is given half of it."""
    from vllm_hybrid.sim.device import load_device
    from vllm_hybrid.sim.measure import Slo
    from vllm_hybrid.sim.records import Contender, EngineSettings, SimRequest
    from vllm_hybrid.sim.sweep import Job, Load, Outcome, SweepError, sweep

    load = Load("one", 0, [SimRequest("r0", 0.0, 900, 90)])
    who = [Contender("small", stock="fcfs", engine={"pool_tokens": 512}), Contender("whole", stock="fcfs")]
    device = load_device("a10g_llama2_7b")
    jobs = [Job(load, each, device, EngineSettings(pool_tokens=1024), Slo()) for each in who]
    kept: list[Outcome] = []
    with pytest.raises(SweepError, match=r"^one-small-seed0: SimError: request r0: .*pool of 512$"):
        sweep(jobs, workers=1, on_outcome=kept.append)
    assert [outcome.name for outcome in kept] == ["one-whole-seed0"]
