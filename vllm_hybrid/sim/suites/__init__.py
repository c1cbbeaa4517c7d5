"""The workloads of the published experiments, and mixes of tenants of our own, as lists of requests.

A workload is a pure function of its seed and parameters: every policy of a comparison gets the same list, sorted by
arrival.  `make_workload(name, seed, **parameters)` is the one door; `workload_names` and `WORKLOADS` say what there is.
Traces are not part of the package (`sources.py`): a workload that has no statistical twin raises `MissingDataError`
where its file is not there.
"""

from vllm_hybrid.sim.suites.registry import WORKLOADS, Suite, WorkloadError, make_workload, workload_names
from vllm_hybrid.sim.suites.sources import MissingDataError

__all__ = ["WORKLOADS", "MissingDataError", "Suite", "WorkloadError", "make_workload", "workload_names"]
