"""What offline work is owed: a share of all tokens, paid step by step, and neither saved up nor owed without end."""

import pytest

from vllm_hybrid.policy.offline import Budget
from vllm_hybrid.policy.share import MinShare

STEP = 512


def step(share: MinShare, online_tokens: int, offline_tokens: int) -> None:
    """One step that gave so much; half of it to requests that were running, the rest to newcomers."""
    online, offline = Budget(STEP), Budget(STEP)
    share.note(online_tokens // 2, online, offline_tokens // 2, offline)
    online.tokens -= online_tokens - online_tokens // 2
    offline.tokens -= offline_tokens - offline_tokens // 2


@pytest.mark.parametrize("part", [0.01, 0.05, 0.2])
def test_turns_add_up_to_the_share(part):
    share, got, steps = MinShare(part), 0, 4_000
    for _ in range(steps):
        share.settle(STEP, offline_waits=True)
        turn = share.turn_tokens(STEP)
        step(share, STEP - turn, turn)
        got += turn
    assert got / (steps * STEP) == pytest.approx(part, rel=0.05)


def test_who_got_more_waits_for_its_turn_but_not_for_ever():
    share = MinShare(0.05)
    for _ in range(10_000):
        share.settle(STEP, offline_waits=True)
        step(share, 0, STEP)
    quiet = 0
    while not share.turn_tokens(STEP):
        step(share, STEP, 0)
        share.settle(STEP, offline_waits=True)
        quiet += 1
    assert quiet <= 9 / 0.05


def test_nothing_is_owed_where_nothing_waits():
    share = MinShare(0.5)
    for _ in range(10):
        share.settle(STEP, offline_waits=False)
        step(share, STEP, 0)
    share.settle(STEP, offline_waits=False)
    assert not share.behind and not share.turn_tokens(STEP)


def test_a_whole_step_owed_holds_online_admissions():
    share = MinShare(0.1)
    for _ in range(11):
        share.settle(STEP, offline_waits=True)
        step(share, STEP, 0)
    share.settle(STEP, offline_waits=True)
    assert share.starved(STEP) and share.turn_tokens(STEP) == STEP // 4
