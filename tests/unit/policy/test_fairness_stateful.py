"""Fair queuing under anything that may happen: arrivals, chunk sizes, preemptions, aborts, changes of weight."""

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import OFFLINE, ONLINE, request
from vllm_hybrid.config import load_config
from vllm_hybrid.policy.gap import EngineShape, ServiceGaps, gap_bounds
from vllm_hybrid.policy.request import RequestView

MACHINE = Machine(blocks=16, slots=3, step_tokens=96)
CLIENTS = "abcd"
LONGEST_PROMPT, LONGEST_OUTPUT = 60, 20
clients = st.sampled_from(CLIENTS)


class FairQueuing(RuleBasedStateMachine):
    """One engine under a policy; `settings` and what may happen are given by the classes below."""

    hybrid: dict = {"preset": "hybrid"}
    lanes = (ONLINE, OFFLINE)

    def __init__(self) -> None:
        super().__init__()
        self.engine = PresetEngine(MACHINE, self.hybrid)
        self.counters = self.engine.counters
        self.gaps = ServiceGaps(self.counters, self.engine.queue)
        self.weights = dict.fromkeys(CLIENTS, 1.0)
        self.alive: list[RequestView] = []
        self.values: dict = {}

    # -- what happens ------------------------------------------------------------------------------------------------
    @rule(
        client=clients,
        lane=st.integers(0, 1),
        prompt=st.integers(1, LONGEST_PROMPT),
        output=st.integers(1, LONGEST_OUTPUT),
        count=st.sampled_from([1, 2, 5, 30]),
    )
    def arrive(self, client, lane, prompt, output, count):
        for _ in range(count):
            view = request(client, self.lanes[lane % len(self.lanes)], prompt)
            self.engine.add(view, output)
            self.alive.append(view)

    @rule(steps=st.sampled_from([1, 5, 40, 150]), step_tokens=st.sampled_from([17, 40, 96]))
    def run(self, steps, step_tokens):
        self.engine.machine = replace(MACHINE, step_tokens=step_tokens)
        for _ in range(steps):
            self.step()

    def step(self):
        idle = 0
        while self.engine.busy:
            tokens = self.engine.step()
            self.alive = [view for view in self.alive if view not in self.engine.finished]
            self.gaps.charged(list(self.counters.values))
            if tokens:
                return
            idle += 1
            assert idle < 4, "requests are left, and nothing runs"

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data):
        view = data.draw(st.sampled_from(self.alive))
        self.alive.remove(view)
        self.engine.abort(view)

    @rule(client=clients, weight=st.sampled_from([1.0, 2.0, 5.0]))
    def change_weight(self, client, weight):
        self.weights[client] = weight
        self.counters.set_shares(self.weights, {})
        self.engine.queue.regroup()

    # -- what must hold ----------------------------------------------------------------------------------------------
    @invariant()
    def no_counter_falls(self):
        for key, value in self.values.items():
            assert self.counters.value(key) >= value
        self.values = dict(self.counters.values)

    @invariant()
    def every_request_has_one_place(self):
        places = Counter([*self.engine.queue, *self.engine.running, *self.engine.parked])
        assert places == Counter(self.alive)

    @invariant()
    def memory_is_accounted_for(self):
        held = sum(self.engine.pool.reclaimable(v) for v in (*self.engine.running, *self.engine.parked))
        assert self.engine.pool.free + held == MACHINE.blocks

    def teardown(self):
        """Nobody starves: what is left ends, without anybody new."""
        tokens = sum(v.prompt_tokens + self.engine.outputs[v] for v in self.alive)
        for _ in range(20 * tokens + 20):
            if not self.engine.busy:
                break
            self.step()
        assert not self.engine.busy


class WithPreemptions(FairQueuing):
    """Without a gate running requests lose their memory, to each other and to whatever the engine has in mind."""

    @precondition(lambda self: self.engine.running)
    @rule(data=st.data())
    def preempt(self, data):
        self.engine.lose_memory(data.draw(st.sampled_from(self.engine.running)))


class Bounded(FairQueuing):
    """Behind the gate the counters of clients that wait stay within the bound."""

    hybrid: dict = {"preset": "vtc", "memory": {"gate": "max_tokens"}}
    lanes = (ONLINE,)

    @invariant()
    def the_gap_is_within_the_bound(self):
        bounds = gap_bounds(load_config(self.hybrid), self.counters, SHAPE)
        assert bounds[ONLINE] is not None
        self.gaps.check(bounds)

    @invariant()
    def nobody_is_preempted(self):
        assert not self.engine.preemptions


class BoundedHybrid(Bounded):
    """The same for the hybrid policy."""

    hybrid: dict = {"preset": "hybrid", "memory": {"gate": "max_tokens"}}


SHAPE = EngineShape(MACHINE.kv_tokens, LONGEST_PROMPT + LONGEST_OUTPUT, MACHINE.slots)
_SETTINGS = settings(max_examples=30, stateful_step_count=30, deadline=None, print_blob=True)
for machine in (WithPreemptions, Bounded, BoundedHybrid):
    machine.TestCase.settings = _SETTINGS
TestWithPreemptions = WithPreemptions.TestCase
TestBounded = Bounded.TestCase
TestBoundedHybrid = BoundedHybrid.TestCase
