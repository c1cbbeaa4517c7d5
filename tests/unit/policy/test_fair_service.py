"""VTC's promises, kept by the whole policy on a toy engine: shares, weights, the bound, and no credit for idleness."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.toy_engine import Machine, ToyEngine
from tests.unit.policy.world import OFFLINE, ONLINE, examples, plain_counters, request


class Backlog:
    """Clients that have twenty requests waiting before every step; lengths are drawn per client."""

    def __init__(self, engine: ToyEngine, lane, shapes: dict[str, tuple[int, int]], seed: int) -> None:
        self.engine = engine
        self.lane = lane
        self.shapes = shapes
        self.rng = random.Random(seed)

    def refill(self) -> None:
        for client, (prompt, output) in self.shapes.items():
            while sum(view.key == (self.lane, client) for view in self.engine.queue) < 20:
                view = request(client, self.lane, self.rng.randint(1, prompt))
                self.engine.add(view, self.rng.randint(1, output))

    def run(self, steps: int) -> list[dict[str, float]]:
        """The accumulated service of each client, after each step."""
        history = []
        for _ in range(steps):
            self.refill()
            self.engine.step()
            history.append({c: self.engine.service.get((self.lane, c), 0.0) for c in self.shapes})
        return history


lengths = st.tuples(st.integers(8, 200), st.integers(4, 60))


@given(seed=st.integers(0, 2**32), lane=st.sampled_from([ONLINE, OFFLINE]), f=lengths, g=lengths)
@examples(15)
def test_the_gap_between_two_backlogged_clients_stays_below_twice_u(seed, lane, f, g):
    machine = Machine(blocks=60, slots=8, step_tokens=128)
    history = Backlog(ToyEngine(machine, plain_counters()), lane, {"f": f, "g": g}, seed).run(400)
    gaps = [now["f"] - now["g"] for now in history]
    longest_prompt = max(f[0], g[0])
    assert max(gaps) - min(gaps) <= 2 * max(1 * longest_prompt, 2 * machine.kv_tokens)


@pytest.mark.parametrize("lane", [ONLINE, OFFLINE])
def test_half_the_service_each_whatever_the_demand(lane):
    engine = ToyEngine(Machine(), plain_counters())
    served = Backlog(engine, lane, {"short": (40, 10), "long": (300, 60)}, seed=1).run(2_000)[-1]
    assert served["short"] / sum(served.values()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("lane", [ONLINE, OFFLINE])
def test_weights_one_to_two_give_service_one_to_two(lane):
    engine = ToyEngine(Machine(), plain_counters(heavy=2.0))
    served = Backlog(engine, lane, {"light": (120, 30), "heavy": (120, 30)}, seed=2).run(2_000)[-1]
    assert served["heavy"] / served["light"] == pytest.approx(2.0, rel=0.05)


def test_who_was_idle_gets_no_more_than_its_share_afterwards():
    engine = ToyEngine(Machine(), plain_counters())
    Backlog(engine, ONLINE, {"busy": (120, 30)}, seed=3).run(500)
    before = dict(engine.service)
    Backlog(engine, ONLINE, {"busy": (120, 30), "late": (120, 30)}, seed=4).run(1_500)
    busy, late = (engine.service[ONLINE, c] - before.get((ONLINE, c), 0.0) for c in ("busy", "late"))
    assert late / (busy + late) == pytest.approx(0.5, abs=0.05)


def test_a_client_that_asks_for_less_than_its_share_gets_all_of_it_beside_a_flood():
    engine = ToyEngine(Machine(), plain_counters())
    rng = random.Random(5)
    flood = Backlog(engine, ONLINE, {"flood": (120, 30)}, seed=6)
    quiet = []
    for step in range(1_500):
        flood.refill()
        if step % 40 == 0:
            quiet.append(request("quiet", prompt_tokens=rng.randint(20, 80)))
            engine.add(quiet[-1], 5)
        engine.step()
    assert all(view in engine.finished for view in quiet[:-2])


def test_what_one_client_does_not_use_goes_to_the_others():
    machine = Machine()
    alone = ToyEngine(machine, plain_counters())
    Backlog(alone, ONLINE, {"a": (120, 30)}, seed=7).run(1_000)
    shared = ToyEngine(machine, plain_counters())
    Backlog(shared, ONLINE, {"a": (120, 30), "b": (120, 30)}, seed=7).run(1_000)
    rates = [sum(engine.service.values()) / engine.now_s for engine in (alone, shared)]
    assert rates[1] == pytest.approx(rates[0], rel=0.1)
