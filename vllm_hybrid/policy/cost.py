"""What computing tokens is worth: the service that fair queuing compares clients by.

Weighted tokens (1 per prompt token, 2 per output token in the VTC paper, arXiv 2401.00588), its profiled quadratic
h(n_p, n_q) in the form h(n_p, k) - h(n_p, k - 1) for the k-th output token, or the seconds that the step-time predictor
says the tokens add to a step. All of them charge tokens as they are computed, so every answer is charged the same
whether it came in one chunk or in many; seconds also depend on what else the step held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork

UNTRAINED_S = 1e-4  # per unit of weighted tokens, while the predictor knows nothing


class Prices(Protocol):
    """Service units of tokens. beside: what else the step computes."""

    def prompt(self, due_tokens: float, done_tokens: int, opens: bool, beside: StepWork) -> float:
        """Prompt tokens to pay for, after `done_tokens`. opens: the first ones of their request."""
        ...

    def outputs(self, prompt_tokens: int, before: int, tokens: float, beside: StepWork) -> float:
        """The `tokens` output tokens after the first `before` ones."""
        ...

    def repeated(self, decodes: int, charged: float, context_tokens: float, steps: int, beside: StepWork) -> float:
        """`steps` more steps of `decodes` decodes, for which one step was charged `charged` just now.

        context_tokens: that they read together in that step.
        """
        ...


class TokenPrices:
    """So much per prompt token, so much per output token."""

    def __init__(self, input_price: float, output_price: float) -> None:
        self.input_price = input_price
        self.output_price = output_price

    def prompt(self, due_tokens: float, done_tokens: int, opens: bool, beside: StepWork) -> float:
        return self.input_price * due_tokens

    def outputs(self, prompt_tokens: int, before: int, tokens: float, beside: StepWork) -> float:
        return self.output_price * tokens

    def repeated(self, decodes: int, charged: float, context_tokens: float, steps: int, beside: StepWork) -> float:
        return charged * steps


class ProfiledPrices:
    """h(n_p, n_q) = a + b n_p + c n_q + d n_p n_q + e n_q^2, of `constants` a to e."""

    def __init__(self, constants: Sequence[float]) -> None:
        self._request, self._input, self._output, self._pair, self._square = constants

    def prompt(self, due_tokens: float, done_tokens: int, opens: bool, beside: StepWork) -> float:
        return self._input * due_tokens + (self._request if opens else 0.0)

    def outputs(self, prompt_tokens: int, before: int, tokens: float, beside: StepWork) -> float:
        return tokens * (self._output + self._pair * prompt_tokens + self._square * (2 * before + tokens))

    def repeated(self, decodes: int, charged: float, context_tokens: float, steps: int, beside: StepWork) -> float:
        return charged * steps + self._square * decodes * steps * (steps + 1)


class SecondPrices:
    """What the tokens add to the predicted seconds of their step; weighted tokens until the predictor is ready."""

    def __init__(self, predictor: StepTimePredictor, untrained: TokenPrices) -> None:
        self._predictor = predictor
        self._untrained = untrained

    def prompt(self, due_tokens: float, done_tokens: int, opens: bool, beside: StepWork) -> float:
        if not self._predictor.ready:
            return UNTRAINED_S * self._untrained.prompt(due_tokens, done_tokens, opens, beside)
        return self._predictor.prefill_seconds(due_tokens, done_tokens, beside)

    def outputs(self, prompt_tokens: int, before: int, tokens: float, beside: StepWork) -> float:
        if not self._predictor.ready:
            return UNTRAINED_S * self._untrained.outputs(prompt_tokens, before, tokens, beside)
        context_tokens = prompt_tokens + before + tokens / 2
        return tokens * self._predictor.decode_seconds(context_tokens, beside)

    def repeated(self, decodes: int, charged: float, context_tokens: float, steps: int, beside: StepWork) -> float:
        if not self._predictor.ready or not decodes:
            return charged * steps
        context = context_tokens / decodes + (steps + 1) / 2  # a decode's, in the middle of the steps
        return steps * decodes * self._predictor.decode_seconds(context, beside)
