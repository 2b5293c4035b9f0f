"""One trial inside a stack: its adapter, optimizer, data order, counters and checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import torch

from tools.engine.base import LoadedBase
from tools.engine.batches import EncodedRow, EpochRows, RowEncoder, StreamPart, check_rows, rows_of_step
from tools.engine.checkpoint import (
    TrainerState,
    find_checkpoint,
    iter_dir,
    publish_best,
    rotate,
    save_checkpoint,
)
from tools.engine.halving import Halving, Standing
from tools.engine.lora import DropWindow, LoraShape
from tools.engine.memory import peak_memory_bytes
from tools.engine.pass_size import rows_per_pass
from tools.engine.results import MemberResult, MemberStatus
from tools.engine.schedule import learning_rate_at
from tools.engine.spec import StackMember
from tools.errors import TrainError
from tools.files import append_line, read_jsonl, write_text_atomic
from tools.lock import hold_lock
from tools.recipe import MODE_SMOKE, Mode

__all__ = ["METRICS_FILE", "Member"]

METRICS_FILE: Final = "metrics.jsonl"
_SMOKE_ROWS: Final = 10
# A worker whose parent was killed may still be saving when the next one starts.
_LOCK_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class Member:
    """A trial that is being trained. It steps at its own pace, whoever trains beside it."""

    def __init__(
        self,
        spec: StackMember,
        base: LoadedBase,
        encoder: RowEncoder,
        mode: Mode,
        search: Halving | None = None,
    ) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.run_dir = Path(spec.run_dir)
        self._lock = contextlib.ExitStack()
        self.system_prompt = read_system_prompt(spec.recipe.system_prompt_file)
        dataset = encoder.encode(spec.recipe.dataset_jsonl, self.system_prompt)
        check_rows(dataset.rows, spec.recipe.seq_length)
        self.rows = spread(dataset.rows, _SMOKE_ROWS) if mode == MODE_SMOKE else dataset.rows
        self._longest = max(len(row.input_ids) for row in self.rows)
        self._pass_rows = rows_per_pass(spec.recipe, self._longest)
        self.total_steps = spec.recipe.total_steps(len(dataset.rows), mode)
        # Decided by the recipe alone, so that a resumed run rounds as the first one did.
        is_repeated = 2 * self.total_steps * spec.recipe.global_batch_size >= len(self.rows)
        self._epoch = EpochRows(self.rows) if is_repeated else None
        self.adapter = base.stack.new_adapter(spec.trial_id, LoraShape.of(spec.recipe), device=base.device)
        self.optimizer = torch.optim.AdamW(
            [self.adapter.flat],
            lr=spec.recipe.learning_rate,
            weight_decay=spec.recipe.weight_decay,
            fused=True,
        )
        self.step = 0
        self.tokens = 0
        self.train_s = 0.0
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.rung_steps = () if search is None else search.steps(self.total_steps)
        self.rung_scores: dict[int, float] = {}
        self.rung_losses: dict[int, float] = {}
        self.last_loss: float | None = None
        self._base = base
        self._data_digest = dataset.digest
        self._saved_step: int | None = None
        self._is_saved = False
        self._evals_without_gain = 0
        self._scored_step: int | None = None
        self._step_rows: list[EncodedRow] = []
        self._step_loss: torch.Tensor | float = 0.0
        self._step_tokens = 0
        self._step_s = 0.0
        self._dropout_state = self._micro_state = self.adapter.generator.get_state()
        self._lock.enter_context(hold_lock(self.run_dir / ".lock", timeout_s=_LOCK_TIMEOUT_S))
        try:
            self._resume_or_start()
            self._begin_step()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process use the run folder."""
        self._lock.close()

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps or self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """No better score within the recipe's patience."""
        patience = self.recipe.early_stop_patience
        return patience is not None and self._evals_without_gain >= patience

    @property
    def is_score_due(self) -> bool:
        """The present weights belong to an evaluation step or to a rung and have no score yet."""
        if self.step == 0 or self._scored_step == self.step:
            return False
        return self._is_at_interval or self.is_at_rung

    @property
    def is_at_rung(self) -> bool:
        """A search compares the present weights."""
        return self.step in self.rung_steps

    @property
    def standings(self) -> tuple[Standing | None, ...]:
        """How it stands at each rung; one that it did not reach takes its best score.

        None where nothing was scored.
        """
        scores = [self.rung_scores.get(step, self.best_score) for step in self.rung_steps]
        losses = [self.rung_losses.get(step) for step in self.rung_steps]
        return tuple(
            None if score is None else Standing(score, loss)
            for score, loss in zip(scores, losses, strict=True)
        )

    @property
    def pass_tokens(self) -> int:
        """Most tokens that this member brings to one pass."""
        return self._pass_rows * self._longest

    def next_part(self, max_tokens: int | None = None) -> StreamPart:
        """Return the rows of the next pass: the next _pass_rows, or what max_tokens hold of their rest."""
        rows = self._next_rows(max_tokens)
        if self.adapter.dropout:
            self._place_dropout()
        return self._part(rows, self._token_weight)

    def following_part(self, max_tokens: int | None = None) -> StreamPart | None:
        """Return what next_part will return once the pass in flight is absorbed and its step taken.

        None where that was the last one. Dropout is not drawn for it yet.
        """
        if self._next_row < len(self._step_rows):
            return self._part(self._next_rows(max_tokens), self._token_weight)
        if self.step + 1 >= self.total_steps:
            return None
        rows = self._rows_of(self.step + 1)
        return self._part(_first_of(rows[: self._pass_rows], max_tokens), _token_weight(rows))

    def next_tokens(self, max_tokens: int | None = None) -> int:
        """Return how many tokens next_part would bring."""
        return _n_tokens(self._next_rows(max_tokens))

    def restart_step(self) -> None:
        """Go back to the start of the step: the gradients of a pass that broke off are no use."""
        assert self.adapter.flat.grad is not None
        self.adapter.flat.grad.zero_()
        self.adapter.generator.set_state(self._dropout_state)
        self._next_row, self._step_loss, self._step_tokens = 0, 0.0, 0

    def absorb(self, part: StreamPart, weighted_loss: torch.Tensor, wall_s: float) -> bool:
        """Count a pass whose gradients have been added; True when the optimizer step is due."""
        self._next_row += len(part.rows)
        self._step_loss = self._step_loss + weighted_loss
        self._step_tokens += _n_tokens(part.rows)
        self._step_s += wall_s
        return self._next_row >= len(self._step_rows)

    def step_numbers(self) -> torch.Tensor:
        """Return the loss and the gradient's norm of a whole batch, on the device."""
        grad = self.adapter.flat.grad
        assert grad is not None
        assert isinstance(self._step_loss, torch.Tensor)
        return torch.stack([self._step_loss, torch.linalg.vector_norm(grad)])

    def take_step(self, loss: float, grad_norm: float, wait_s: float) -> None:
        """Update the adapter from the gradients of a whole batch.

        Args:
            loss: With grad_norm, what step_numbers returned.
            wait_s: How long the device was waited for to know them.
        Raises:
            TrainError: the loss or the gradient is not finite; the adapter stays as it was.
        """
        self._step_s += wait_s
        grad = self.adapter.flat.grad
        assert grad is not None
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise TrainError(
                f"step {self.step + 1}: loss {loss}, gradient norm {grad_norm}: not finite; "
                "lower learning_rate, or set max_grad_norm or torch_dtype float32"
            )
        if self.recipe.max_grad_norm and grad_norm > self.recipe.max_grad_norm:
            grad.mul_(self.recipe.max_grad_norm / grad_norm)
        rate = learning_rate_at(self.recipe, self.step, self.total_steps)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        grad.zero_()
        self.step += 1
        self._is_saved = False
        self.last_loss = loss
        self.tokens += self._step_tokens
        self.train_s += self._step_s
        self._log(
            loss=loss,
            grad_norm=grad_norm,
            lr=rate,
            tokens=self._step_tokens,
            tokens_per_s=self._step_tokens / self._step_s if self._step_s else None,
            memory_bytes=peak_memory_bytes(self._base.device),
            wall_s=self.train_s,
        )
        self._begin_step()

    def note_score(self, score: float, n_items: int, wall_s: float, loss: float | None = None) -> None:
        """Take in the score of a mid-run evaluation of the present weights.

        A score at a rung alone does not choose the best checkpoint: a search changes nothing for
        those that it lets go on.
        """
        if self.is_at_rung:
            self.rung_scores[self.step] = score
            if loss is not None:
                self.rung_losses[self.step] = loss
        if self._is_at_interval:
            self._choose_best(score)
        self._scored_step = self.step
        self._is_saved = False
        more = {} if loss is None or not math.isfinite(loss) else {"eval_loss": loss}
        self._log(eval_score=score, n_items=n_items, wall_s=wall_s, **more)

    @property
    def _is_at_interval(self) -> bool:
        interval = self.recipe.eval_interval
        return interval is not None and (self.step % interval == 0 or self.step >= self.total_steps)

    def _choose_best(self, score: float) -> None:
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_step, self._evals_without_gain = score, self.step, 0
        else:
            self._evals_without_gain += 1

    def save_if_due(self) -> None:
        """Save after a save interval, at a new best and at the end."""
        at_interval = self.step % self.recipe.save_interval == 0
        if at_interval or self.best_step == self.step or self.is_finished:
            self.save()

    def save(self) -> None:
        """Save the state after the last whole step, unless it is on disk already."""
        if self._is_saved or self.step == 0:
            return
        save_checkpoint(self.run_dir, self.adapter, self._state(), self._base.name)
        self._saved_step, self._is_saved = self.step, True
        rotate(self.run_dir, most_recent_k=self.recipe.most_recent_k, best_step=self.best_step)

    def result(self, status: MemberStatus, error: str | None = None) -> MemberResult:
        """Say how the trial ended."""
        chosen = self.best_step if self.best_step is not None else self._saved_step
        return MemberResult(
            trial_id=self.spec.trial_id,
            status=status,
            steps=self.step,
            total_steps=self.total_steps,
            final_iter=self._saved_step,
            best_iter=self.best_step,
            best_score=self.best_score,
            adapter_dir=None if chosen is None else str(iter_dir(self.run_dir, chosen)),
            tokens=self.tokens,
            train_s=self.train_s,
            final_loss=self.last_loss,
            error=error,
            prefix_tokens_saved=self.adapter.prefix_tokens_saved,
        )

    def _next_rows(self, max_tokens: int | None) -> tuple[EncodedRow, ...]:
        """Return the next rows of the pass, one at least."""
        size = self._pass_rows
        return _first_of(self._step_rows[self._next_row : (self._next_row // size + 1) * size], max_tokens)

    def _part(self, rows: tuple[EncodedRow, ...], token_weight: float) -> StreamPart:
        return StreamPart(rows, token_weight, shares_prefix=not self.adapter.dropout, epoch=self._epoch)

    def _rows_of(self, step: int) -> list[EncodedRow]:
        numbers = rows_of_step(len(self.rows), self.recipe.global_batch_size, self.recipe.seed, step)
        return [self.rows[i] for i in numbers]

    def _place_dropout(self) -> None:
        """Have dropout strike a part of a pass as it would strike the whole."""
        size = self._pass_rows
        first = self._next_row // size * size
        whole = self._step_rows[first : first + size]
        if self._next_row == first:
            self._micro_state = self.adapter.generator.get_state()
        else:
            self.adapter.generator.set_state(self._micro_state)
        start = _n_read(self._step_rows[first : self._next_row])
        self.adapter.window = DropWindow(_n_read(whole), start)

    def _begin_step(self) -> None:
        self._step_rows = self._rows_of(self.step)
        self._token_weight = _token_weight(self._step_rows)
        self._next_row = 0
        self._step_loss = 0.0
        self._step_tokens = 0
        self._step_s = 0.0
        # A stop in the middle of a step saves the state as it was before that step.
        self._dropout_state = self.adapter.generator.get_state()

    def _state(self) -> TrainerState:
        return TrainerState(
            step=self.step,
            recipe_digest=self.recipe.digest,
            data_digest=self._data_digest,
            base_model=self._base.name,
            total_steps=self.total_steps,
            optimizer=self.optimizer.state_dict(),
            dropout_generator=self._dropout_state,
            tokens=self.tokens,
            train_s=self.train_s,
            best_score=self.best_score,
            best_step=self.best_step,
            evals_without_gain=self._evals_without_gain,
            scored_step=self._scored_step,
            rung_scores=dict(self.rung_scores),
            rung_losses=dict(self.rung_losses),
        )

    def _resume_or_start(self) -> None:
        found = find_checkpoint(self.run_dir, self.adapter)
        if found is None:
            self.adapter.initialise(self.recipe.seed)
            write_text_atomic(self.run_dir / METRICS_FILE, "")
            return
        state = found.state
        mine = (self.recipe.digest, self._data_digest, self._base.name, self.total_steps)
        if (state.recipe_digest, state.data_digest, state.base_model, state.total_steps) != mine:
            raise TrainError(
                f"{self.run_dir} holds checkpoints of another recipe, dataset or base; "
                "use an empty folder, or remove this one"
            )
        self.optimizer.load_state_dict(state.optimizer)
        self.adapter.generator.set_state(state.dropout_generator)
        self.step = self._saved_step = state.step
        self._is_saved = True
        self.tokens, self.train_s = state.tokens, state.train_s
        self.best_score, self.best_step = state.best_score, state.best_step
        self._evals_without_gain = state.evals_without_gain
        self._scored_step = state.scored_step
        self.rung_scores, self.rung_losses = dict(state.rung_scores), dict(state.rung_losses)
        publish_best(self.run_dir, self.best_step)
        self._drop_metrics_after(state.step)

    def _drop_metrics_after(self, step: int) -> None:
        path = self.run_dir / METRICS_FILE
        kept = [row for row in read_jsonl(path).rows if isinstance(row, dict) and row.get("step", 0) <= step]
        write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))

    def _log(self, **values: float | int | None) -> None:
        line = json.dumps({"step": self.step, **values}, allow_nan=False)
        # Not waited for: a run that is resumed after a loss of power writes what is missing again.
        append_line(self.run_dir / METRICS_FILE, line, durable=False)


def _first_of(rows: Sequence[EncodedRow], max_tokens: int | None) -> tuple[EncodedRow, ...]:
    """Return the first rows, as many as max_tokens hold, one at least."""
    n = len(rows)
    while max_tokens is not None and n > 1 and _n_tokens(rows[:n]) > max_tokens:
        n -= 1
    return tuple(rows[:n])


def _token_weight(rows: Sequence[EncodedRow]) -> float:
    """Return the weight of each supervised token of a step."""
    return 1 / sum(row.n_supervised for row in rows)


def _n_tokens(rows: Sequence[EncodedRow]) -> int:
    return sum(len(row.input_ids) for row in rows)


def _n_read(rows: Sequence[EncodedRow]) -> int:
    return sum(row.n_read for row in rows)


def spread(rows: Sequence[T], n: int) -> tuple[T, ...]:
    """Return n rows spread evenly over rows, or all of them."""
    if len(rows) <= n:
        return tuple(rows)
    return tuple(rows[i * len(rows) // n] for i in range(n))


def read_system_prompt(path: str | None) -> str | None:
    """Read the text that is put before every conversation without a system turn.

    Raises:
        TrainError: the file cannot be read.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise TrainError(f"system_prompt_file {path!r} cannot be read: {err}") from err
