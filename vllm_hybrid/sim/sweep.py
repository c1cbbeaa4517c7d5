"""Many runs over all cores: every workload under every contender, each run measured where it was simulated.

A run is independent of every other, so a sweep is as fast as there are cores, and its records do not depend on how
many there are. Workers come from a server process that has imported vLLM once. What the clock of this machine says
about a run is kept apart from its record. One run that fails does not take the others with it; it is named at the end.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_hybrid.sim.device import Device
    from vllm_hybrid.sim.measure import Slo
    from vllm_hybrid.sim.records import Contender, EngineSettings, RunRecord, SimRequest


class SweepError(RuntimeError):
    """Runs that failed: a line for each, with its name and its error."""


@dataclass(frozen=True)
class Load:
    """One seed of a workload: the same list of requests for all contenders."""

    name: str
    seed: int
    requests: Sequence[SimRequest]


@dataclass(frozen=True)
class Job:
    """One run, and how it is judged; `weights` are the clients' that it should respect."""

    load: Load
    contender: Contender
    device: Device
    settings: EngineSettings
    slo: Slo
    until_s: float | None = None
    warmup_s: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.load.name}-{self.contender.name}-seed{self.load.seed}"


@dataclass(frozen=True)
class Outcome:
    """A run's record, which its seed decides, and what it cost, which the machine decides."""

    name: str
    record: dict[str, Any]
    timing: dict[str, Any]


def run_job(job: Job) -> Outcome:
    """Simulate and measure one run in this process."""
    from vllm_hybrid.sim.results import record_of
    from vllm_hybrid.sim.run import simulate

    run = simulate(
        job.load.requests,
        job.contender,
        job.device,
        job.settings,
        until_s=job.until_s,
        seed=job.load.seed,
    )
    return Outcome(job.name, record_of(job, run), timing_of(run))


def timing_of(run: RunRecord) -> dict[str, Any]:
    """What the run cost on this machine."""
    steps = len(run.steps.seconds)
    return {
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "steps": steps,
        "steps_per_s": steps / run.cpu_s if run.cpu_s else None,
        "simulated_s_per_cpu_s": run.end_s / run.cpu_s if run.cpu_s else None,
    }


def sweep(
    jobs: Sequence[Job], workers: int | None = None, on_outcome: Callable[[Outcome], object] | None = None
) -> list[Outcome]:
    """Run all jobs and return their outcomes in the jobs' order; a progress bar shows steps per second.

    `on_outcome` gets each outcome as soon as it is there, so that an interrupted sweep keeps what it has. Raises
    `SweepError` when everything else is done if a run failed.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    outcomes: dict[int, Outcome] = {}
    failures: dict[int, str] = {}
    for index, result in _results(jobs, workers):
        if isinstance(result, Outcome):
            outcomes[index] = result
            if on_outcome is not None:
                on_outcome(result)
        else:
            failures[index] = f"{jobs[index].name}: {type(result).__name__}: {result}"
    if failures:
        raise SweepError("\n".join(failures[index] for index in sorted(failures)))
    return [outcomes[index] for index in range(len(jobs))]


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Outcome | Exception]]:
    """(index of a job, its outcome or its error), as they come."""
    from tqdm import tqdm

    steps, cpu_s = 0, 0.0
    with tqdm(total=len(jobs), unit="run", disable=None) as bar:
        for index, result in _one_by_one(jobs) if workers <= 1 else _in_parallel(jobs, workers):
            if isinstance(result, Outcome):
                steps, cpu_s = steps + result.timing["steps"], cpu_s + result.timing["cpu_s"]
                bar.set_postfix_str(f"{steps / cpu_s:,.0f} steps/s per core" if cpu_s else "")
            bar.update()
            yield index, result


def _one_by_one(jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome | Exception]]:
    for index, job in enumerate(jobs):
        try:
            yield index, run_job(job)
        except Exception as error:  # collected and raised at the end of the sweep
            yield index, error


def _in_parallel(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Outcome | Exception]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm_hybrid.sim.loop"])
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        futures: dict[Future[Outcome], int] = {pool.submit(run_job, job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future], future.result() if error is None else _plain(error)
        except (KeyboardInterrupt, GeneratorExit):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """One thread, because there is a worker for each core already; and none outlives a parent that was killed."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
