"""What a GPU can show, stages in order of value; `make gpu` runs this.

    python -m benchmarks.gpu [--out DIR] [--budget-s 540] [--stages NAME,...] [--rehearse]

Without a CUDA device it says so in one line and ends with 0. Each stage writes its JSON the moment it is done, one
that misses what it needs says why, and one that fails does not stop those after it (the exit code is then 1).
`--rehearse` runs all of it on the CPU at tiny shapes: do that before device time is spent. The order, and how to read
it: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

# In order of value. Each is imported when it is due: Triton reads its environment at import, and vLLM may be missing.
STAGES = {
    "ceilings": "benchmarks.gpu.ceilings",
    "kernel-checks": "benchmarks.gpu.kernel_checks",
    "kernel-times": "benchmarks.gpu.kernel_times",
    "steps": "benchmarks.gpu.step_grid",
    "half-blocks": "benchmarks.gpu.half_blocks",
    "engine": "benchmarks.gpu.engine_runs",
}


def stage_names(text: str) -> list[str]:
    """The stages named in `text`, in the order in which they run."""
    if unknown := set(text.split(",")) - STAGES.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(STAGES)}")
    return [name for name in STAGES if name in text.split(",")]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("OUT", "benchmarks/results/gpu"))
    parser.add_argument("--out", type=Path, default=default, help="folder of the results (%(default)s, or $OUT)")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds for all stages together (%(default)s)")
    parser.add_argument("--stages", type=stage_names, default=list(STAGES), help=f"some of {', '.join(STAGES)} (all)")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, kernels interpreted")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    try:
        import torch
    except ImportError:
        print("make gpu: nothing to do, torch is not installed")
        return 0
    if not args.rehearse and not torch.cuda.is_available():
        print("make gpu: nothing to do, there is no CUDA device")
        return 0
    return run_stages(args)


def run_stages(args: argparse.Namespace) -> int:
    """Run the stages asked for; 1 if one of them failed."""
    import torch

    from benchmarks.gpu.bench import Bench, Skip

    device = torch.device("cpu" if args.rehearse else "cuda")
    bench = Bench(device, args.out, time.monotonic() + args.budget_s, rehearsal=args.rehearse)
    outcome: dict[str, str] = {}
    for name in args.stages:
        begin = time.monotonic()
        print(f"{name}: {bench.time_left_s():.0f} s left", flush=True)
        try:
            if bench.time_left_s() <= 0:
                raise Skip("the time is used up")
            import_module(STAGES[name]).run(bench)
            outcome[name] = "done"
        except Skip as reason:
            outcome[name] = f"skipped: {reason}"
        except Exception:
            outcome[name] = f"failed: {traceback.format_exc()}"
        print(f"{name}: {outcome[name]} after {time.monotonic() - begin:.0f} s", flush=True)
        bench.write("stages", stages=outcome)
    return int(any(result.startswith("failed") for result in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
