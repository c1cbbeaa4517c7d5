"""What all paper benchmarks share: runs on all cores, a table, checks with their tolerances, a file of results.

The file is decided by the seed alone; what the machine's clock said goes to `*.timing.json` beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from vllm_hybrid.sim.results import text_of
from vllm_hybrid.sim.statistics import tidy

RESULTS = Path(__file__).resolve().parents[1] / "results"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Check:
    """One claim: what was measured, what was wanted, whether it holds."""

    name: str
    measured: str
    wanted: str
    holds: bool


def arguments(name: str, description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """The command line of a paper benchmark. parts: what it can be limited to."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a tolerance fails")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    if parts:
        part.add_argument("--only", choices=parts, nargs="+", metavar="PART", help=f"some of {', '.join(parts)}")
    of_all = f"file of the results (benchmarks/results/{name}.json; none of a part)"
    parser.add_argument("--out", type=Path, help=of_all)
    given = parser.parse_args()
    is_part = given.quick or (parts and given.only)
    if given.out is None and not is_part:
        given.out = RESULTS / f"{name}.json"
    return given


def run_all(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """`function` of every item, in the items' order; the processes come from one that has imported vLLM."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its notes on every configuration hide the progress bar
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm_hybrid.sim.loop"])
    with ProcessPoolExecutor(min(workers, len(items)), context, _prepare) as pool:
        try:
            futures = [pool.submit(function, item) for item in items]
            return [future.result() for future in tqdm(futures, unit="run", disable=None)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare() -> None:
    """There is a worker for each core already."""
    import torch

    torch.set_num_threads(1)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Aligned columns under their names; the first one to the left."""
    names = list(rows[0])
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = [{name: name for name in names}, *rows]
    return "\n".join(
        "  ".join(
            f"{line[n]:<{width[n]}}" if i == 0 else f"{line[n]:>{width[n]}}" for i, n in enumerate(names)
        ).rstrip()
        for line in lines
    )


def check_lines(checks: Iterable[Check]) -> str:
    return "\n".join(
        f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.measured} (wanted: {check.wanted})"
        for check in checks
    )


def finish(
    given: argparse.Namespace, results: Mapping[str, Any], timing: Mapping[str, Any], checks: Sequence[Check]
) -> int:
    """Write the results, print the checks, and return the exit status."""
    print("\n" + check_lines(checks))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text_of(tidy({**results, "checks": {c.name: _without_name(c) for c in checks}})))
        timing_of(given.out).write_text(text_of(tidy(timing)))
        print(f"\nwritten: {os.path.relpath(given.out)}")
    return int(given.check and not all(check.holds for check in checks))


def timing_of(out: Path) -> Path:
    """The file beside a file of results that holds what the machine's clock said."""
    return out.with_name(f"{out.stem}.timing.json")


def _without_name(check: Check) -> dict[str, Any]:
    return {key: value for key, value in asdict(check).items() if key != "name"}


class Stopwatch:
    """Wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self._begin_s = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin_s
