"""What a scheduled step computes, in the terms of a device model, and what the model would have answered.

Reading a step must cost little beside scheduling it: while the same requests go on decoding, the last batch is carried
on by two additions. Every decode answers with one token, every unfinished prompt with none; where lengths are not known
(`EngineSettings.known_lengths`) the last token of an answer is the one that ends it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_hybrid.sim.device_models import Chunk, HalfWork
from vllm_hybrid.sim.records import RequestRecord

# The output of every decode and of every unfinished prompt; shared, because vLLM only reads them.
_SAMPLED: list[int] = [7]
_NOTHING: list[int] = []
END_TOKEN = 8  # a stop token of every request whose length is not known
_END: list[int] = [END_TOKEN]
_ENDLESS = 1 << 30


@dataclass(slots=True, eq=False)
class Live:
    """A request in the system."""

    record: RequestRecord
    request: Request
    prefilled_tokens: int = 0  # of the prompt, the furthest it ever got

    def note_chunk(self, tokens: int, done: int) -> None:
        """A chunk that covers tokens computed before is a recompute."""
        request, end = self.request, done + tokens
        known = request.num_tokens - 1 if request._output_token_ids else self.prefilled_tokens
        self.record.recomputed_tokens += max(0, min(end, known) - done)
        self.prefilled_tokens = max(self.prefilled_tokens, end)


@dataclass(slots=True)
class Batch:
    """What a step computes, in the device's terms, and what the model answers."""

    prefills: list[Chunk]
    decodes: int
    context_tokens: int
    """Of decodes with KV."""

    longest_tokens: int
    half: HalfWork | None
    """What is of a half form, if anything is."""

    output: ModelRunnerOutput


class BatchReader:
    """Turns scheduled steps into batches. While the same requests go on decoding, in O(1) Python steps each."""

    def __init__(
        self, live: dict[str, Live], half_form: str | None, half_requests: Set[str], known_lengths: bool = True
    ) -> None:
        self._live = live
        self._half_form, self._half_requests = half_form, half_requests
        self._known_lengths = known_lengths
        self._until_end = 0  # steps until an answer ends, if all go on decoding
        self._decoding: dict[str, int] = {}  # the last step, if everybody in it decoded
        self._batch = Batch([], 0, 0, 0, None, ModelRunnerOutput(req_ids=[], req_id_to_index={}))

    def read(self, step: SchedulerOutput) -> Batch:
        scheduled, batch = step.num_scheduled_tokens, self._batch
        move = getattr(step, "hybrid_move", None)
        moved_tokens = 0 if move is None else move.tokens
        again = scheduled == self._decoding and not moved_tokens
        if again and (self._known_lengths or self._until_end > 1):
            self._until_end -= 1
            half, rows = batch.half, 0
            if half is not None:
                rows = half.rows
                batch.half = half._replace(context_tokens=half.context_tokens + rows)
            batch.context_tokens += batch.decodes - rows
            batch.longest_tokens += 1
            return batch
        return self._read_anew(scheduled, moved_tokens)

    def _read_anew(self, scheduled: dict[str, int], moved_tokens: int) -> Batch:
        prefills: list[Chunk] = []
        sampled: list[list[int]] = []
        decodes = context_tokens = longest_tokens = half_rows = half_tokens = half_chunk_tokens = 0
        live, half_requests = self._live, self._half_requests
        self._until_end = _ENDLESS
        for request_id, tokens in scheduled.items():
            entry = live[request_id]
            request = entry.request
            end = request.num_computed_tokens  # vLLM has advanced it
            sampled.append(_NOTHING if request.is_prefill_chunk else self._answer(entry))
            if tokens == 1:  # the last token of a prompt costs what a decode costs
                decodes += 1
                if request_id in half_requests:
                    half_rows += 1
                    half_tokens += end
                else:
                    context_tokens += end
                if end > longest_tokens:
                    longest_tokens = end
            else:
                prefills.append((tokens, end - tokens))
                half_chunk_tokens += end - tokens if request_id in half_requests else 0
                entry.note_chunk(tokens, end - tokens)
        ids = list(scheduled)
        output = ModelRunnerOutput(
            req_ids=ids, req_id_to_index=dict(zip(ids, range(len(ids)), strict=True)), sampled_token_ids=sampled
        )
        half = None
        if self._half_form is not None and (half_rows or half_chunk_tokens or moved_tokens):
            half = HalfWork(self._half_form, half_rows, half_tokens, half_chunk_tokens, moved_tokens)  # type: ignore[arg-type]
        self._batch = Batch(prefills, decodes, context_tokens, longest_tokens, half, output)
        everybody_decodes = self._until_end > 0 and not prefills and _NOTHING not in sampled and not moved_tokens
        self._decoding = scheduled if everybody_decodes else {}
        return self._batch

    def _answer(self, entry: Live) -> list[int]:
        """What a request that samples gets; notes when the first answer of the batch will end."""
        if self._known_lengths:
            return _SAMPLED
        request = entry.request
        tokens = request.num_output_tokens + max(1, request.num_output_placeholders)  # with the one sampled now
        left = entry.record.request.output_tokens - tokens
        if left <= 0:
            self._until_end = 0
            return _END
        self._until_end = min(self._until_end, left)
        return _SAMPLED
