"""Batches asked at once: at most so many, their results taken one at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from tools.errors import BakehouseError, TeacherError

__all__ = ["run_batches"]

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def run_batches(
    work: Callable[[Batch], Result],
    *,
    next_batch: Callable[[], Batch | None],
    take: Callable[[Batch, Result | BakehouseError], None],
    concurrency: int,
) -> None:
    """Run batches until there is no next one and all that were begun have ended.

    `next_batch` and `take` run in the caller's thread, so only `work` need be safe for threads.
    The threads die with the process: an interrupted job does not wait for its calls.

    Args:
        work: Asks one batch; an error of this project's goes to `take`, like a result.
        next_batch: Returns the next batch, or None when none should begin now.
        concurrency: Batches at once, at least 1.
    """
    ended: queue.SimpleQueue[tuple[Batch, Result | BakehouseError]] = queue.SimpleQueue()

    def run(batch: Batch) -> None:
        outcome: Result | BakehouseError = TeacherError("a batch ended without a result; see the log")
        try:
            outcome = work(batch)
        except BakehouseError as err:
            outcome = err
        finally:
            # Whatever happened, whoever waits must hear of it.
            ended.put((batch, outcome))

    in_flight = 0
    while True:
        while in_flight < concurrency and (batch := next_batch()) is not None:
            threading.Thread(target=run, args=(batch,), daemon=True).start()
            in_flight += 1
        if not in_flight:
            return
        done, outcome = ended.get()
        in_flight -= 1
        take(done, outcome)
