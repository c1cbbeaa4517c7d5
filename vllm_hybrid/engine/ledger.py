"""What a step computed: who pays for it, what lane it served, and what the predictor learns from it.

Charged are tokens really computed: each prompt token once (`policy/billing.py`), each output token when it is
computed, speculative drafts as computed work. What they cost is the counters' prices. A step in which the same requests
decode again is charged per client, not per request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vllm.v1.request import Request

from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.policy.billing import PromptBilling
from vllm_hybrid.policy.cost import TokenPrices
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.gap import ServiceGaps
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
        gaps: ServiceGaps,
    ) -> None:
        self._counters = counters
        self._clients = clients
        self._gaps = gaps
        self._billing = billing
        self._view_of = view_of
        self._by_tokens = isinstance(counters.prices, TokenPrices)
        # Where the price is not the token's alone: charge, decodes and their context in that step, by client.
        self._decoded: dict[ClientKey, list[float]] = {}
        self._charged_steps = 0  # of the repeats
        self._decoding: Counter[ClientKey] = Counter()  # who decoded in the step that `repeat` continues
        self._repeats = 0  # how often since then
        self.served = Served()
        self.work = StepWork()

    def record(self, scheduled: Mapping[str, int], requests: Mapping[str, Request]) -> None:
        """Bill a step. Called before vLLM advances `num_computed_tokens`."""
        self.settle()
        before, work = self.work, StepWork()
        paid: dict[ClientKey, list[float]] = {}
        view_of = self._view_of
        decoding: Counter[ClientKey] = Counter()
        self._decoding = decoding
        units, decoded, priced = dict[ClientKey, float](), dict[ClientKey, list[float]](), not self._by_tokens
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
                if priced:
                    charge = self._output_price(view, done, tokens, before)
                    units[view.key] = units.get(view.key, 0.0) + charge
                    of_client = decoded.setdefault(view.key, [0.0, 0.0, 0.0])
                    of_client[0] += charge
                    of_client[1] += 1
                    of_client[2] += done + tokens
            else:
                work.prefills += 1
                work.prefill_tokens += tokens
                work.pairs += tokens * (done + tokens / 2)
                work.done_tokens += done
                opens = not view.billed_prompt_tokens
                fresh, due = self._billing.bill(view, done, tokens)
                bill = (fresh, int(tokens == missing), due)
                if priced:
                    charge = self._counters.prices.prompt(due, done, opens, before) if due else 0.0
                    if tokens == missing:
                        charge += self._output_price(view, done + tokens - 1, 1, before)
                    units[view.key] = units.get(view.key, 0.0) + charge
            entry = paid.get(view.key)
            if entry is None:
                paid[view.key] = list(bill)
            else:
                entry[0] += bill[0]
                entry[1] += bill[1]
                entry[2] += bill[2]
        self._decoded, self._charged_steps = decoded, 0
        for key, (prompt, output, due) in paid.items():
            self._pay(key, int(prompt), int(output), due, units.get(key))
        self._gaps.charged(paid)
        self.work = work

    def _output_price(self, view: RequestView, done: int, tokens: int, beside: StepWork) -> float:
        """Of `tokens` output tokens sampled when `done` tokens have been computed before."""
        before = max(0, done + 1 - view.prompt_tokens)
        return self._counters.prices.outputs(view.prompt_tokens, before, tokens, beside)

    def repeat(self, decodes: int) -> None:
        """Bill a step in which exactly the requests of the last one decode one token each. O(1)."""
        self._repeats += 1
        context = self.work.context_tokens + decodes
        self.work = StepWork(decodes=decodes, context_tokens=context)

    def settle(self) -> None:
        """Charge the repeated steps to the counters. O(clients that decode)."""
        repeats, self._repeats = self._repeats, 0
        if repeats:
            if self._by_tokens:
                self._counters.charge_outputs(self._decoding, repeats)
            else:
                self._charge_repeats(repeats)
            self._gaps.charged(self._decoding)
            price = self._counters.output_price * repeats
            for key, count in self._decoding.items():
                cell = self._clients.cell(key)
                cell.output_tokens += count * repeats
                if self._by_tokens:
                    cell.service += price * count
            output_tokens = self.served.output_tokens
            offline = sum([count for key, count in self._decoding.items() if key[0]])
            output_tokens[Lane.OFFLINE] += offline * repeats
            output_tokens[Lane.ONLINE] += (self.work.decodes - offline) * repeats

    def _charge_repeats(self, steps: int) -> None:
        prices, charged_steps = self._counters.prices, self._charged_steps
        self._charged_steps += steps
        for key, (charged, decodes, context_tokens) in self._decoded.items():
            units = prices.repeated(int(decodes), charged, context_tokens, charged_steps + steps, self.work)
            if charged_steps:
                units = max(
                    0.0, units - prices.repeated(int(decodes), charged, context_tokens, charged_steps, self.work)
                )
            self._counters.bill(key, units)
            self._clients.cell(key).service += units

    def _pay(self, key: ClientKey, prompt: int, output: int, due: float, units: float | None) -> None:
        counters = self._counters
        if units is None:
            units = counters.input_price * due + counters.output_price * output
        counters.bill(key, units)
        cell = self._clients.cell(key)
        cell.prompt_tokens += prompt
        cell.service += units
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
