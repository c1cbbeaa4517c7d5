"""Billing: each prompt token is paid once, whatever chunks, cache hits and preemptions come in between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import examples, request
from vllm_hybrid.policy.billing import PromptBilling


def pay(billing: PromptBilling, *parts: tuple[int, int]) -> tuple[int, float]:
    view = request(prompt_tokens=100)
    bills = [billing.bill(view, done, tokens) for done, tokens in parts]
    return sum(fresh for fresh, _ in bills), sum(due for _, due in bills)


def test_chunks_add_up_to_the_prompt():
    assert pay(PromptBilling(), (0, 30), (30, 50), (80, 20)) == (100, 100)


def test_cached_tokens_are_free_unless_charged():
    assert pay(PromptBilling(), (64, 36)) == (36, 36)
    assert pay(PromptBilling(charge_cached=0.5), (64, 36)) == (36, 36 + 32)
    assert pay(PromptBilling(charge_cached=1.0), (64, 20), (84, 16)) == (36, 100)


def test_a_recompute_is_paid_again_only_if_asked_for():
    preempted = ((0, 100), (0, 60), (60, 45))  # five generated tokens are computed again with the prompt
    assert pay(PromptBilling(), *preempted) == (100, 100)
    assert pay(PromptBilling(bill_recompute=True), *preempted) == (100, 200)


def test_a_recompute_that_finds_its_own_blocks_pays_no_more_for_them():
    assert pay(PromptBilling(charge_cached=1.0), (0, 100), (96, 9)) == (100, 100)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 120)), max_size=8), st.floats(0, 1))
@examples(300)
def test_nobody_pays_more_than_the_prompt_once(parts, charge_cached):
    fresh, due = pay(PromptBilling(charge_cached), *parts)
    assert fresh <= due <= 100 or due == pytest.approx(fresh)
    assert fresh <= 100
