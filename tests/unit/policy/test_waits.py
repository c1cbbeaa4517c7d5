"""The books of waits: whatever happens to a request, the seconds by reason add up to the time it waited."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waits import REMEDIES, Reason, WaitBooks


def request(name: str = "r", lane: Lane = Lane.ONLINE) -> RequestView:
    return RequestView(name, (lane, "c"), 0.0, 0, 0.0, 10, None)


def test_every_reason_says_what_would_change_it() -> None:
    assert REMEDIES.keys() == set(Reason)


def test_a_wait_behind_ones_own_requests_then_for_a_slot_then_for_memory() -> None:
    books, first, second = WaitBooks(), request("a"), request("b")
    books.entered(first, 0.0)
    books.became_first(first, 0.0)
    books.entered(second, 1.0)
    books.decided(Lane.ONLINE, Reason.SLOTS, 2.0)
    books.left(first, 5.0)
    books.became_first(second, 5.0)
    books.decided(Lane.ONLINE, Reason.MEMORY, 9.0)
    assert books.waited_s(second, 10.0) == {Reason.OWN_QUEUE: 4.0, Reason.SLOTS: 4.0, Reason.MEMORY: 1.0}
    assert books.waited_s(first, 99.0) == {Reason.NEXT_STEP: 2.0, Reason.SLOTS: 3.0, Reason.NOT_READY: 94.0}
    books.came_in(first)
    assert books.finished_s[Lane.ONLINE][Reason.SLOTS] == 3.0
    assert books.waited_s(first, 99.0) == {Reason.NEXT_STEP: 2.0, Reason.SLOTS: 3.0}


def test_the_other_lane_has_books_of_its_own() -> None:
    books, offline = WaitBooks(), request(lane=Lane.OFFLINE)
    books.entered(offline, 0.0)
    books.became_first(offline, 0.0)
    books.decided(Lane.ONLINE, Reason.MEMORY, 0.0)
    books.decided(Lane.OFFLINE, Reason.ONLINE_FIRST, 0.0)
    assert books.waited_s(offline, 3.0) == {Reason.ONLINE_FIRST: 3.0}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["decided", "first", "not_first", "out", "in again", "runs", "preempted"]),
        st.sampled_from([Reason.SLOTS, Reason.MEMORY, Reason.BUDGET, Reason.FAIR_SHARE]),
        st.floats(0.0, 10.0, allow_nan=False),
    ),
    max_size=40,
)


@settings(deadline=None, derandomize=True)
@given(EVENTS)
def test_the_reasons_add_up_after_any_history(events: list[tuple[str, Reason, float]]) -> None:
    books, view, now_s, since_s, waited_in_all_s = WaitBooks(), request(), 0.0, 0.0, 0.0
    books.entered(view, 0.0)
    in_line, running, first = True, False, False
    for event, reason, seconds in events:
        now_s += seconds
        if event == "decided":
            books.decided(Lane.ONLINE, reason, now_s)
        elif event == "first" and in_line and not first:
            books.became_first(view, now_s)
            first = True
        elif event == "not_first" and first:
            books.lost_first(view, now_s)
            first = False
        elif event == "out" and in_line:
            books.left(view, now_s)
            in_line = first = False
            waited_in_all_s = now_s - since_s  # told while it runs
        elif event == "in again" and not in_line and not running:
            books.entered(view, now_s)
            in_line = True
        elif event == "runs" and not in_line and not running:
            books.came_in(view)
            running = True
        elif event == "preempted" and running:
            books.entered(view, now_s)
            in_line, running, since_s = True, False, now_s
        waited_s = books.waited_s(view, now_s)
        assert sum(waited_s.values()) == pytest.approx(waited_in_all_s if running else now_s - since_s, abs=1e-6)
        assert all(value > 0 for value in waited_s.values())


def test_a_late_request_waits_as_one_that_is_relegated() -> None:
    books, view = WaitBooks(), request()
    books.entered(view, 1.0)
    view.late_s = 4.0
    assert books.waited_s(view, 9.0) == {Reason.OWN_QUEUE: 3.0, Reason.RELEGATED: 5.0}
    books.became_first(view, 6.0)
    assert books.waited_s(view, 9.0) == {Reason.OWN_QUEUE: 3.0, Reason.RELEGATED: 2.0, Reason.NEXT_STEP: 3.0}
    books.left(view, 10.0)
    books.came_in(view)
    books.entered(view, 20.0)  # lost its memory: late all the while
    assert books.waited_s(view, 22.0) == {Reason.RELEGATED: 2.0}
