"""The whole policy on random engine states: its plans are legal, online decodes are never held up, offline work stays
in its bounds, and nobody waits while something could run.
"""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import (
    BLOCK_TOKENS,
    OFFLINE,
    ONLINE,
    Pool,
    admissions,
    blocks_of,
    decode,
    examples,
    plain_counters,
    planner,
    prefill,
    request,
    step_view,
    trained,
    waiting,
    work_of,
)
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS
from vllm_hybrid.policy.plan import StepView, check_plan
from vllm_hybrid.policy.request import RequestView

SLOS = [{}, {"tbt_s": 0.05}, {"ttft_s": 0.5}, {"ttft_s": 0.5, "tbt_s": 0.05}, {"tbt_s": 0.05, "gap": "strict"}]
SLOS += [{"slowdown": 0.05}, {"slowdown": 0.5, "ttft_s": 0.5}]


class Random:
    """One engine state drawn from a seed: who runs, is parked, waits; memory, slots, budget, targets, predictor."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.slo = rng.choice(SLOS)
        self.counters = plain_counters(a=2.0)
        for lane in (ONLINE, OFFLINE):
            for client in "abc":
                self.counters.charge((lane, client), rng.randrange(500), 0)
        self.predictor = rng.choice([StepTimePredictor(), self.known_machine()])
        self.running = [self.anybody(rng.choice([ONLINE, OFFLINE])) for _ in range(rng.choice([0, 1, 3, 8]))]
        self.parked = [self.anybody(OFFLINE) for _ in range(rng.choice([0, 0, 2]))]
        held = sum(blocks_of(v.computed_tokens) for v in self.running + self.parked)
        self.pool = Pool(watermark=rng.choice([0, 2]), free=max(rng.choice([0, 3, 40, 400]), 30 - held))
        self.pool.total = held + self.pool.free
        self.queue = waiting((self.newcomer() for _ in range(rng.choice([0, 1, 5, 30]))), self.counters)
        self.pool.barred = {v for v in self.queue if rng.random() < 0.1}  # a LoRA slot is taken, say
        self.pool.blocked = {v for v in self.queue if rng.random() < 0.1}  # a grammar compiles, say
        self.slots = len(self.running) + rng.choice([0, 1, 8])
        self.max_tokens = rng.choice([8, 64, 512])

    def known_machine(self) -> StepTimePredictor:
        rng = self.rng
        return trained(rng.choice([0.001, 0.02]), 1e-3, 1e-4, 1e-7, 1e-9, margin=rng.choice([0.05, 0.5]))

    def fields(self) -> dict:
        rng = self.rng
        return {"arrival_s": 100 - rng.random(), "disturbed_s": rng.choice([-math.inf, 99.0])}

    def anybody(self, lane) -> RequestView:
        client, tokens = self.rng.choice("abc"), self.rng.randrange(1, 600)
        if self.rng.random() < 0.5:
            return decode(client, lane, tokens, **self.fields())
        return prefill(client, lane, tokens + self.rng.randrange(2, 400), tokens, **self.fields())

    def newcomer(self) -> RequestView:
        rng = self.rng
        lane, started = rng.choice([ONLINE, OFFLINE]), rng.random() < 0.2
        return request(rng.choice("abc"), lane, rng.choice([1, 4, 30]) * BLOCK_TOKENS, started=started, **self.fields())

    def view(self) -> StepView:
        pending_s = self.rng.choice([0.0, 0.02])
        return step_view(
            self.running,
            self.queue,
            self.pool,
            self.parked,
            self.slots,
            max_tokens=self.max_tokens,
            pending_s=pending_s,
        )


class Outcome:
    """A plan and what an engine makes of it: who gets how many tokens, as far as no block runs out in between."""

    def __init__(self, state: Random) -> None:
        self.view = view = state.view()
        self.plan = plan = planner(state.slo, state.counters, state.predictor).plan(view)
        check_plan(view, plan)
        for v in (*plan.preempt, *plan.drop):
            state.pool.free += blocks_of(v.computed_tokens)
        self.chunks: dict[RequestView, int] = {}
        paused = set(plan.paused)
        self.running = [v for v in plan.order if v not in paused]
        state.pool.somebody_runs = bool(plan.order)
        for v in (*self.running, *plan.unpark):
            self.give(v)
        slots = state.slots - len(plan.order) - len(plan.unpark)
        if slots > 0 and self.left > 0:
            for v in admissions(state.pool, state.queue, (v for v in plan.candidates if self.left > 0), slots):
                self.give(v)

    @property
    def left(self) -> int:
        return self.plan.token_budget - sum(self.chunks.values())

    def give(self, view: RequestView) -> None:
        wanted = min(view.missing_tokens, self.plan.caps.get(view.request_id, view.missing_tokens))
        if tokens := min(wanted, self.left):
            self.chunks[view] = tokens

    def seconds(self, predictor: StepTimePredictor) -> float:
        """Predicted for what runs already and for all offline work; who else comes in has a budget of its own."""
        mine = {v: n for v, n in self.chunks.items() if v in self.running or v.lane is OFFLINE}
        decodes = [v for v in mine if not v.prefilling and v.output_tokens]
        return predictor.seconds(work_of(decodes, [(v, n) for v, n in mine.items() if v not in decodes]))


seeds = st.integers(0, 2**32)


@given(seeds)
@examples(400)
def test_every_plan_is_legal_and_online_decodes_are_never_held_up(seed):
    state = Random(seed)
    outcome = Outcome(state)
    plan = outcome.plan
    online = [v for v in state.running if v.lane is ONLINE]
    decodes = [v for v in online if not v.prefilling]
    assert plan.order[: len(decodes)] == decodes
    assert not {*decodes} & {*plan.paused}
    assert not {*online} & {*plan.preempt, *plan.park}
    assert not {v.request_id for v in state.running if not v.prefilling} & plan.caps.keys()
    assert all(v in outcome.chunks for v in decodes[: plan.token_budget])


@given(seeds)
@examples(400)
def test_something_runs_whenever_something_could(seed):
    state = Random(seed)
    state.pool.barred.clear()
    could = state.slots > 0 and len(state.queue) > 0 and not state.pool.blocked
    outcome = Outcome(state)
    if state.running or (could and not state.parked):
        assert outcome.chunks
    elif state.parked and state.slots > 0:
        assert outcome.chunks or outcome.plan.drop, "parked requests hold the memory: one must let go"


@given(seeds)
@examples(400)
def test_offline_work_stays_within_the_seconds_that_online_work_leaves(seed):
    state = Random(seed)
    state.slo = {"ttft_s": 2.0, "tbt_s": state.rng.choice([0.05, 0.4]), "gap": state.rng.choice(["strict", "deadline"])}
    predictor = state.predictor = state.known_machine()
    online = [v for v in state.running if v.lane is ONLINE and not v.prefilling]
    outcome = Outcome(state)
    if online and any(v.lane is OFFLINE for v in outcome.chunks):
        due_s = min(v.deadline_s for v in online)
        slack_s = (due_s - outcome.view.now_s - outcome.view.pending_s) / (1 + predictor.margin)
        assert outcome.seconds(predictor) <= slack_s * (1 + 1e-9)


@given(seeds)
@examples(200)
def test_while_the_predictor_knows_nothing_offline_work_is_held_to_a_few_tokens(seed):
    state = Random(seed)
    state.predictor = StepTimePredictor()
    outcome = Outcome(state)
    if state.slo:
        tokens = sum(n for v, n in outcome.chunks.items() if v.lane is OFFLINE)
        assert tokens <= UNTRAINED_TOKENS


@given(seeds)
@examples(200)
def test_memory_is_taken_from_offline_work_only_for_online_heads(seed):
    state = Random(seed)
    heads = state.queue.lane_length(ONLINE)
    plan = Outcome(state).plan
    if plan.preempt or plan.park:
        assert heads
    assert all(v.lane is OFFLINE for v in (*plan.preempt, *plan.park, *plan.drop))
    assert all(v.disturbed_s < 95 for v in plan.preempt)
