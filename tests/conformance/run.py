"""Runs vLLM's own scheduler tests against our scheduler classes.

    python tests/conformance/run.py [--sync MODULE:CLASS] [--async MODULE:CLASS] [pytest arguments]

Every test that vLLM's authors wrote for their scheduler must pass on ours. The list below is what of those tests runs
without a GPU and without a model's weights; the stand-ins under `models/` are found because the tests run in there,
where a name like `facebook/opt-125m` is a path.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from upstream import fetch_tests, fetch_torchvision

HERE = Path(__file__).resolve().parent
STOCK = ("vllm.v1.core.sched.scheduler:Scheduler", "vllm.v1.core.sched.async_scheduler:AsyncScheduler")
OURS = ("vllm_hybrid.engine.scheduler:HybridSyncScheduler", "vllm_hybrid.engine.scheduler:HybridScheduler")
CORE = (
    "core/test_scheduler.py",
    "core/test_async_scheduler.py",
    "core/test_deferred_block_free.py",
    "core/test_priority_preemption_bug.py",
    "core/test_prefix_replay.py",
    "core/test_swa_inflight_window_free.py",
    "core/test_worker_slot_overflow.py",
    "core/test_output.py",
    "streaming_input/test_scheduler_streaming.py",
)
# The states a request passes through when its KV blocks, or its encoder's output, come from another machine.
TRANSFER = (
    "ec_connector/unit/test_ec_transfer_params.py",
    "kv_connector/unit/test_cache_pollution_prevention.py",
    "kv_connector/unit/test_error_propagation.py",
    "kv_connector/unit/test_invalid_blocks_correctness.py",
    "kv_connector/unit/test_kv_load_failure_recovery.py",
    "kv_connector/unit/test_remote_decode_lifecycle.py",
    "kv_connector/unit/test_remote_prefill_lifecycle.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM's own scheduler tests, on other scheduler classes.")
    parser.add_argument("--sync", metavar="MODULE:CLASS", help=f"default: {OURS[0]}")
    parser.add_argument("--async", metavar="MODULE:CLASS", dest="asynchronous", help=f"default: {OURS[1]}")
    parser.add_argument("--stock", action="store_true", help="vLLM's own classes: what the tests say of themselves")
    args, pytest_args = parser.parse_known_args()
    default_sync, default_async = STOCK if args.stock else OURS

    tests, torchvision = fetch_tests(), fetch_torchvision()
    import_paths = [HERE, tests, torchvision, os.environ.get("PYTHONPATH")]
    environment = {
        "PYTHONPATH": os.pathsep.join(str(path) for path in import_paths if path),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-c", str(HERE / "pytest.ini"), f"--rootdir={tests}"),
        *("-p", "swap_scheduler", "-p", "no:cacheprovider", "--timeout=300"),
        f"--sync-scheduler={args.sync or default_sync}",
        f"--async-scheduler={args.asynchronous or default_async}",
        *(str(tests / "tests" / "v1" / name) for name in CORE + TRANSFER),
        *pytest_args,
    ]
    os.chdir(HERE / "models")
    os.execve(sys.executable, command, os.environ | environment)


if __name__ == "__main__":
    main()
