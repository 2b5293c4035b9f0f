"""Train K recipes together over one frozen base."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from tools.engine.base import LoadedBase
from tools.engine.batches import RowEncoder, Stream, StreamPart, lay_out
from tools.engine.generation import StoppedError
from tools.engine.halving import Cut, Halving, Standing, cut
from tools.engine.member import Member
from tools.engine.memory import give_back_memory, is_out_of_memory
from tools.engine.mid_eval import MidEvaluator
from tools.engine.pass_limit import PassLimit
from tools.engine.passes import forward_backward
from tools.engine.results import MemberResult
from tools.engine.spec import MidEval, StackMember
from tools.errors import BakehouseError, TrainError
from tools.recipe import MODE_FULL, Mode

__all__ = ["train_stack"]

logger = logging.getLogger(__name__)

_ACCELERATOR_STACK_TOKENS = 16384


def train_stack(
    base: LoadedBase,
    members: Sequence[StackMember],
    *,
    mode: Mode = MODE_FULL,
    mid_eval: MidEval | None = None,
    stack_tokens: int | None = None,
    search: Halving | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[MemberResult, ...]:
    """Train every member, as many side by side as the token limit holds.

    Rows lie end to end in one stream whatever a recipe's `packing` says: nothing is padded, and
    attention stays inside each row, so that the two settings give the same numbers.
    A member's result is the same, within rounding, whoever trains beside it. One that finishes,
    stalls or fails leaves, and the next takes its room. A member whose run_dir holds a
    checkpoint goes on from there.

    Args:
        mid_eval: Rows to score each member on at its recipe's eval_interval.
        stack_tokens: Most tokens in one pass. None: one member at a time on a CPU, where a
            wider pass gains nothing, and then a killed run resumes bit for bit.
        search: Halts the worst members on the way, by the scores of mid_eval. Those that go on
            end as they would without it.
        should_stop: Asked before every pass; True saves all members and ends.
    Returns:
        One result a member, in their order.
    """
    if search is not None and mid_eval is None:
        raise TrainError("search needs mid_eval: without dev scores nobody can be told to leave")
    # One alone has nobody to lose against.
    search = search if len(members) > 1 else None
    return _Stack(base, mode, mid_eval, stack_tokens, search, should_stop).run(members)


class _Stack:
    def __init__(
        self,
        base: LoadedBase,
        mode: Mode,
        mid_eval: MidEval | None,
        stack_tokens: int | None,
        search: Halving | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.base = base
        self.mode = mode
        self.encoder = RowEncoder(base.tokenizer)
        evaluator = None if mid_eval is None else MidEvaluator(base, mid_eval, self.encoder, should_stop)
        self.evaluator = evaluator
        default = 0 if base.device.type == "cpu" else _ACCELERATOR_STACK_TOKENS
        self.stack_tokens = default if stack_tokens is None else stack_tokens
        self.search = search
        self.should_stop = should_stop
        self.is_stopped = False
        self.is_full = False
        """Memory ran out when one more was to be seated."""
        self.rung: int | None = None
        self.results: dict[str, MemberResult] = {}
        self.standings: dict[str, tuple[Standing | None, ...]] = {}
        """By trial, how it stands at each rung."""
        self.active: list[Member] = []
        self.next: Member | None = None
        self.limit = PassLimit()
        self.lays_ahead = _works_by_itself(base.device)
        self.ahead: Stream | None = None
        """What was laid out for the next pass, if that is what will be asked for."""

    def run(self, members: Sequence[StackMember]) -> tuple[MemberResult, ...]:
        contenders = list(members)
        for rung in range(0 if self.search is None else len(self.search.rungs)):
            self._run_to(rung, contenders)
            contenders = self._cut(rung, contenders)
        self._run_to(None, contenders)
        return tuple(self.results[member.trial_id] for member in members)

    def _run_to(self, rung: int | None, members: Sequence[StackMember]) -> None:
        """Bring every member that has not ended to a rung, or to its end."""
        self.rung = rung
        waiting = [member for member in members if self._may_go_on(member)]
        while waiting or self.active or self.next is not None:
            if self.is_stopped or self.should_stop():
                self._stop(waiting)
                return
            self._admit(waiting)
            if self.active:
                self._turn()

    def _may_go_on(self, member: StackMember) -> bool:
        result = self.results.get(member.trial_id)
        return result is None or result.status == "stopped"

    def _cut(self, rung: int, members: Sequence[StackMember]) -> list[StackMember]:
        """Halt those that are behind at a rung and return the others."""
        if self.is_stopped:
            return list(members)
        standings = {
            member.trial_id: standing
            for member in members
            if self.results[member.trial_id].status != "failed"
            and (standing := self.standings[member.trial_id][rung]) is not None
        }
        if not standings:
            return list(members)
        assert self.search is not None
        found = cut(standings, self.search.keep)
        halted = standings.keys() - found.kept
        for name in halted:
            self._halt(name, standings[name], found)
        return [member for member in members if member.trial_id not in halted]

    def _halt(self, trial_id: str, standing: Standing, found: Cut) -> None:
        result = self.results[trial_id]
        # One that has ended already keeps its result, though it counts no longer.
        if result.status == "stopped":
            assert self.evaluator is not None
            reason = found.describe(standing, result.steps, result.total_steps, self.evaluator.n_items)
            self.results[trial_id] = replace(result, status="halted", error=reason)
            logger.info("%s %s", trial_id, reason)

    def _admit(self, waiting: list[StackMember]) -> None:
        """Seat waiting members while there is room; a lone one always finds room."""
        while True:
            taken = sum(member.pass_tokens for member in self.active)
            if self.active and (self.is_full or taken >= self.stack_tokens):
                return
            while self.next is None and waiting and not (self.is_full and self.active):
                self.next = self._prepare(waiting)
            if self.next is None or (self.active and taken + self.next.pass_tokens > self.stack_tokens):
                return
            member, self.next = self.next, None
            self.active.append(member)
            if member.step:
                self._settle([member])

    def _prepare(self, waiting: list[StackMember]) -> Member | None:
        spec = waiting.pop(0)
        try:
            return Member(spec, self.base, self.encoder, self.mode, self.search)
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            if is_out_of_memory(err) and self.active:
                # Room comes back when the next one leaves.
                waiting.insert(0, spec)
                self.is_full = True
                return None
            _report(spec.trial_id, err)
            self.results[spec.trial_id] = failed_result(spec.trial_id, err)
            return None

    def _turn(self) -> None:
        """Take every active member over its next rows, in as few passes as memory allows."""
        for members in self.limit.groups(self.active):
            self._pass(members)

    def _pass(self, members: Sequence[Member]) -> None:
        started = time.perf_counter()
        parts = [member.next_part(self.limit.tokens) for member in members]
        recompute = any(member.recipe.gradient_checkpointing for member in members)
        losses, refusal = None, ""
        try:
            stream = self._lay_out(parts)
            adapters = [member.adapter for member in members]
            losses = forward_backward(self.base, adapters, stream, recompute=recompute)
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            if not is_out_of_memory(err):
                self._break_off(members, err)
                return
            refusal = str(err)
        if losses is None:
            # Only here are the error and all that its frames held on to gone.
            self._make_room(members, parts, refusal)
            return
        wall_s = time.perf_counter() - started
        due = [
            member
            for member, part, loss in zip(members, parts, losses, strict=True)
            if member.absorb(part, loss, wall_s)
        ]
        self._lay_out_ahead(members)
        self._end_step(due)

    def _lay_out(self, parts: Sequence[StreamPart]) -> Stream:
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead.parts == tuple(parts):
            return ahead
        return lay_out(parts, self.base.device)

    def _lay_out_ahead(self, members: Sequence[Member]) -> None:
        """Lay out and send what comes next while the device is at work on what it has."""
        if not self.lays_ahead or len(members) < len(self.active):
            return
        parts = [member.following_part(self.limit.tokens) for member in members]
        coming = [part for part in parts if part is not None]
        try:
            self.ahead = lay_out(coming, self.base.device) if coming else None
        except (RuntimeError, MemoryError) as err:
            # Then it is laid out when it is needed, and memory is made where that has no room either.
            if not is_out_of_memory(err):
                raise

    def _break_off(self, members: Sequence[Member], err: Exception) -> None:
        """Fail a lone member; of several, let each go alone and show whose fault it was."""
        if len(members) == 1:
            self._fail(members[0], err)
            return
        for member in members:
            member.restart_step()
            self._pass((member,))

    def _make_room(self, members: Sequence[Member], parts: Sequence[StreamPart], refusal: str) -> None:
        """Repeat the step in smaller passes; a lone row that does not fit fails its member alone."""
        give_back_memory()
        n_tokens = sum(len(row.input_ids) for part in parts for row in part.rows)
        if sum(len(part.rows) for part in parts) == 1:
            (row,) = parts[0].rows
            err = TrainError(
                f"row {row.row_id} of {n_tokens} tokens does not fit into memory by itself; set "
                f"gradient_checkpointing, shorten the row, or free memory: {refusal}"
            )
            self._fail(members[0], err)
            return
        limit = self.limit.lower(n_tokens)
        self.stack_tokens = min(self.stack_tokens, limit)
        logger.warning("a pass of %d tokens ran out of memory; from now on %d at most", n_tokens, limit)
        for member in members:
            member.restart_step()

    def _end_step(self, members: Sequence[Member]) -> None:
        """Update members whose batch is whole. The device is waited for once, not once a member."""
        started = time.perf_counter()
        try:
            found = torch.stack([member.step_numbers() for member in members]).tolist() if members else []
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            for member in members:
                self._fail(member, err)
            return
        wait_s = time.perf_counter() - started
        stepped = []
        for member, (loss, grad_norm) in zip(members, found, strict=True):
            try:
                member.take_step(loss, grad_norm, wait_s)
            except Exception as err:  # noqa: BLE001 - a failed trial is a result
                self._fail(member, err)
                continue
            stepped.append(member)
        self._settle(stepped)

    def _settle(self, members: Sequence[Member]) -> None:
        """Score, save and let go of members that stand between two steps, as far as due."""
        due = [member for member in members if self._awaits_score(member)]
        if due:
            self._score(due)
        for member in members:
            # A score is missing where a stop was asked for in the middle.
            if member in self.active and not self._awaits_score(member):
                self._save_or_let_go(member)

    def _awaits_score(self, member: Member) -> bool:
        return self.evaluator is not None and member.is_score_due

    def _score(self, members: Sequence[Member]) -> None:
        """Score members together; where that fails, one by one, so that it shows whose fault it was."""
        assert self.evaluator is not None
        try:
            self.evaluator.evaluate(members)
        except StoppedError:
            return
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            if len(members) == 1:
                self._fail(members[0], err)
                return
            for member in members:
                if self._awaits_score(member):
                    self._score([member])

    def _save_or_let_go(self, member: Member) -> None:
        try:
            member.save_if_due()
            pauses = self.rung is not None and member.step >= member.rung_steps[self.rung]
            if pauses:
                # It comes back from its checkpoint; meanwhile another takes its seat.
                member.save()
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            self._fail(member, err)
            return
        if member.is_finished:
            early = member.is_stalled and member.step < member.total_steps
            self._leave(member, member.result("stopped_early" if early else "done"))
        elif pauses:
            self._leave(member, member.result("stopped"), told="paused at a rung")

    def _fail(self, member: Member, err: Exception) -> None:
        _report(member.spec.trial_id, err)
        self._leave(member, member.result("failed", f"{type(err).__name__}: {err}"))

    def _leave(self, member: Member, result: MemberResult, *, told: str | None = None) -> None:
        self.active.remove(member)
        self.is_full = False
        member.close()
        self.results[result.trial_id] = result
        self.standings[result.trial_id] = member.standings
        how = told or result.status
        logger.info("%s: %s after %d of %d steps", result.trial_id, how, result.steps, result.total_steps)

    def _stop(self, waiting: Sequence[StackMember]) -> None:
        self.is_stopped = True
        for member in tuple(self.active):
            member.save()
            self._leave(member, member.result("stopped"))
        if self.next is not None:
            self.next.close()
            self.results[self.next.spec.trial_id] = self.next.result("stopped")
            self.next = None
        for spec in waiting:
            nothing = MemberResult(spec.trial_id, "stopped", 0, 0, None, None, None, None, 0, 0.0, None)
            self.results.setdefault(spec.trial_id, nothing)


def _works_by_itself(device: torch.device) -> bool:
    """Whether this process is free while the device computes."""
    return device.type != "cpu"


def _report(trial_id: str, err: Exception) -> None:
    # What the project raises on purpose says all in its message; anything else needs its trace.
    logger.error("%s: %s", trial_id, err, exc_info=not isinstance(err, BakehouseError))


def failed_result(trial_id: str, err: Exception) -> MemberResult:
    """Return the result of a member that never ran."""
    error = f"{type(err).__name__}: {err}"
    return MemberResult(trial_id, "failed", 0, 0, None, None, None, None, 0, 0.0, None, error)
