"""An honest client against one that tries to get more than its share, on the real scheduler classes.

Both keep a backlog. What counts is the work the engine did for each of them, told from the steps themselves and not
from our own books: prompt tokens computed once, output tokens computed twice; what the prefix cache held is no work.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

from vllm.v1.core.sched.output import SchedulerOutput

from tests.oracle.ours import HYBRID
from tests.oracle.shadow import ShadowWorker
from vllm_hybrid.sim.modelfree import VOCAB, Classes, EngineLoop, World, build, make_request

HONEST, ADVERSARY = "honest", "adversary"
_PROMPT_TOKENS, _OUTPUT_TOKENS, _WAITING = 60, 30, 12


class Arena:
    """A loop with an honest client that always has requests waiting; the adversary acts once per turn."""

    def __init__(self, world: World, classes: Classes = HYBRID, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.scheduler = build(classes, world)
        self.loop = EngineLoop(self.scheduler, ShadowWorker(world, seed), world.async_mode, on_schedule=self._count)
        self.work: Counter[str] = Counter()
        self.live: dict[str, deque[str]] = {HONEST: deque(), ADVERSARY: deque()}
        self._serial = 0

    def send(self, client: str, prompt_tokens: int, output_tokens: int, prefix: tuple[int, ...] = ()) -> str:
        """A request of the client, its prompt starting with `prefix`."""
        self._serial += 1
        request_id = f"{client}-{self._serial}"
        prompt = [*prefix, *(self.rng.randrange(VOCAB) for _ in range(prompt_tokens - len(prefix)))]
        request = make_request(request_id, prompt, output_tokens, self.loop.now_s, 0, {"client": client})
        self.loop.add(request)
        self.live[client].append(request_id)
        return request_id

    def abort(self, request_id: str) -> None:
        self.loop.abort(request_id)

    def left(self, client: str) -> int:
        """Requests of the client that have not ended."""
        live = self.live[client]
        self.live[client] = deque(r for r in live if r in self.scheduler.requests)
        return len(self.live[client])

    def generated(self, request_id: str) -> int:
        return len(self.loop.outputs.get(request_id, ()))

    def share_of_the_adversary(self, act: Callable[[Arena], None], turns: int = 1500, warm_up: int = 200) -> float:
        """The adversary's part of the work once both are at it."""
        for turn in range(turns):
            while self.left(HONEST) < _WAITING:
                self.send(HONEST, _PROMPT_TOKENS, _OUTPUT_TOKENS)
            act(self)
            self.loop.step()
            if turn == warm_up:
                self.work.clear()
        return self.work[ADVERSARY] / (self.work[ADVERSARY] + self.work[HONEST])

    def _count(self, step: SchedulerOutput) -> None:
        for request_id, tokens in step.num_scheduled_tokens.items():
            request = self.scheduler.requests[request_id]
            done = request.num_computed_tokens - tokens  # vLLM has advanced it
            prompt = max(0, min(tokens, request.num_prompt_tokens - done))
            self.work[request_id.partition("-")[0]] += prompt + 2 * (tokens - prompt)
