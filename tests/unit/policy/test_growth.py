"""Growth: every request that a plan lets run finds its blocks, and offline work keeps its rest."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import BLOCK_TOKENS, OFFLINE, ONLINE, Pool, decode, examples, prefill, step_view
from vllm_hybrid.policy.growth import Growth
from vllm_hybrid.policy.plan import StepPlan, check_plan

INTERVAL_S = 5.0
NOW_S = 100.0


def full(lane=OFFLINE, blocks: int = 4, ago_s: float = 1e9):
    """A decode at the end of its last block: its next token needs another one."""
    return decode("batch" if lane is OFFLINE else "chat", lane, blocks * BLOCK_TOKENS, disturbed_s=NOW_S - ago_s)


def inside(lane=OFFLINE, blocks: int = 4, ago_s: float = 1e9):
    """A decode whose last block has room."""
    view = full(lane, blocks, ago_s)
    view.computed_tokens -= 3
    return view


def settle(running, free: int, parked=()) -> StepPlan:
    """The plan that lets all of `running` run, after its growth was settled with `free` blocks."""
    view = step_view(list(running), pool=Pool(free=free), parked=list(parked), growth_blocks_free=free, now_s=NOW_S)
    plan = StepPlan(view.max_tokens, list(running))
    Growth(view, plan, INTERVAL_S).settle()
    check_plan(view, plan)
    return plan


def test_where_blocks_are_there_nothing_changes():
    running = [full(ONLINE), full(), full()]
    plan = settle(running, free=100)
    assert (plan.order, plan.paused, plan.preempt) == (running, [], [])


def test_offline_work_leaves_a_block_to_every_running_online_request():
    online, first, second = inside(ONLINE), full(), full()
    plan = settle([online, first, second], free=2)
    assert (plan.paused, plan.preempt) == ([second], [])


def test_who_needs_no_block_goes_on():
    running = [full(ONLINE), inside(), full()]
    plan = settle(running, free=1)
    assert plan.paused == [running[2]]


def test_online_growth_takes_from_the_rested_who_loses_least():
    online = [full(ONLINE), full(ONLINE)]
    large, small, resting = inside(blocks=9), inside(blocks=3), inside(blocks=2, ago_s=1.0)
    plan = settle([*online, large, small, resting], free=1)
    assert (plan.preempt, plan.paused) == ([small], [])


def test_a_parked_request_loses_its_memory_before_a_running_one():
    online, parked, running = full(ONLINE), full(blocks=8), inside(blocks=2)
    plan = settle([online, running], free=0, parked=[parked])
    assert (plan.drop, plan.preempt) == ([parked], [])


def test_nobody_loses_its_rest_to_online_growth():
    first, second, resting = full(ONLINE), full(ONLINE), inside(ago_s=1.0)
    plan = settle([first, second, resting], free=1)
    assert (plan.preempt, plan.paused) == ([], [second]), "the younger one waits for a block"


def test_where_nobody_could_run_one_gives_way_and_the_others_go_on():
    rested, resting = full(blocks=9), full(blocks=2, ago_s=1.0)
    plan = settle([resting, rested], free=0)
    assert (plan.preempt, plan.order, plan.paused) == ([rested], [resting], [])


def test_if_all_rest_the_one_disturbed_longest_ago_gives_way():
    older, younger = full(ago_s=4.0), full(ago_s=1.0)
    assert settle([older, younger], free=0).preempt == [older]


def test_one_alone_is_left_to_the_engine():
    alone = full()
    plan = settle([alone], free=0)
    assert (plan.order, plan.paused, plan.preempt) == ([alone], [], [])


requests = st.builds(
    lambda make, lane, blocks, ago_s: make(lane, blocks, ago_s),
    st.sampled_from([full, inside]),
    st.sampled_from([ONLINE, OFFLINE]),
    st.integers(1, 9),
    st.sampled_from([0.5, 4.0, 5.0, 60.0]),
)
chunks = st.integers(1, 9).map(lambda blocks: prefill("chat", ONLINE, blocks * BLOCK_TOKENS, BLOCK_TOKENS - 1))


@given(running=st.lists(requests | chunks, min_size=2, max_size=12), free=st.integers(0, 12))
@examples(500)
def test_who_runs_finds_its_blocks_and_nobody_loses_its_rest_unless_all_would_stand_still(running, free):
    running.sort(key=lambda v: v.lane)
    plan = settle(running, free)
    runs = [v for v in plan.order if v not in plan.paused]
    freed = sum(Pool().reclaimable(v) for v in plan.preempt)
    needed = sum(Pool.growth(v, plan.caps.get(v.request_id, v.missing_tokens)) for v in runs)
    assert runs
    assert needed <= free + freed or len(plan.order) == 1
    hurt = [v for v in plan.preempt if v.lane is OFFLINE and v.disturbed_s > NOW_S - INTERVAL_S]
    assert len(hurt) <= 1
    if hurt:
        rested = [v for v in running if v.lane is OFFLINE and v.disturbed_s <= NOW_S - INTERVAL_S]
        assert set(rested) <= {*plan.preempt}, "others could have given way"
    paused = [v for v in plan.order if v in plan.paused and v.lane is OFFLINE]
    assert plan.order[len(plan.order) - len(paused) :] == paused, "who pauses stands last"
