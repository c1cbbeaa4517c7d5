"""The comeback of a victim: it waits until it can keep its memory, and holds nobody else up meanwhile."""

from tests.unit.policy.test_admission import Door, prompt_of
from tests.unit.policy.world import BLOCK_TOKENS, OFFLINE, Pool, decode, request, trained

NOW_S = 100.0


def victim(blocks: int, more_blocks: int, ago_s: float = 50.0, client: str = "a"):
    """A request that lost its memory: its tokens fill `blocks`, and it may grow by `more_blocks`."""
    return request(
        client,
        OFFLINE,
        prompt_of(blocks),
        max_output_tokens=more_blocks * BLOCK_TOKENS,
        started=True,
        disturbed_s=NOW_S - ago_s,
    )


def test_its_growth_must_fit_too():
    back = victim(blocks=4, more_blocks=6)
    pool = Pool(total=100, free=9)
    assert Door([back], pool).take() == []
    pool = Pool(total=100, free=15)  # a twentieth of the pool stays free as well
    assert Door([back], pool).take() == [back]


def test_the_growth_of_others_that_rest_counts():
    back = victim(4, 2)
    resting = decode("b", OFFLINE, prompt_of(4), disturbed_s=NOW_S - 1, max_output_tokens=5 * BLOCK_TOKENS)
    assert Door([back], Pool(total=100, free=14), running=[resting]).take() == []
    assert Door([back], Pool(total=100, free=16), running=[resting]).take() == [back]


def test_blocks_that_may_be_asked_for_count_as_free():
    back = victim(4, 6)
    rested = decode("b", OFFLINE, prompt_of(8))
    assert Door([back], Pool(total=100, free=9), running=[rested]).take() == [back]


def test_only_as_much_growth_counts_as_the_rest_allows():
    back = victim(4, 1000)
    slow = trained(constant_s=1.0, prefill_token_s=1e-4)  # five steps in five seconds of rest
    assert Door([back], Pool(total=100, free=10), predictor=slow).take() == [back]
    assert Door([back], Pool(total=100, free=10)).take() == []


def test_newcomers_use_what_it_must_not():
    back, second, newcomer = victim(4, 50), victim(4, 50), request("a", OFFLINE, prompt_of(4))
    assert Door([back, second, newcomer], Pool(total=100, free=20)).take() == [newcomer]
    assert back.bypassed == 1
    assert second.bypassed == 0, "it waits behind the first, not behind the newcomer"


def test_where_nothing_else_runs_it_comes_in():
    back = victim(4, 50)
    assert Door([back], Pool(total=100, free=20), running=[]).take() == [back]
