"""Deficit round robin with output tokens charged afterwards (MDRR of the VTC artifact, arXiv 2401.00588).

The clients that wait stand in a ring. At its turn a client whose deficit is not positive is granted a quantum; it is
served while the deficit is positive, and then the ring turns. A prompt is charged at admission, output tokens as they
are generated, which may leave a debt that later rounds pay off. A request that does not fit keeps its client at the
front of the ring and ends the admissions; if the client runs into debt meanwhile, its turn is over.

Different from the artifact: as in classical DRR a client whose queue empties loses its unused deficit (there it is
kept, less than a quantum); prompts are charged as they are computed, each token once, with what is admitted but not
computed yet added (as in `policy/fairness.py`), and the debt of a client that left is forgotten among very many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Generator, Mapping

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import Parent, VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.lengths import OutputLengths
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView

_QUANTA_PER_POOL = 20


class Deficits(VirtualCounters):
    """What each client was granted and has received; the counters are the service received, never lifted."""

    __slots__ = ("granted", "ring")

    def __init__(
        self,
        input_price: float,
        output_price: float,
        weights: Mapping[str, float],
        groups: Mapping[str, str] | None = None,
        lengths: OutputLengths | None = None,
    ) -> None:
        super().__init__(input_price, output_price, weights, groups, lengths)
        self.granted: dict[ClientKey, float] = {}
        self.ring: deque[ClientKey] = deque()  # clients that wait or owe

    def deficit(self, key: ClientKey) -> float:
        """What the client may still receive; negative: its debt."""
        return self.granted.get(key, 0.0) - self.value(key)

    def void(self, key: ClientKey, promised: float) -> None:
        """The client's queue is empty: what it did not use is lost, what it owes is not."""
        self.granted[key] = min(self.granted.get(key, 0.0), self.value(key) + promised)

    def lift(self, key: ClientKey, smallest_waiting: float | None) -> None:
        """Counters are not compared between clients."""

    def forget_idle(self, busy: Container[ClientKey], smallest_waiting: Mapping[Parent, float | None]) -> None:
        """Drop the accounts of clients that are gone and owe nothing to the ring."""
        kept = set(self.ring)
        for key in [key for key in self.values if key not in busy and key not in kept]:
            del self.values[key]
            self.granted.pop(key, None)


class RoundRobin:
    """The ring's order of admission. quantum: None for a twentieth of the pool's tokens."""

    def __init__(self, deficits: Deficits, quantum: float | None) -> None:
        self._deficits = deficits
        self._quantum = quantum
        self._misfit: ClientKey | None = None  # its request did not fit when the admissions last ended

    def __call__(self, view: StepView) -> Generator[RequestView, None, None]:
        """Requests in the order of the ring."""
        yield from view.waiting.resuming(Lane.ONLINE)
        ring, deficits = self._deficits.ring, self._deficits
        promised = Groups.of(view.running).promised(deficits)
        known = set(ring)
        ring.extend(key for key in view.waiting.clients(Lane.ONLINE) if key not in known)
        lines = {key: view.waiting.newcomers(key) for key in ring}
        quantum = self._quantum or view.total_blocks * view.block_tokens / _QUANTA_PER_POOL
        while lines:
            key = ring[0]
            if key == self._misfit and deficits.deficit(key) - promised.get(key, 0.0) < 0:
                self._misfit = None
                ring.rotate(-1)
                continue
            if deficits.deficit(key) - promised.get(key, 0.0) <= 0:
                deficits.granted[key] = deficits.granted.get(key, 0.0) + quantum
            while deficits.deficit(key) - promised.get(key, 0.0) > 0:
                request = next(lines[key], None) if key in lines else None
                if request is None:
                    lines.pop(key, None)
                    break
                self._misfit = key
                yield request
                self._misfit = None
                if view.admitted_tokens(request):
                    promised[key] = promised.get(key, 0.0) + deficits.cost(key, request.missing_tokens, 0)
            ring.rotate(-1)
            if not view.waiting.waits(key) and not self._owes(key, promised.get(key, 0.0)):
                ring.remove(key)
                lines.pop(key, None)

    def _owes(self, key: ClientKey, promised: float) -> bool:
        """The client's queue is empty: whether it stays in the ring for its debt."""
        self._deficits.void(key, promised)
        return self._deficits.deficit(key) < promised


class DrrPlanner(BatchPlanner):
    """Deficit round robin on Sarathi's batch."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        assert isinstance(counters, Deficits)
        super().__init__(RoundRobin(counters, config.presets.drr.quantum))
