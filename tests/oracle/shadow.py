"""A worker without a model that knows what every KV position must hold.

The "KV" of (request, position) is a rolling hash of the tokens up to that position, written to the physical block that
the scheduler assigned. Before tokens [c, c + n) of a request run, each of its positions below c must hold the right
hash: a wrong count of computed tokens, a lost, shared or reused block, a prefix hit on something never computed - each
shows here. The next token is a function of the hash, so no legal schedule changes an output: `expected_output` is the
truth. The bookkeeping follows vLLM's two model runners; what would crash them fails an assertion.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from vllm_hybrid.sim.modelfree import BLOCK_SIZE, MAX_MODEL_LEN, VOCAB, World

_MODULUS = (1 << 61) - 1
_SEED_HASH = 7


class OracleError(AssertionError):
    """The scheduler asked the worker for something that cannot be right."""


def extend_hash(value: int, token: int) -> int:
    return (value * 1000003 + token + 12345) % _MODULUS


def next_token(value: int) -> int:
    return (value * 2654435761) % 991 % VOCAB


def expected_output(prompt: list[int], max_tokens: int) -> list[int]:
    """The tokens a request must get, whatever happens around it."""
    value = _SEED_HASH
    for token in prompt:
        value = extend_hash(value, token)
    output = []
    for _ in range(max_tokens):
        output.append(next_token(value))
        value = extend_hash(value, output[-1])
    return output


@dataclass(slots=True)
class _Tokens:
    """Tokens of a request as they were really sampled, and the hash at each position."""

    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(MAX_MODEL_LEN + 64, dtype=np.int64))

    def push(self, token: int) -> None:
        self.hashes[len(self.tokens)] = extend_hash(self.last_hash, token)
        self.tokens.append(token)

    @property
    def last_hash(self) -> int:
        return int(self.hashes[len(self.tokens) - 1]) if self.tokens else _SEED_HASH

    def check_known(self, request_id: str, known: list[int]) -> None:
        """The scheduler's record of a request that comes (back) into the batch is what was sampled, all of it."""
        if known != self.tokens[: len(known)]:
            raise OracleError(f"{request_id}: the scheduler's tokens are not those that were sampled")
        if len(known) < len(self.tokens):
            raise OracleError(f"{request_id}: {len(self.tokens) - len(known)} sampled tokens were thrown away")


@dataclass(slots=True)
class _Request(_Tokens):
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    computed_end: int | None = None  # where the next chunk must start; None after an admission: a prefix hit decides

    def slots(self, start: int, end: int) -> np.ndarray:
        """Physical slots of positions [start, end)."""
        positions = np.arange(start, end)
        return np.asarray(self.blocks)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


