"""The hybrid policy: one step's plan, put together from fairness, deadlines, room and filling.

1. Online decodes always run. 2. Online prefills, started ones first, share what the slack of the decodes allows (at
least `MIN_PREFILL_TOKENS`). 3. Online requests that wait are placed, at the cost of offline work if need be. 4.
Offline work gets the rest: of the tokens, and of the seconds until the next online deadline. 5. Paused requests stand
last, so that they are the first to lose blocks when a decode finds none. Without a target in the settings no time is
kept: the token budget alone binds, and the predictor is only watched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.admission import Admission
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS, Budget, OfflineFiller
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.room import Room, RoomMaker
from vllm_hybrid.policy.slo import Deadlines

MIN_PREFILL_TOKENS = 32  # online prefill of a step even where the slack is used up: a queue must move
_MAX_HEADS = 8  # waiting online requests for which room is made in one step


class HybridPlanner:
    """Plans steps; keeps no state of its own but the deadline of the last plan."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        self._slo = config.slo
        self._interval_s = config.lanes.offline.preempt_interval_s
        self._counters = counters
        self._predictor = predictor
        self._deadlines = Deadlines(config.slo)
        self._filler = OfflineFiller(predictor, counters)
        self._earliest_s = math.inf

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        groups = Groups.of(view.running)
        heads = self._heads(view, groups)
        room = self._make_room(view, groups, heads)
        online_s, offline_s = self._seconds(view, groups, heads)

        plan = StepPlan(token_budget=view.max_tokens, order=list(groups.online_decodes))
        decode_tokens = len(groups.online_decodes) * view.decode_tokens
        online = Budget(self._online_tokens(view.max_tokens - decode_tokens, online_s), math.inf)
        chunk_tokens, chunk_s = self._prefill_online(plan, groups, online)
        head_tokens = self._head_tokens(view, heads, room, online)
        offline = Budget(view.max_tokens - decode_tokens - chunk_tokens - head_tokens, offline_s)
        offline.seconds -= chunk_s + self._predictor.prefill_seconds(head_tokens, 0)
        if self._slo.has_online_target and not self._predictor.ready:
            offline = Budget(min(UNTRAINED_TOKENS, offline.tokens), math.inf)
        filled_tokens = self._fill_offline(view, plan, groups, room, offline)

        if self._slo.has_online_target:
            waiting_tokens = online.tokens if view.waiting.lane_length(Lane.ONLINE) else 0
            left_tokens = max(0, offline.prefill_tokens(self._predictor, 0))
            tokens = decode_tokens + chunk_tokens + waiting_tokens + filled_tokens + left_tokens
            if len(plan.order) == len(plan.paused):
                tokens = max(tokens, UNTRAINED_TOKENS)
            plan.token_budget = max(1, min(view.max_tokens, tokens))
        if room.slots > 0 or room.placed:
            plan.candidates = iter(self._admission(view, plan, groups, room, online, offline))
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """Whether a plan under which everybody decodes is still right `steps` steps later, work being the next step's.

        The caller makes sure that nobody came, left, or could be admitted.
        """
        if not self._slo.has_online_target:
            return True
        if self._earliest_s == math.inf:  # no online decode has a deadline
            return self._predictor.seconds(work) <= self._slo.idle_step_limit_s
        tbt_s = self._slo.online.tbt_s or math.inf
        due_s = self._earliest_s + tbt_s * steps
        if self._slo.online.gap == "strict":
            due_s = last_output_s + tbt_s
        slack_s = due_s - now_s - pending_s
        return self._predictor.ready and self._predictor.seconds(work) * (1 + self._predictor.margin) <= slack_s

    # -- online ------------------------------------------------------------------------------------------------------
    def _heads(self, view: StepView, groups: Groups) -> list[RequestView]:
        """The online requests that would be admitted next; empty where offline work is not concerned."""
        waiting = view.waiting
        if not waiting.lane_length(Lane.ONLINE):
            return []
        if not (groups.offline or view.parked or waiting.lane_length(Lane.OFFLINE)):
            return []
        heads = waiting.resuming(Lane.ONLINE)[:_MAX_HEADS]
        walk = waiting.walk(Lane.ONLINE, groups.promised(self._counters), ())
        heads += itertools.islice((v for v in walk if not v.started), _MAX_HEADS - len(heads))
        walk.close()
        tokens = itertools.accumulate((v.missing_tokens for v in heads), initial=0)
        return [v for v, before in zip(heads, tokens) if before < view.max_tokens]

    def _make_room(self, view: StepView, groups: Groups, heads: Sequence[RequestView]) -> Room:
        if not heads:
            return Room(slots=view.free_slots, blocks=view.free_blocks)
        maker = RoomMaker(view, groups.offline_decodes + groups.offline_prefills, self._interval_s)
        room = maker.place(heads, self._reserve(groups))
        gone = {*room.preempt, *room.park}
        if gone:
            groups.offline_decodes = [v for v in groups.offline_decodes if v not in gone]
            groups.offline_prefills = [v for v in groups.offline_prefills if v not in gone]
        return room

    @staticmethod
    def _reserve(groups: Groups) -> int:
        """Blocks that admissions leave free: one for each running online request, which will need it soon."""
        return len(groups.online_decodes) + len(groups.online_prefills)

    def _seconds(self, view: StepView, groups: Groups, heads: Sequence[RequestView]) -> tuple[float, float]:
        """Seconds that online prefills, and offline work, may add to the step's online decodes."""
        self._earliest_s = math.inf
        if not self._slo.has_online_target or not self._predictor.ready:
            return math.inf, math.inf
        predictor = self._predictor
        context = sum([v.computed_tokens for v in groups.online_decodes])
        base_s = predictor.seconds(StepWork(decodes=len(groups.online_decodes), context_tokens=context))
        now_s = view.now_s + view.pending_s
        if not (groups.online or heads):
            return math.inf, self._slo.idle_step_limit_s / (1 + predictor.margin) - base_s
        online_s = math.inf
        if groups.online_decodes and self._deadlines.between_tokens:
            self._earliest_s = self._deadlines.earliest(groups.online_decodes, view.last_output_s)
            online_s = max(0.0, self._earliest_s - now_s) / (1 + predictor.margin) - base_s
        offline_s = online_s
        for v in itertools.chain(groups.online_prefills, heads):
            slack_s = self._deadlines.first_token(v) - now_s
            needed_s = predictor.prefill_seconds(v.missing_tokens, v.computed_tokens) + base_s
            offline_s = min(offline_s, slack_s / (1 + predictor.margin) - needed_s)
        return online_s, offline_s

    def _online_tokens(self, left: int, seconds: float) -> int:
        """Prefill tokens that online requests may compute in the step."""
        if seconds == math.inf:
            return max(0, left)
        within = self._predictor.prefill_tokens_within(seconds, 0)
        return int(max(0, min(left, max(MIN_PREFILL_TOKENS, within))))

    def _prefill_online(self, plan: StepPlan, groups: Groups, budget: Budget) -> tuple[int, float]:
        """Give running online prefills their chunks out of `budget`; returns their tokens and seconds."""
        tokens, seconds = 0, 0.0
        for view in groups.online_prefills:
            chunk = min(view.missing_tokens, budget.tokens)
            plan.order.append(view)
            if chunk < 1:
                plan.paused.append(view)
                continue
            if chunk < view.missing_tokens:
                plan.caps[view.request_id] = chunk
            budget.tokens -= chunk
            tokens += chunk
            seconds += self._predictor.prefill_seconds(chunk, view.computed_tokens)
        return tokens, seconds

    @staticmethod
    def _head_tokens(view: StepView, heads: Sequence[RequestView], room: Room, budget: Budget) -> int:
        """Prefill tokens that online admissions will take in the step, as far as can be foreseen."""
        more = view.waiting.lane_length(Lane.ONLINE) > room.placed and room.slots > 0 and not room.stuck
        if more:
            return budget.tokens
        return min(budget.tokens, sum(v.missing_tokens for v in heads[: room.placed]))

    # -- offline -----------------------------------------------------------------------------------------------------
    def _fill_offline(self, view: StepView, plan: StepPlan, groups: Groups, room: Room, budget: Budget) -> int:
        """Spend `budget` on running and parked offline requests, and complete the plan; returns the tokens."""
        plan.preempt, plan.park, plan.drop = room.preempt, room.park, room.drop
        back = self._returning(view, groups, room)
        decodes = groups.offline_decodes + [v for v in back if not v.prefilling]
        prefills = groups.offline_prefills + [v for v in back if v.prefilling]
        alone = not groups.online  # whom vLLM will admit is not certain: something must run in any case
        filling = self._filler.fill(decodes, prefills, budget, view.decode_tokens, at_least_one=alone)
        parked = set(back)
        plan.unpark = [v for v in filling.run if v in parked]
        room.slots -= len(plan.unpark)
        plan.caps.update(filling.caps)
        plan.order += [v for v in filling.run if v not in parked]
        paused = [v for v in filling.paused if v not in parked]
        plan.order += paused
        plan.paused += paused
        return filling.tokens

    def _returning(self, view: StepView, groups: Groups, room: Room) -> list[RequestView]:
        """Parked requests that find a slot and blocks once the waiting online requests have theirs."""
        parked = [v for v in view.parked if v not in room.drop]
        if not parked or room.stuck or view.waiting.lane_length(Lane.ONLINE) > room.placed:
            if parked and not view.running and not room.placed:
                self._unstick(view, parked, room)
            return []
        back: list[RequestView] = []
        for v in parked[: max(0, room.slots)]:
            needed = view.blocks_needed(v)
            if needed <= room.blocks - self._reserve(groups):
                room.blocks -= needed
                back.append(v)
        if not back and not view.running and not room.placed:
            self._unstick(view, parked, room)
        return back

    @staticmethod
    def _unstick(view: StepView, parked: list[RequestView], room: Room) -> None:
        """Nothing runs and nothing fits, because parked requests hold the pool: the one with least to lose lets go."""
        victim = min(parked, key=lambda v: v.computed_tokens)
        room.drop.append(victim)

    def _admission(
        self, view: StepView, plan: StepPlan, groups: Groups, room: Room, online: Budget, offline: Budget
    ) -> Admission:
        return Admission(
            view=view,
            plan=plan,
            predictor=self._predictor,
            promised=groups.promised(self._counters),
            online=online,
            offline=None if room.stuck else offline,
            reserve_blocks=self._reserve(groups),
            interval_s=self._interval_s,
        )
