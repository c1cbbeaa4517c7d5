"""The hybrid policy: one step's plan, put together from fairness, deadlines, room and filling.

1. Online decodes always run, as far as blocks are found for them. 2. Online prefills, started ones first, share what
the slack of the decodes allows (at least `MIN_PREFILL_TOKENS`). 3. Online requests that wait are placed, at the cost of
offline work if need be. 4. Offline work gets the rest: of the tokens, and of the seconds until the next online
deadline. 5. Where blocks are short, `growth.py` says who gets them. Without a target in the settings no time is kept:
the token budget alone binds, and the predictor is only watched.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.admission import Admission
from vllm_hybrid.policy.burst import Burst
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.growth import Growth
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS, Budget, OfflineFiller
from vllm_hybrid.policy.pace import Pace
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.room import Room, RoomMaker
from vllm_hybrid.policy.share import MinShare
from vllm_hybrid.policy.slo import Deadlines
from vllm_hybrid.policy.slowdown import Grant, Slowdown

MIN_PREFILL_TOKENS = 32  # online prefill of a step even where the slack is used up: a queue must move
_PATIENCE_S = 0.25  # an online prompt that came longer ago is not held back for the gaps of others
_STRICT_AIM = 0.96  # of the slack where single gaps count: the margin foresees nine in ten, an answer has hundreds
_ALLOWED_GAP = 1.0  # service, in tokens of the pool, that a client may fall behind while its requests are late
_MAX_HEADS = 8  # waiting online requests for which room is made in one step


class HybridPlanner:
    """Plans steps; keeps no state of its own but the deadline of the last plan."""

    always = False

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        self._slo = config.slo
        self._interval_s = config.lanes.offline.preempt_interval_s
        self._counters = counters
        self._quantum = config.fairness.quantum
        self._predictor = predictor
        self._deadlines = Deadlines(config.slo)
        self._aim = _STRICT_AIM if config.slo.online.gap == "strict" else 1.0
        self._filler = OfflineFiller(predictor, counters)
        self._earliest_s = math.inf
        self._slowdown: Slowdown | None = None
        if config.slo.online.slowdown is not None:
            self._slowdown = Slowdown(config.slo.online.slowdown, predictor)
        min_share = config.lanes.offline.min_share
        self._share = MinShare(min_share) if min_share else None
        self._burst = Burst()
        self._burst_blocks = 0
        self._beside_offline = False  # whether offline work was there at the last plan

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        self._judge(view)
        groups = Groups.of(view.running)
        plan = StepPlan(token_budget=view.max_tokens, order=list(groups.online_decodes))
        self._beside_offline = groups.offline or bool(view.parked) or view.waiting.lane_length(Lane.OFFLINE) > 0
        if self._slowdown is not None:
            self._slowdown.settle(view.last_output_s)
        decode_tokens = len(groups.online_decodes) * view.decode_tokens
        turn_tokens = self._turn(view, decode_tokens)
        if self._beside_offline:
            online_running = itertools.chain(groups.online_decodes, groups.online_prefills)
            self._burst_blocks = self._burst.reserve_blocks(online_running, view.now_s, view.block_tokens)
        step = StepWork()
        base_s, online_s = self._decode_seconds(view, groups, step)
        prefill_tokens = self._smooth(view, groups, step, view.max_tokens - decode_tokens - turn_tokens)
        online = Budget(prefill_tokens, online_s, MIN_PREFILL_TOKENS, step)
        chunk_tokens, chunk_s = self._prefill_online(plan, groups, online, view.max_chunk_tokens)
        heads = [] if turn_tokens else self._heads(view, groups, online.prefill_tokens(self._predictor, 0))
        room = self._make_room(view, groups, heads)
        head_tokens = self._head_tokens(heads, room, online)

        offline = Budget(view.max_tokens - decode_tokens - chunk_tokens - head_tokens, step=step)
        head_s = self._predictor.prefill_seconds(head_tokens, 0, step)
        left_s = online_s - head_s - chunk_s
        # A head that finds no room waits for a finisher, not for time: only those that come in hold offline work back.
        offline.seconds = self._offline_seconds(view, groups, heads[: room.placed], base_s, left_s, step)
        if self._slo.has_online_target and not self._predictor.ready:
            offline = Budget(min(UNTRAINED_TOKENS, offline.tokens), step=step)
        online_tokens = chunk_tokens + head_tokens
        step.prefill_tokens += head_tokens  # they will be beside the offline work, and come in after it
        grant = self._grant(groups, step, online_tokens, view.max_tokens)
        if turn_tokens:
            offline, grant = Budget(min(turn_tokens, offline.tokens), step=step), Grant()
        granted_s = offline.seconds
        filled_tokens = self._fill_offline(view, plan, groups, room, offline, grant)
        step.prefill_tokens -= head_tokens
        online.tokens = min(online.tokens, view.max_tokens - decode_tokens - chunk_tokens - filled_tokens)
        online.seconds -= granted_s - offline.seconds if granted_s < math.inf else 0.0

        if self._slo.has_online_target:
            waiting = view.waiting.lane_length(Lane.ONLINE)
            tokens = decode_tokens + chunk_tokens + (online.prefill_tokens(self._predictor, 0) if waiting else 0)
            tokens += filled_tokens + offline.prefill_tokens(self._predictor, 0)
            if len(plan.order) == len(plan.paused):
                tokens = max(tokens, UNTRAINED_TOKENS)
            plan.token_budget = max(1, min(view.max_tokens, tokens))
        if groups.offline or view.parked:
            Growth(view, plan, self._interval_s).settle()
        elif self._deadlines.between_tokens and self._predictor.ready:
            tbt_s = self._slo.online.tbt_s or math.inf
            pace = Pace(view, plan, tbt_s, self._predictor.seconds(step))
            pace.settle(groups.online_decodes, groups.online_prefills)
        plan.reserve_blocks = self._reserve(groups)
        if self._share is not None:
            self._share.note(decode_tokens + chunk_tokens, online, filled_tokens, offline)
        if room.slots > 0 or room.placed:
            plan.candidates = iter(self._admission(view, plan, groups, room, online, offline, bool(heads)))
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """Whether a plan under which everybody decodes is still right `steps` steps later, work being the next step's.

        The caller makes sure that nobody came, left, or could be admitted.
        """
        if self._share is not None and self._beside_offline:
            return False
        if not self._slo.has_online_target:
            return True
        if not self._predictor.ready or (self._slowdown is not None and self._beside_offline):
            return False
        seconds = self._predictor.seconds(work)
        if self._beside_offline and self._slo.idle_step_s is not None and seconds > self._slo.idle_step_s:
            return False
        if self._earliest_s == math.inf:  # no online decode has a deadline
            return seconds <= self._slo.idle_step_limit_s
        tbt_s = self._slo.online.tbt_s or math.inf
        due_s = self._earliest_s + tbt_s * steps
        if self._slo.online.gap == "strict":
            due_s = (now_s + pending_s if pending_s else last_output_s) + tbt_s
        return seconds * (1 + self._predictor.margin) <= due_s - now_s - pending_s

    def _turn(self, view: StepView, decode_tokens: int) -> int:
        """Tokens of the step that offline work has in any case."""
        if self._share is None:
            return 0
        self._share.settle(view.max_tokens, self._beside_offline)
        return min(self._share.turn_tokens(view.max_tokens), max(0, view.max_tokens - decode_tokens))

    def _judge(self, view: StepView) -> None:
        """Tell the waiting line what makes a request late."""
        waiting = view.waiting
        if waiting.urgency is not None:
            waiting.urgency.ttft_s = self._slo.online.ttft_s or math.inf
            waiting.urgency.now_s = view.now_s + view.pending_s
            if self._predictor.ready:
                waiting.urgency.token_s = self._predictor.prefill_seconds(view.max_tokens, 0) / view.max_tokens
            waiting.allowed_gap = _ALLOWED_GAP * view.total_blocks * view.block_tokens

    # -- online ------------------------------------------------------------------------------------------------------
    def _heads(self, view: StepView, groups: Groups, tokens: int) -> list[RequestView]:
        """The online requests whose prefill would start in a step with `tokens` to give.

        Empty where offline work is not concerned: then nobody has to make room.
        """
        waiting = view.waiting
        if tokens < 1 or not waiting.lane_length(Lane.ONLINE):
            return []
        if not (groups.offline or view.parked or waiting.lane_length(Lane.OFFLINE)):
            return []
        heads = waiting.resuming(Lane.ONLINE)
        with contextlib.closing(waiting.walk(Lane.ONLINE, groups.promised(self._counters), ())) as walk:
            heads += itertools.islice(walk, 4 * _MAX_HEADS)
        heads = list(itertools.islice(filter(view.ready, heads), _MAX_HEADS))
        before = itertools.accumulate((v.missing_tokens for v in heads), initial=0)
        return [v for v, taken in zip(heads, before) if taken < tokens]

    def _make_room(self, view: StepView, groups: Groups, heads: Sequence[RequestView]) -> Room:
        if not heads:
            return Room(slots=view.free_slots, blocks=view.free_blocks)
        maker = RoomMaker(view, groups.offline_decodes + groups.offline_prefills, self._interval_s)
        room = maker.place(heads, self._reserve(groups))
        room.more = len(heads) > room.placed or len(heads) == _MAX_HEADS
        gone = {*room.preempt, *room.park}
        if gone:
            groups.offline_decodes = [v for v in groups.offline_decodes if v not in gone]
            groups.offline_prefills = [v for v in groups.offline_prefills if v not in gone]
        return room

    @staticmethod
    def _reserve(groups: Groups) -> int:
        """Blocks that admissions leave free: one for each running online request, which will need it soon."""
        return len(groups.online_decodes) + len(groups.online_prefills)

    @staticmethod
    def _unwritten_blocks(view: StepView, groups: Groups) -> int:
        """Blocks that prompts under computation will still take."""
        prefills = itertools.chain(groups.online_prefills, groups.offline_prefills)
        return sum([-(-v.missing_tokens // view.block_tokens) for v in prefills])

    @staticmethod
    def _cut_short(plan: StepPlan, groups: Groups) -> bool:
        """Whether an offline prompt under computation gets less than it could use: then no other one is begun."""
        prefills = groups.offline_prefills
        return bool(prefills) and (any(v.request_id in plan.caps for v in prefills) or prefills[-1] in plan.paused)

    def _decode_seconds(self, view: StepView, groups: Groups, step: StepWork) -> tuple[float, float]:
        """Seconds of the online decodes, and seconds that online prefills may add to them; enters them into `step`."""
        self._earliest_s = math.inf
        if not self._slo.has_online_target or not self._predictor.ready:
            return 0.0, math.inf
        step.decodes = len(groups.online_decodes)
        step.context_tokens = sum([v.computed_tokens for v in groups.online_decodes])
        base_s = self._predictor.seconds(step)
        if not groups.online_decodes or not self._deadlines.between_tokens:
            return base_s, math.inf
        returns_s = view.now_s + view.pending_s
        self._earliest_s = self._deadlines.earliest(groups.online_decodes, view.last_output_s, returns_s)
        slack_s = max(0.0, self._earliest_s - returns_s)
        return base_s, self._aim * slack_s / (1 + self._predictor.margin) - base_s

    def _offline_seconds(
        self,
        view: StepView,
        groups: Groups,
        heads: Sequence[RequestView],
        base_s: float,
        left_s: float,
        step: StepWork,
    ) -> float:
        """Seconds that offline work may add to the step: up to the next deadline of anybody online.

        base_s: the online decodes; left_s: what they and the online prefills of the step leave of the decodes' slack.
        Where none binds, or the settings name it, the step is held to the idle limit: the next arrival waits for it.
        """
        if not self._slo.has_online_target or not self._predictor.ready:
            return math.inf
        margin = 1 + self._predictor.margin
        seconds = self._slo.idle_step_limit_s / margin - base_s if left_s == math.inf else left_s
        returns_s, needed_s = view.now_s + view.pending_s, base_s
        for v in itertools.chain(groups.online_prefills, heads):
            needed_s += self._predictor.prefill_seconds(v.missing_tokens, v.computed_tokens, step)
            slack_s = self._deadlines.first_token(v) - returns_s
            seconds = min(seconds, slack_s / margin - needed_s)
        if self._slo.idle_step_s is not None:
            seconds = min(seconds, self._slo.idle_step_s / margin - needed_s)
        return seconds

    def _smooth(self, view: StepView, groups: Groups, step: StepWork, most_tokens: int) -> int:
        """Tokens of online prefill in a step where the mean gap is limited: none waits long for its first token."""
        if self._slowdown is None or not self._predictor.ready or not groups.online_decodes:
            return most_tokens
        patience_s = self._slo.online.ttft_s / 2 if self._slo.online.ttft_s else _PATIENCE_S
        first = groups.online_prefills[0] if groups.online_prefills else view.waiting.head()
        if first is None or first.key[0] is not Lane.ONLINE or view.now_s - first.arrival_s > patience_s:
            return most_tokens
        return max(MIN_PREFILL_TOKENS, self._slowdown.online_chunk(step, most_tokens, first.computed_tokens))

    def _grant(self, groups: Groups, step: StepWork, prefill_tokens: int, most_tokens: int) -> Grant:
        """What the limit on the slowdown of online work leaves to offline work, of which `step` has none yet."""
        if self._slowdown is None or not self._predictor.ready:
            return Grant()
        self._slowdown.note(len(groups.online_decodes), step.context_tokens, prefill_tokens, most_tokens)
        return self._slowdown.grant()

    def _prefill_online(self, plan: StepPlan, groups: Groups, budget: Budget, limit: int) -> tuple[int, float]:
        """Give running online prefills chunks of at most `limit` out of `budget`; returns their tokens and seconds."""
        tokens, seconds = 0, 0.0
        for view in self._counters.fairly(groups.online_prefills):
            wanted = min(view.missing_tokens, limit)
            chunk = min(wanted, budget.prefill_tokens(self._predictor, view.computed_tokens))
            plan.order.append(view)
            if chunk < 1:
                plan.paused.append(view)
                continue
            if chunk < wanted:
                plan.caps[view.request_id] = chunk
            seconds += budget.spend_chunk(self._predictor, chunk, view.computed_tokens)
            tokens += chunk
        return tokens, seconds

    def _head_tokens(self, heads: Sequence[RequestView], room: Room, budget: Budget) -> int:
        """Prefill tokens that online admissions will take in the step, as far as can be foreseen."""
        tokens = budget.prefill_tokens(self._predictor, 0)
        if room.more and room.slots > 0 and not room.stuck:
            return tokens
        return min(tokens, sum(v.missing_tokens for v in heads[: room.placed]))

    # -- offline -----------------------------------------------------------------------------------------------------
    def _fill_offline(
        self, view: StepView, plan: StepPlan, groups: Groups, room: Room, budget: Budget, grant: Grant
    ) -> int:
        """Spend `budget` on running and parked offline requests, and complete the plan; returns the tokens."""
        plan.preempt, plan.park, plan.drop = room.preempt, room.park, room.drop
        back = self._returning(view, groups, room)
        decodes = groups.offline_decodes + [v for v in back if not v.prefilling]
        prefills = groups.offline_prefills + [v for v in back if v.prefilling]
        alone = not groups.online  # whom vLLM will admit is not certain: something must run in any case
        filling = self._filler.fill(
            decodes, prefills, budget, view, alone, grant.decodes, self._chunk_limit(grant, prefills)
        )
        parked = set(back)
        plan.unpark = [v for v in filling.run if v in parked]
        room.slots -= len(plan.unpark)
        plan.caps.update(filling.caps)
        # The last in the order is the first to lose blocks: who was disturbed lately stands before the others.
        run = [v for v in filling.run if v not in parked]
        if any(v.disturbed_s > -math.inf for v in run):
            run.sort(key=lambda v: -v.disturbed_s)
        paused = sorted((v for v in filling.paused if v not in parked), key=lambda v: -v.disturbed_s)
        plan.order += run
        plan.order += paused
        plan.paused += paused
        return filling.tokens

    def _chunk_limit(self, grant: Grant, prefills: Sequence[RequestView]) -> Callable[[Budget], int] | None:
        """Tokens of offline chunks, once the decodes are in the budget's step."""
        slowdown, worth = self._slowdown, grant.chunk_worth
        if slowdown is None or worth is None:
            return None
        done_tokens = prefills[0].computed_tokens if prefills else 0
        return lambda budget: slowdown.best_chunk(worth, budget.step, budget.tokens, done_tokens)

    def _returning(self, view: StepView, groups: Groups, room: Room) -> list[RequestView]:
        """Parked requests that find a slot and blocks once the waiting online requests have theirs."""
        dropped = set(room.drop)
        parked = [v for v in view.parked if v not in dropped]
        if not parked or room.stuck or room.more:
            if parked and not view.running and not room.placed:
                self._unstick(view, parked, room)
            return []
        back: list[RequestView] = []
        for v in parked[: max(0, room.slots)]:
            needed = view.blocks_needed(v)
            if needed <= room.blocks - self._reserve(groups) and view.admissible_tokens(v, 0):
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
        self,
        view: StepView,
        plan: StepPlan,
        groups: Groups,
        room: Room,
        online: Budget,
        offline: Budget,
        online_waits: bool,
    ) -> Admission:
        return Admission(
            view=view,
            plan=plan,
            predictor=self._predictor,
            promised=groups.promised(self._counters),
            online=online,
            offline=None if room.stuck or self._cut_short(plan, groups) else offline,
            reserve_blocks=self._reserve(groups),
            burst_blocks=self._burst_blocks + self._unwritten_blocks(view, groups),
            interval_s=self._interval_s,
            online_waits=online_waits,
            quantum=self._quantum,
            offline_first=self._share is not None and not groups.offline and self._share.starved(view.max_tokens),
        )
