"""Train K recipes together over one frozen base."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from tools.engine.base import LoadedBase
from tools.engine.batches import RowEncoder, Stream, lay_out
from tools.engine.generation import StoppedError
from tools.engine.lora import Adapter, Span
from tools.engine.loss import supervised_loss
from tools.engine.member import Member
from tools.engine.mid_eval import MidEvaluator
from tools.engine.results import MemberResult
from tools.engine.spec import MidEval, StackMember
from tools.errors import BakehouseError
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
        should_stop: Asked before every pass; True saves all members and ends.
    Returns:
        One result a member, in their order.
    """
    return _Stack(base, mode, mid_eval, stack_tokens, should_stop).run(members)


class _Stack:
    def __init__(
        self,
        base: LoadedBase,
        mode: Mode,
        mid_eval: MidEval | None,
        stack_tokens: int | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.base = base
        self.mode = mode
        self.encoder = RowEncoder(base.tokenizer)
        self.evaluator = None if mid_eval is None else MidEvaluator(base, mid_eval, should_stop)
        default = 0 if base.device.type == "cpu" else _ACCELERATOR_STACK_TOKENS
        self.stack_tokens = default if stack_tokens is None else stack_tokens
        self.should_stop = should_stop
        self.results: dict[str, MemberResult] = {}
        self.active: list[Member] = []
        self.next: Member | None = None

    def run(self, members: Sequence[StackMember]) -> tuple[MemberResult, ...]:
        waiting = list(members)
        while waiting or self.active:
            if self.should_stop():
                self._stop(waiting)
                break
            self._admit(waiting)
            if self.active:
                self._turn()
        return tuple(self.results[member.trial_id] for member in members)

    def _admit(self, waiting: list[StackMember]) -> None:
        """Seat waiting members while there is room; a lone one always finds room."""
        while True:
            taken = sum(member.pass_tokens for member in self.active)
            if self.active and taken >= self.stack_tokens:
                return
            while self.next is None and waiting:
                self.next = self._prepare(waiting.pop(0))
            if self.next is None or (self.active and taken + self.next.pass_tokens > self.stack_tokens):
                return
            member, self.next = self.next, None
            self.active.append(member)
            if member.step:
                self._settle(member)

    def _prepare(self, spec: StackMember) -> Member | None:
        try:
            return Member(spec, self.base, self.encoder, self.mode)
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            _report(spec.trial_id, err)
            self.results[spec.trial_id] = failed_result(spec.trial_id, err)
            return None

    def _turn(self) -> None:
        """One pass over the next rows of every active member."""
        started = time.perf_counter()
        members = tuple(self.active)
        parts = [member.next_part() for member in members]
        try:
            stream = lay_out(parts, self.base.device)
            losses = forward_backward(self.base, [member.adapter for member in members], stream)
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            for member in members:
                self._fail(member, err)
            return
        wall_s = time.perf_counter() - started
        for member, part, loss in zip(members, parts, losses, strict=True):
            if member.absorb(part, loss, wall_s):
                self._end_step(member)

    def _end_step(self, member: Member) -> None:
        try:
            member.take_step()
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            self._fail(member, err)
            return
        self._settle(member)

    def _settle(self, member: Member) -> None:
        """Score, save and let go of a member that stands between two steps, as far as due."""
        try:
            if self.evaluator is not None and member.is_score_due:
                self.evaluator.evaluate(member)
            member.save_if_due()
        except StoppedError:
            return
        except Exception as err:  # noqa: BLE001 - a failed trial is a result
            self._fail(member, err)
            return
        if member.is_finished:
            early = member.is_stalled and member.step < member.total_steps
            self._leave(member, member.result("stopped_early" if early else "done"))

    def _fail(self, member: Member, err: Exception) -> None:
        _report(member.spec.trial_id, err)
        self._leave(member, member.result("failed", f"{type(err).__name__}: {err}"))

    def _leave(self, member: Member, result: MemberResult) -> None:
        self.active.remove(member)
        member.close()
        self.results[result.trial_id] = result
        logger.info(
            "%s: %s after %d of %d steps", result.trial_id, result.status, result.steps, result.total_steps
        )

    def _stop(self, waiting: Sequence[StackMember]) -> None:
        for member in tuple(self.active):
            member.save()
            self._leave(member, member.result("stopped"))
        if self.next is not None:
            self.next.close()
            self.results[self.next.spec.trial_id] = self.next.result("stopped")
        for spec in waiting:
            self.results[spec.trial_id] = MemberResult(
                spec.trial_id, "stopped", 0, 0, None, None, None, None, 0, 0.0, None
            )


def forward_backward(base: LoadedBase, adapters: Sequence[Adapter], stream: Stream) -> list[torch.Tensor]:
    """Add the gradients of a stream to its adapters and return each adapter's weighted loss."""
    spans = [
        Span(adapter, place.start, place.length)
        for adapter, place in zip(adapters, stream.places, strict=True)
    ]
    with base.packed(), base.stack.placed(spans, dim=1):
        hidden_1_N_D = base.decoder(
            input_ids=stream.input_ids_1_N,
            position_ids=stream.positions_1_N,
            use_cache=False,
            documents=stream.documents,
        ).last_hidden_state
        hidden_S_D = hidden_1_N_D[0].index_select(0, stream.predicting_S)
        loss = supervised_loss(hidden_S_D, base.head_V_D, stream.targets_S, stream.weights_S)
        torch.autograd.backward(loss.total)
    weighted_S = loss.per_token_S * stream.weights_S
    return [weighted_S.narrow(0, place.supervised_start, place.n_supervised).sum() for place in stream.places]


def _report(trial_id: str, err: Exception) -> None:
    # What the project raises on purpose says all in its message; anything else needs its trace.
    logger.error("%s: %s", trial_id, err, exc_info=not isinstance(err, BakehouseError))


def failed_result(trial_id: str, err: Exception) -> MemberResult:
    """Return the result of a member that never ran."""
    error = f"{type(err).__name__}: {err}"
    return MemberResult(trial_id, "failed", 0, 0, None, None, None, None, 0, 0.0, None, error)
