"""The kernels compile for sm_90 as they are launched there, into Hopper's own matrix instructions and without spills.

The interpreter accepts what the compiler refuses, so this is the nearest to a GPU that a machine without one comes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_kernel_compiles_for_hopper_without_spills(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_report", "--model", "opt-6.7b", "--out", str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    kernels = {report["kernel"]: report for report in json.loads(out.read_text())["kernels"]}
    assert len(kernels) == 9
    for name, report in kernels.items():
        counts = report["instructions"]
        assert report["stack_bytes"] == counts["LDL"] == counts["STL"] == 0, f"{name} spills"
        if name.startswith(("scores", "values", "fp8_decode")):
            assert counts["HGMMA"] > 0 and counts["HMMA"] == 0, f"{name} runs on the older matrix path"
