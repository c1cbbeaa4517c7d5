"""What the real scheduler classes charge: as computed, drafts and parallel samples included, at every price."""

import pytest

from tests.oracle.arena import Arena
from tests.oracle.ours import HYBRID
from tests.oracle.shadow import ShadowWorker
from tests.oracle.test_adversaries import long_answers
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.sim.modelfree import EngineLoop, World, build, make_request

pytestmark = pytest.mark.oracle

PAPER = (1.146, 0.21002, 0.10075, 0.0039868, 0.0032473)
ALICE, BOB = (Lane.ONLINE, "alice"), (Lane.ONLINE, "bob")


def played(async_mode: bool, requests: list[tuple[str, str, int, int]], **world) -> tuple[EngineLoop, list[dict]]:
    """Serve (id, client, prompt, output) requests, all there at the start; the loop and what each step held."""
    fairness = world.pop("fairness", {})
    hybrid = (("strict", True), ("fairness", fairness))
    world = World(async_mode, num_blocks=world.pop("num_blocks", 400), hybrid=hybrid, **world)
    steps: list[dict] = []
    scheduler = build(HYBRID, world)
    loop = EngineLoop(
        scheduler, ShadowWorker(world), async_mode, on_schedule=lambda s: steps.append(s.num_scheduled_tokens)
    )
    for number, (request_id, client, prompt, output) in enumerate(requests):
        tokens = [(7 * number + i * i) % 997 for i in range(prompt)]
        loop.add(make_request(request_id, tokens, output, 0.0, 0, {"client": client}))
    while loop.busy:
        loop.step()
    scheduler.ledger.settle()
    return loop, steps


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_the_profiled_cost_is_the_quadratic_of_what_was_computed(async_mode):
    requests = [("a0", "alice", 300, 20), ("a1", "alice", 40, 70), ("b0", "bob", 128, 128)]
    loop, steps = played(async_mode, requests, fairness={"cost": "profiled"})
    a, b, c, d, e = PAPER
    expected = {ALICE: 0.0, BOB: 0.0}
    for request_id, client, prompt, _ in requests:
        # An asynchronous engine computes one more token of a request before it learns that it ended.
        output = sum(step.get(request_id, 0) for step in steps) - prompt + 1
        expected[Lane.ONLINE, client] += a + b * prompt + c * output + d * prompt * output + e * output**2
    for key, cost in expected.items():
        assert loop.scheduler.counters.value(key) == pytest.approx(cost)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_seconds_share_a_step_by_what_each_adds_to_it(async_mode):
    requests = [(f"{client}{i}", client, 64, 200) for i in range(4) for client in ("alice", "bob")]
    loop, _ = played(async_mode, requests, fairness={"cost": "seconds"})
    values = [loop.scheduler.counters.value(key) for key in (ALICE, BOB)]
    assert values[0] == pytest.approx(values[1], rel=0.05)
    assert 0 < sum(values) < loop.now_s  # the constant part of a step is nobody's


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_parallel_samples_are_charged_each(async_mode):
    """n = 3: vLLM sends three requests of the same client; the prompt is computed by the first, found by the others."""
    loop, _ = played(async_mode, [("one", "bob", 64, 16)], prefix_caching=False)
    once = loop.scheduler.counters.value(BOB)
    samples = [(f"{i}_many", "bob", 64, 16) for i in range(3)]
    loop, _ = played(async_mode, samples, prefix_caching=False)
    assert loop.scheduler.counters.value(BOB) == pytest.approx(3 * once, abs=6)


def test_drafts_are_charged_as_computed_accepted_or_not():
    requests = [("a0", "alice", 64, 60), ("b0", "bob", 64, 60)]
    loop, steps = played(False, requests, drafts=3)
    for key, request_id in ((ALICE, "a0"), (BOB, "b0")):
        computed = sum(step.get(request_id, 0) for step in steps)
        drafted = computed - 64 + 1
        assert drafted > 60  # some drafts were rejected
        assert loop.scheduler.counters.value(key) == 64 + 2 * drafted


@pytest.mark.parametrize("preset", ["vtc", "hybrid"])
@pytest.mark.parametrize(("async_mode", "drafts"), [(False, 0), (True, 0), (False, 3)])
def test_behind_the_gate_counters_stay_within_the_bound_that_is_exported(preset, async_mode, drafts):
    hybrid = (("strict", True), ("preset", preset), ("memory", {"gate": "max_tokens"}))
    arena = Arena(World(async_mode, num_blocks=120, max_seqs=6, step_tokens=128, drafts=drafts, hybrid=hybrid))
    assert arena.share_of_the_adversary(long_answers, turns=600) <= 0.55
    scheduler = arena.scheduler
    scheduler.ledger.settle()
    bounds = scheduler.report.service_gap_bounds()
    assert bounds[Lane.OFFLINE] is None
    assert 0 < scheduler.gaps.largest[Lane.ONLINE] <= bounds[Lane.ONLINE]
    scheduler.gaps.check(bounds)
    drained = scheduler.report.drain()
    assert drained["service_gap"]["online"] > 0
    assert drained["service_gap_bound"] == {"online": bounds[Lane.ONLINE], "offline": None}


def test_without_the_gate_no_bound_is_claimed():
    scheduler = build(HYBRID, World())
    assert set(scheduler.report.service_gap_bounds().values()) == {None}
