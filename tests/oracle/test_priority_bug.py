"""vLLM's priority policy returns wrong tokens after an in-step preemption with prefix caching on; ours never does."""

import pytest

from tests.oracle.ours import HYBRID
from tests.oracle.priority_cases import cases, wrong_cases
from vllm_hybrid.sim.modelfree import STOCK

pytestmark = pytest.mark.oracle


def test_stock_is_wrong_in_twenty_of_616_cases():
    wrong = wrong_cases(STOCK)
    assert len(list(cases())) == 616
    assert len(wrong) == 20
    assert all("KV wrong" in reason for reason in wrong.values())


@pytest.mark.parametrize("two_lanes", [False, True], ids=["one-client", "two-lanes"])
@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_ours_is_right_in_every_case(async_mode, two_lanes):
    assert wrong_cases(HYBRID, async_mode, two_lanes) == {}
