"""Making room: no one is disturbed in vain, slots cost nothing but a park, memory costs the fewest tokens there are."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import BLOCK_TOKENS, OFFLINE, Pool, decode, examples, request, step_view
from vllm_hybrid.policy.room import Room, RoomMaker

INTERVAL_S = 5.0


def offline(blocks: int, disturbed_s: float = -1e9):
    return decode("batch", OFFLINE, blocks * BLOCK_TOKENS, disturbed_s=disturbed_s)


def head(blocks: int):
    return request("chat", prompt_tokens=blocks * BLOCK_TOKENS)


def make_room(heads, running=(), parked=(), pool=None, free_slots=4, reserve=0) -> Room:
    view = step_view(list(running), pool=pool or Pool(free=0), parked=list(parked), free_slots=free_slots)
    return RoomMaker(view, list(running), INTERVAL_S).place(heads, reserve)


def disturbed(room: Room) -> list:
    return [*room.preempt, *room.park, *room.drop]


def test_where_there_is_room_nobody_moves():
    room = make_room([head(5), head(5)], [offline(9)], pool=Pool(free=10))
    assert (room.placed, room.stuck, room.slots, room.blocks) == (2, False, 2, 0)
    assert not disturbed(room)


def test_a_head_that_cannot_be_placed_disturbs_nobody():
    room = make_room([head(31)], [offline(10), offline(10)], [offline(10)])
    assert (room.placed, room.stuck) == (0, True)
    assert not disturbed(room)


def test_those_before_a_head_that_cannot_be_placed_are_served():
    victims = [offline(10), offline(4)]
    room = make_room([head(4), head(11), head(1)], victims)
    assert (room.placed, room.stuck, room.preempt) == (1, True, [victims[1]])


def test_a_missing_slot_parks_and_takes_no_memory():
    victims = [offline(8), offline(3)]
    room = make_room([head(5)], victims, pool=Pool(free=5), free_slots=0)
    assert (room.park, room.preempt, room.drop) == ([victims[1]], [], [])
    assert room.placed == 1


def test_parked_requests_lose_their_memory_before_running_ones():
    running, parked = offline(2), offline(20)
    room = make_room([head(15)], [running], [parked])
    assert (room.drop, room.preempt, room.park) == ([parked], [], [])


def test_a_slot_is_parked_for_even_if_dropping_made_the_blocks():
    running, parked = offline(2), offline(20)
    room = make_room([head(15)], [running], [parked], free_slots=0)
    assert (room.drop, room.preempt, room.park) == ([parked], [], [running])


def test_the_fewest_tokens_are_lost_first():
    small, middle, large = offline(2), offline(4), offline(8)
    assert make_room([head(2)], [large, small, middle]).preempt == [small]
    assert make_room([head(5)], [large, small, middle]).preempt == [small, middle]


def test_who_turns_out_not_to_be_needed_keeps_its_memory():
    small, large = offline(1), offline(20)
    assert make_room([head(15)], [], [small, large]).drop == [large]
    assert make_room([head(15)], [small, large]).preempt == [large]


@pytest.mark.parametrize("parked", [False, True])
def test_who_was_disturbed_lately_is_left_alone(parked):
    now_s = 100.0
    recent, rested = offline(10, now_s - INTERVAL_S + 0.1), offline(10, now_s - INTERVAL_S)
    for victim, gives_way in ((recent, False), (rested, True)):
        room = make_room([head(10)], [] if parked else [victim], [victim] if parked else [])
        assert room.placed == gives_way
        assert disturbed(room) == [victim] * gives_way


def test_parking_costs_nothing_so_it_needs_no_rest():
    recent = offline(10, 99.9)
    assert make_room([head(1)], [recent], pool=Pool(free=1), free_slots=0).park == [recent]


def test_blocks_that_must_not_move_stay():
    pinned, other = offline(1), offline(9)
    pool = Pool(free=0, pinned={pinned})
    assert make_room([head(9)], [pinned, other], pool=pool).preempt == [other]
    assert make_room([head(10)], [pinned, other], pool=pool).stuck


def test_the_reserve_is_left_free_once_and_not_once_for_each_head():
    victims = [offline(10) for _ in range(4)]
    room = make_room([head(5), head(5), head(5)], victims, pool=Pool(free=30), reserve=10)
    assert (room.placed, disturbed(room), room.blocks) == (3, [], 15)
    assert make_room([head(5)], victims, pool=Pool(free=14), reserve=10).preempt != []


sizes = st.lists(st.integers(1, 12), max_size=6)


@given(
    running=sizes,
    parked=sizes,
    heads=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    free=st.integers(0, 20),
    slots=st.integers(0, 3),
    reserve=st.integers(0, 5),
    resting=st.integers(0, 2**12),
)
@examples(300)
def test_what_is_taken_is_enough_and_not_in_vain(running, parked, heads, free, slots, reserve, resting):
    rest = (99.0 if resting >> i & 1 else -1e9 for i in itertools.count())
    running = [offline(blocks, next(rest)) for blocks in running]
    parked = [offline(blocks, next(rest)) for blocks in parked]
    pool = Pool(free=free)
    room = make_room([head(blocks) for blocks in heads], running, parked, pool, slots, reserve)
    gone = disturbed(room)
    assert len(gone) == len(set(gone))
    assert set(room.drop) <= set(parked)
    assert {*room.preempt, *room.park} <= set(running)
    assert all(view.disturbed_s < 0 for view in (*room.preempt, *room.drop)), "who rests keeps its memory"
    freed = sum(map(pool.reclaimable, (*room.preempt, *room.drop)))
    placed = sum(heads[: room.placed])
    assert room.blocks == free + freed - placed
    assert room.slots == slots + len(room.preempt) + len(room.park) - room.placed
    if room.placed:
        assert room.blocks >= reserve
        assert room.slots >= 0
    else:
        assert not gone
    assert room.stuck == (room.placed < len(heads))
    if slots >= room.placed:
        assert not room.park
    if free >= placed + reserve:
        assert not room.drop + room.preempt
