"""What a step computed: who pays for it, what lane it served, and what the predictor learns from it.

Charged are tokens really computed: each prompt token once (`policy/billing.py`), each output token when it is
computed, speculative drafts as computed work. A step in which the same requests decode again is charged per client,
not per request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vllm.v1.request import Request

from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.policy.billing import PromptBilling
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView


@dataclass(slots=True)
class Served:
    """Tokens computed and charged per lane since the last drain."""

    prompt_tokens: list[int] = field(default_factory=lambda: [0, 0])
    output_tokens: list[int] = field(default_factory=lambda: [0, 0])


class Ledger:
    """Bills every step to the clients in it; `settle` must be called before the counters are read."""

    def __init__(
        self,
        counters: VirtualCounters,
        view_of: Callable[[Request], RequestView],
        billing: PromptBilling,
        clients: ClientTally,
    ) -> None:
        self._counters = counters
        self._clients = clients
        self._billing = billing
        self._view_of = view_of
        self._decoding: Counter[ClientKey] = Counter()  # who decoded in the step that `repeat` continues
        self._repeats = 0  # how often since then
        self.served = Served()
        self.work = StepWork()

    def record(self, scheduled: Mapping[str, int], requests: Mapping[str, Request]) -> None:
        """Bill a step. Called before vLLM advances `num_computed_tokens`."""
        self.settle()
        work = StepWork()
        paid: dict[ClientKey, list[float]] = {}
        view_of = self._view_of
        decoding: Counter[ClientKey] = Counter()
        self._decoding = decoding
        for request_id, tokens in scheduled.items():
            request = requests[request_id]
            try:
                view = request.hybrid_view
            except AttributeError:
                view = view_of(request)
            done = request.num_computed_tokens
            missing = request.num_tokens + request.num_output_placeholders - done
            if missing == 1 or tokens > missing:
                work.decodes += 1
                work.context_tokens += done
                bill = (0, tokens, 0.0)
                decoding[view.key] += 1
            else:
                work.prefills += 1
                work.prefill_tokens += tokens
                work.pairs += tokens * (done + tokens / 2)
                work.done_tokens += done
                fresh, due = self._billing.bill(view, done, tokens)
                bill = (fresh, int(tokens == missing), due)
            entry = paid.get(view.key)
            if entry is None:
                paid[view.key] = list(bill)
            else:
                entry[0] += bill[0]
                entry[1] += bill[1]
                entry[2] += bill[2]
        for key, (prompt, output, due) in paid.items():
            self._pay(key, int(prompt), int(output), due)
        self.work = work

    def repeat(self, decodes: int) -> None:
        """Bill a step in which exactly the requests of the last one decode one token each. O(1)."""
        self._repeats += 1
        context = self.work.context_tokens + decodes
        self.work = StepWork(decodes=decodes, context_tokens=context)

    def settle(self) -> None:
        """Charge the repeated steps to the counters. O(clients that decode)."""
        repeats, self._repeats = self._repeats, 0
        if repeats:
            self._counters.charge_outputs(self._decoding, repeats)
            for key, count in self._decoding.items():
                self._clients.cell(key).output_tokens += count * repeats
            output_tokens = self.served.output_tokens
            offline = sum([count for key, count in self._decoding.items() if key[0]])
            output_tokens[Lane.OFFLINE] += offline * repeats
            output_tokens[Lane.ONLINE] += (self.work.decodes - offline) * repeats

    def _pay(self, key: ClientKey, prompt: int, output: int, due: float = 0.0) -> None:
        self._counters.charge(key, due, output)
        cell = self._clients.cell(key)
        cell.prompt_tokens += prompt
        cell.due_tokens += due
        cell.output_tokens += output
        served, lane = self.served, key[0]
        served.prompt_tokens[lane] += prompt
        served.output_tokens[lane] += output

    def drain(self) -> Served:
        """What was served since the last call."""
        self.settle()
        served, self.served = self.served, Served()
        return served


def per_lane(views: Iterable[RequestView]) -> list[int]:
    """How many of the requests stand in each lane, indexed by lane."""
    count = [0, 0]
    for view in views:
        count[view.key[0]] += 1
    return count