class ShadowWorker:
    """Executes scheduler outputs; raises OracleError at the first one that cannot be right."""

    def __init__(self, world: World, seed: int = 0, draft_hit_rate: float = 0.7) -> None:
        self.world = world
        self.drafts = world.drafts
        self._draft_hit_rate = draft_hit_rate
        self._rng = random.Random(seed)
        # By virtual block id: whole blocks, then the half blocks that lie in them.
        self._kv = np.zeros((1 + world.halves) * world.num_blocks * BLOCK_SIZE, dtype=np.int64)
        self._requests: dict[str, _Request] = {}
        self._in_batch: set[str] = set()  # runner V1: scheduled in the step before; runner V2: has a slot
        self._proposed: dict[str, list[int]] = {}

    def take_drafts(self) -> DraftTokenIds | None:
        return DraftTokenIds(list(self._proposed), list(self._proposed.values()))

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step in device order."""
        self._move(step)
        self._drop(step)
        computed = self._take_new(step) | self._take_cached(step)
        if not self.world.v2_runner:
            self._in_batch = set(step.num_scheduled_tokens)
        self._proposed = {}
        sampled = [self._run(step, rid, computed[rid], n) for rid, n in step.num_scheduled_tokens.items()]
        ids = list(step.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={rid: i for i, rid in enumerate(ids)}, sampled_token_ids=sampled
        )

    def _move(self, step: SchedulerOutput) -> None:
        """A request gets whole blocks in the place of its half blocks, with what these hold."""
        if move := getattr(step, "hybrid_move", None):
            request = self._requests[move.request_id]
            held = self._kv[request.slots(0, move.tokens)]
            if request.blocks != move.half_ids:
                raise OracleError(f"{move.request_id} is moved from blocks that it does not have")
            request.blocks = list(move.block_ids)
            self._store(request.slots(0, move.tokens), held)

    def _store(self, slots: np.ndarray, values: np.ndarray | int) -> None:
        """Write, and spoil what lies in the same memory under the other form's ids."""
        self._kv[slots] = values
        halves, blocks = self.world.halves, self.world.num_blocks
        for block in np.unique(slots // BLOCK_SIZE) if halves > 1 else ():
            first, count = (blocks + halves * block, halves) if block < blocks else ((block - blocks) // halves, 1)
            self._kv[first * BLOCK_SIZE : (first + count) * BLOCK_SIZE] = -1

    def _drop(self, step: SchedulerOutput) -> None:
        for request_id in step.finished_req_ids:
            self._requests.pop(request_id, None)
        self._in_batch -= step.finished_req_ids
        if self.world.v2_runner:
            self._in_batch -= step.preempted_req_ids or set()

    def _take_new(self, step: SchedulerOutput) -> dict[str, int]:
        for data in step.scheduled_new_reqs:
            request = self._requests.get(data.req_id) or _Request()
            if self.world.v2_runner:
                self._take_slot(data)
            elif request.tokens:
                raise OracleError(f"{data.req_id} is sent as new, but the worker has it already")
            if request.tokens:  # runner V2: it comes back after it lost its slot
                request.check_known(data.req_id, data.prefill_token_ids)
            else:
                for token in data.prompt_token_ids:
                    request.push(token)
            request.prompt_tokens = len(data.prompt_token_ids)
            request.blocks = list(data.block_ids[0])
            request.computed_end = None
            self._requests[data.req_id] = request
        return {data.req_id: data.num_computed_tokens for data in step.scheduled_new_reqs}

    def _take_slot(self, data: NewRequestData) -> None:
        if data.prefill_token_ids is None:
            raise OracleError(f"{data.req_id}: runner V2 needs its token ids")
        if data.req_id in self._in_batch:
            raise OracleError(f"{data.req_id} is sent as new, but still holds its slot")
        self._in_batch.add(data.req_id)
        if len(self._in_batch) > self.world.max_seqs:
            raise OracleError("no free slot in the model runner")

    def _take_cached(self, step: SchedulerOutput) -> dict[str, int]:
        cached = step.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            request = self._requests[request_id]
            resumed = request_id in cached.resumed_req_ids
            blocks = cached.new_block_ids[i]
            if resumed and blocks is None:
                raise OracleError(f"{request_id} resumed without blocks")
            if resumed:
                request.blocks = list(blocks[0])
                request.computed_end = None
            elif blocks is not None:
                request.blocks.extend(blocks[0])
            if self.world.v2_runner:
                if request_id not in self._in_batch:
                    raise OracleError(f"{request_id} has no slot in the model runner")
            elif resumed or request_id not in self._in_batch:
                self._enter_batch(request, request_id, step, cached.num_output_tokens[i])
        return dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))

    def _enter_batch(self, request: _Request, request_id: str, step: SchedulerOutput, outputs: int) -> None:
        """Runner V1 rebuilds the tokens of a request that was not in the batch of the step before."""
        known = step.scheduled_cached_reqs.all_token_ids.get(request_id)
        if self.world.async_mode and outputs:
            if known is None:
                raise OracleError(f"{request_id} re-enters the batch without its token ids")
            known = known[: request.prompt_tokens] + known[-outputs:]
        if known is not None:
            request.check_known(request_id, known)

    def _run(self, step: SchedulerOutput, request_id: str, computed: int, tokens: int) -> list[int]:
        """Compute `tokens` tokens after the first `computed` ones; returns what was sampled behind the last token."""
        request = self._requests[request_id]
        drafts = step.scheduled_spec_decode_tokens.get(request_id, [])
        if self.world.async_mode and self.drafts:
            # The scheduler counted the drafts under way as accepted; the device knows which were.
            drafts = (request.drafts + [-1] * len(drafts))[: len(drafts)]
            if computed + tokens - len(drafts) > len(request.tokens):
                computed = min(computed, len(request.tokens) - 1)
        end = computed + tokens
        known_end = end - len(drafts)
        if end > len(request.blocks) * BLOCK_SIZE:
            raise OracleError(f"{request_id}: no block for position {end - 1}")
        if known_end > len(request.tokens):
            raise OracleError(f"{request_id}: position {known_end - 1} has no token yet")
        if request.computed_end is not None and computed != min(request.computed_end, len(request.tokens) - 1):
            raise OracleError(f"{request_id}: goes on at {computed}, but {request.computed_end} are computed")
        request.computed_end = end
        self._check_kv(request, request_id, computed)
        self._store(request.slots(computed, known_end), request.hashes[computed:known_end])
        if known_end < len(request.tokens):
            return []
        sampled = self._sample(request, drafts)
        if self.drafts:
            request.drafts = self._proposed[request_id] = self._propose(request)
        return sampled

    def _check_kv(self, request: _Request, request_id: str, computed: int) -> None:
        wrong = np.nonzero(self._kv[request.slots(0, computed)] != request.hashes[:computed])[0]
        if len(wrong):
            raise OracleError(f"{request_id}: KV wrong at position {wrong[0]} of {computed}")

    def _sample(self, request: _Request, drafts: list[int]) -> list[int]:
        """Verify the drafts in order, then sample the token after the last right one."""
        sampled = []
        for draft in drafts:
            position = len(request.tokens)
            self._store(request.slots(position, position + 1), extend_hash(request.last_hash, draft))
            if draft != next_token(request.last_hash):
                break
            request.push(draft)
            sampled.append(draft)
        sampled.append(next_token(request.last_hash))
        request.push(sampled[-1])
        return sampled

    def _propose(self, request: _Request) -> list[int]:
        """Draft tokens, of which each is right with probability `draft_hit_rate`."""
        value, drafts = request.last_hash, []
        for _ in range(self.drafts):
            token = next_token(value)
            if self._rng.random() > self._draft_hit_rate:
                token = (token + 1) % VOCAB
            drafts.append(token)
            value = extend_hash(value, token)
        return drafts
