"""Requests that begin alike stand together, nobody is passed for ever, and the line stays a line whatever leaves it."""

import random
import time
from itertools import count

from tests.unit.policy.world import OFFLINE, plain_counters, request
from vllm_hybrid.policy.lines import ArrivalLine
from vllm_hybrid.policy.prefix_order import MOST_PASSED, PrefixLine, prefix_of
from vllm_hybrid.policy.waiting import WaitingRequests

_unique = count()


def like(group: str, shared_blocks: int = 60, own_blocks: int = 8):
    """A request whose first blocks are its group's."""
    own = next(_unique)
    hashes = [f"{group}{i}".encode() for i in range(shared_blocks)] + [
        f"u{own}.{i}".encode() for i in range(own_blocks)
    ]
    return request("a", OFFLINE, prefix=prefix_of(hashes))


def picks(line: PrefixLine, most: int) -> list:
    found = []
    while len(line) and len(found) < most:
        found.append(line.head())
        line.discard(found[-1])
    return found


def test_groups_stand_together_in_the_order_in_which_they_came():
    line, requests = PrefixLine(), [like("abc"[i % 3]) for i in range(30)]
    for one in requests:
        line.add(one)
    wanted = [requests[i] for start in range(3) for i in range(start, 30, 3)]
    assert list(line) == wanted
    assert picks(line, 30) == wanted


def test_prompts_that_share_nothing_keep_the_order_of_arrival():
    line, requests = PrefixLine(), [like("", shared_blocks=0) for _ in range(50)]
    for one in requests:
        line.add(one)
    assert picks(line, 50) == requests


def test_a_late_member_joins_the_group_that_is_being_served():
    line = PrefixLine()
    for one in [like("a"), like("b"), like("b")]:
        line.add(one)
    picks(line, 2)  # a, b
    late = like("b")
    line.add(late)
    line.add(like("c"))
    assert late in picks(line, 2)


def test_the_oldest_is_passed_by_a_bounded_number():
    line, lonely = PrefixLine(), like("lonely")
    for one in (like("endless"), lonely, like("endless")):
        line.add(one)
    passed = 0
    while line.head() is not lonely:
        line.discard(line.head())
        line.add(like("endless"))
        passed += 1
        assert passed <= MOST_PASSED + 1, "starved"
    assert passed > MOST_PASSED // 2  # and until then the endless group was served together


def test_the_stated_bound_for_everybody():
    rng, line, ahead, done = random.Random(1), PrefixLine(), {}, 0
    for _ in range(4_000):
        if rng.random() < 0.6 or not len(line):
            one = like(rng.choice("aaaaaaaabc"))
            ahead[one] = (len(line), done)
            line.add(one)
        else:
            one = line.head()
            line.discard(one)
            done += 1
            older, since = ahead[one]
            assert done - since <= (older + 1) * (MOST_PASSED + 1)


def test_it_holds_what_a_plain_line_holds():
    rng, line, plain, waiting = random.Random(2), PrefixLine(), ArrivalLine(), []
    for _ in range(3_000):
        if rng.random() < 0.6 or not waiting:
            one = like(rng.choice("abcdef"), shared_blocks=rng.choice([0, 3, 40]))
            waiting.append(one)
            (line.prepend if rng.random() < 0.1 else line.add)(one)
            plain.add(one)
        else:
            one = line.head() if rng.random() < 0.5 else rng.choice(waiting)
            waiting.remove(one)
            assert line.discard(one) and plain.discard(one)
            assert not line.discard(one)
        assert len(line) == len(plain) == len(waiting)
    assert set(line) == set(plain) and list(line)[:5] == line.first(5)
    picks(line, len(line))
    assert not len(line) and not line._seen and not line._sorted._values


def test_an_operation_does_not_grow_with_the_line():
    def seconds(waiting: int) -> float:
        line = PrefixLine()
        for i in range(waiting):
            line.add(like(f"g{i % 100}"))
        more = [like(f"g{i % 100}") for i in range(300)]
        begin = time.perf_counter()
        for one in more:
            line.add(one)
            line.discard(line.head())
        return time.perf_counter() - begin

    assert min(seconds(20_000) for _ in range(3)) < 8 * min(seconds(500) for _ in range(3))


def test_between_clients_it_is_fair_first():
    waiting = WaitingRequests(plain_counters(), by_prefix=True)
    for i in range(6):
        one = like("xy"[i % 2])
        one.key = (OFFLINE, "ab"[i // 3])
        waiting.add(one)
    order = [one.key[1] for one in waiting.walk(OFFLINE, {}, ())]
    assert order in (list("ababab"), list("bababa"))
