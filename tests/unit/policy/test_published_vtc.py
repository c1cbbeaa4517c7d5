"""VTC and its ablation: who is next, the paper's bound, and what idleness earns."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import ONLINE, examples, plain_counters, prefill, request, step_view, waiting
from vllm_hybrid.policy.published.orders import LeastServed
from vllm_hybrid.policy.published.vtc import UnliftedCounters

A, B = (ONLINE, "a"), (ONLINE, "b")
GATED = {"memory": {"gate": "max_tokens"}}
MACHINE = Machine(blocks=60, slots=16, step_tokens=128)


def contest(preset, b_waits_at_s=0.0, seed=0, a_prompts=(20, 100), b_prompts=(20, 100)):
    """Two clients with endless queues, the second from `b_waits_at_s` on; yields the engine after each step."""
    engine = PresetEngine(MACHINE, {"preset": preset, **GATED})
    rng = random.Random(seed)
    for _ in range(1500):
        clients = [("a", a_prompts)] + ([("b", b_prompts)] if engine.now_s >= b_waits_at_s else [])
        for client, prompts in clients:
            while sum(v.client == client for v in engine.queue) < 3:
                engine.add(request(client, prompt_tokens=rng.randrange(*prompts)), rng.randrange(5, 60))
        engine.step()
        yield engine


@given(seed=st.integers(0, 2**32), small=st.booleans())
@examples(10)
def test_the_service_gap_of_two_clients_that_wait_stays_below_the_bound(seed, small):
    bound = 2 * max(100, 2 * MACHINE.kv_tokens)  # 2U, with U = max(w_p * longest prompt, w_q * M)
    seen = []
    for engine in contest("vtc", seed=seed, b_prompts=(1, 10) if small else (20, 100)):
        seen.append(engine.service.get(A, 0.0) - engine.service.get(B, 0.0))
    assert max(seen) - min(seen) <= bound
    assert not engine.preemptions


def test_a_newcomer_is_lifted_and_without_the_lift_it_is_served_alone():
    def first_admissions(preset):
        for engine in contest(preset, b_waits_at_s=3.0):
            if engine.service.get(B, 0.0) > 0 and engine.now_s > 3.5:
                return sum(v.client == "b" for v in engine.running) / len(engine.running)

    assert 0.2 < first_admissions("vtc") < 0.8
    assert first_admissions("lcf") > 0.8


def test_what_is_admitted_but_not_computed_counts():
    counters = plain_counters()
    counters.charge(B, 50, 0)
    line = waiting([request("a"), request("b")], counters)
    view = step_view([prefill("a", prompt_tokens=200, done_tokens=10)], line)
    assert [v.client for v in LeastServed(counters)(view)] == ["b", "a"]


def test_without_the_lift_counters_are_never_forgotten():
    counters = UnliftedCounters(1.0, 2.0, {})
    counters.charge(A, 10, 0)
    counters.lift(B, 10.0)
    counters.forget_idle((), {ONLINE: 100.0})
    assert counters.values == {A: 10.0, B: 0.0}
