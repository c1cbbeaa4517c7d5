"""Which prompt tokens a client pays for.

Each token of a prompt is paid once, when it is computed. What the prefix cache holds costs nothing to compute and
nothing to the client, unless `charge_cached` says otherwise; what a preemption makes be computed again was not the
client's wish, and is paid again only with `bill_recompute`. (The VTC paper, arXiv 2401.00588, knows neither prefix
cache nor preemption; its engine charges a whole prompt at admission.)
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_hybrid.policy.request import RequestView


@dataclass(frozen=True, slots=True)
class PromptBilling:
    """charge_cached: part of the price of a token found in the prefix cache, 0 to 1."""

    charge_cached: float = 0.0
    bill_recompute: bool = False

    def bill(self, view: RequestView, done_tokens: int, tokens: int) -> tuple[int, float]:
        """Of a chunk of `tokens` after `done_tokens`: prompt tokens computed for the first time; tokens to pay for.

        To be asked once per chunk, in order: it notes on the request how far its prompt is paid.
        """
        paid = view.billed_prompt_tokens
        end = min(done_tokens + tokens, view.prompt_tokens)
        fresh = max(0, end - max(done_tokens, paid))
        due: float = fresh
        if self.charge_cached:
            due += self.charge_cached * max(0, min(done_tokens, view.prompt_tokens) - paid)
        if self.bill_recompute:
            due += max(0, end - done_tokens) - fresh
        view.billed_prompt_tokens = max(paid, end)
        return fresh, due
