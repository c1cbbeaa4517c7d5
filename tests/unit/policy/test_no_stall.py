"""Random loads on the toy engine: every step follows its plan, no two in a row are empty, every request ends.

Tight pools, few slots, watermarks, tight targets that pause all offline work, a clock that is slow: what has to be
survived. The same is asked of vLLM's real scheduler in tests/oracle.
"""

import itertools
import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.toy_engine import Machine, ToyEngine
from tests.unit.policy.world import BLOCK_TOKENS, OFFLINE, ONLINE, examples, plain_counters, request

machines = st.builds(
    Machine,
    blocks=st.sampled_from([20, 40, 100]),
    watermark_blocks=st.sampled_from([0, 1, 5]),
    slots=st.sampled_from([1, 3, 8]),
    step_tokens=st.sampled_from([16, 64, 256]),
    coefficients=st.sampled_from([(0.005, 2e-4, 5e-5, 1e-7, 1e-9), (0.05, 1e-3, 1e-4, 1e-6, 1e-8), (0, 0, 1e-3, 0, 0)]),
)
targets = st.sampled_from([{}, {"tbt_s": 0.01}, {"ttft_s": 0.2}, {"ttft_s": 0.1, "tbt_s": 0.02, "gap": "strict"}])


class Load:
    """Requests that arrive at random; some need the whole pool."""

    def __init__(self, engine: ToyEngine, seed: int, requests: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.left = requests
        self.all: list = []

    def arrive(self) -> None:
        while self.left and self.rng.random() < 0.3:
            rng, room = self.rng, self.engine.machine.blocks * BLOCK_TOKENS
            tokens = max(2, rng.choice([room // 20, room // 4, room]))
            output = rng.randrange(1, min(tokens, 60))
            view = request(rng.choice("abc"), rng.choice([ONLINE, OFFLINE]), rng.randrange(1, tokens - output + 1))
            self.engine.add(view, output)
            self.all.append(view)
            self.left -= 1


def play(engine: ToyEngine, load: Load, most_steps: int = 30_000) -> None:
    empty = 0
    for _ in range(most_steps):
        load.arrive()
        if not engine.busy:
            if not load.left:
                return
            continue
        empty = 0 if engine.step() else empty + 1
        assert empty < 2, "two empty steps in a row, though something could run"
    raise AssertionError(f"{len(load.all) - len(engine.finished)} requests never ended")


@given(seed=st.integers(0, 2**32), machine=machines, slo=targets, interval_s=st.sampled_from([0.05, 5.0]))
@examples(40)
def test_every_request_ends_and_no_two_steps_in_a_row_are_empty(seed, machine, slo, interval_s):
    engine = ToyEngine(machine, plain_counters(a=2.0), slo, interval_s)
    load = Load(engine, seed, requests=25)
    play(engine, load)
    assert sorted(v.request_id for v in engine.finished) == sorted(v.request_id for v in load.all)
    assert engine.pool.free == engine.pool.total
    assert not len(engine.queue) and not engine.running and not engine.parked


@given(seed=st.integers(0, 2**32), interval_s=st.sampled_from([0.5, 5.0]))
@examples(10)
def test_a_burst_of_online_requests_takes_no_offline_memory_twice_within_the_interval(seed, interval_s):
    engine = ToyEngine(Machine(blocks=60, slots=8), plain_counters(), {"ttft_s": 0.2, "tbt_s": 0.05}, interval_s)
    rng = random.Random(seed)
    for _ in range(12):
        engine.add(request("batch", OFFLINE, rng.randrange(50, 300)), 60)
    for step in range(1_500):
        if step > 60 and rng.random() < 0.5:
            engine.add(request("chat", ONLINE, rng.randrange(10, 200)), rng.randrange(2, 20))
        engine.step()
    times = defaultdict(list)
    for at_s, view, in_step in engine.preemptions:
        if view.lane is OFFLINE and not in_step:
            times[view].append(at_s)
    for at in times.values():
        assert all(later - earlier >= interval_s for earlier, later in itertools.pairwise(at))


def test_offline_work_alone_runs_though_no_step_is_short_enough():
    slow = Machine(coefficients=(0.5, 0.1, 0.01, 0, 0))
    engine = ToyEngine(slow, plain_counters(), {"ttft_s": 0.1})
    for _ in range(20):
        engine.add(request("batch", OFFLINE, 200), 20)
    for _ in range(10_000):
        if not engine.busy:
            break
        assert engine.step()
    assert len(engine.finished) == 20
