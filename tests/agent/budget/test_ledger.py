"""The ledger: what is debited before a step, settled after it, and rebuilt after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.budget.account import read_account
from agent.budget.amounts import Amounts
from agent.budget.ledger import Ledger
from agent.budget.limits import describe_left, describe_spent
from agent.plan import BudgetLeft
from tools.errors import BudgetError, GpuLostError
from tools.journal import Journal
from tools.task import BudgetCaps


class Times:
    """Both clocks, set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def stamp(self) -> str:
        minutes, seconds = divmod(int(self.seconds), 60)
        return f"2026-11-20T{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}Z"

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def journal(tmp_path: Path, times: Times) -> Journal:
    made = Journal(tmp_path / "journal.jsonl", clock=times.stamp)
    made.begin_run("r0001")
    return made


def ledger_on(journal: Journal, times: Times, run: str = "r0001", gpus: int = 0, **caps: float) -> Ledger:
    made = Ledger(
        Journal(journal.path, clock=times.stamp),
        BudgetCaps.model_validate(caps),
        count_gpus=lambda: gpus,
        clock=times.stamp,
        monotonic=times.monotonic,
    )
    made.enter(run)
    return made


def test_a_worst_case_is_on_disk_before_the_step_and_its_true_cost_after(
    journal: Journal, times: Times
) -> None:
    ledger = ledger_on(journal, times, wall_s=100, trials=3)
    with ledger.spending("train", "i0001", Amounts(wall_s=60.0, trials=("a", "b"))):
        # Another process sees the debit while the step runs.
        seen = read_account(Journal(journal.path, clock=times.stamp).events())
        assert [one.worst.wall_s for one in seen.open.values()] == [60.0]
        assert ledger.left() == BudgetLeft(trials=1, wall_s=40.0)
        times.seconds += 10
    assert ledger.left() == BudgetLeft(trials=1, wall_s=90.0)
    assert ledger.account.open == {}
    assert ledger.account.spent_in("i0001").wall_s == 10.0


@pytest.mark.parametrize(
    ("caps", "worst", "says"),
    [
        ({"wall_s": 50}, Amounts(wall_s=51.0), "budget.wall_s"),
        ({"gpu_hours": 0.01}, Amounts(gpu_s=37.0), "budget.gpu_hours"),
        ({"dollars": 1}, Amounts(dollars=1.01), "budget.dollars"),
        ({"dollars": 1}, Amounts(dollars=None, turns=1), "unknown price"),
        ({"tokens": 100}, Amounts(tokens=101), "budget.tokens"),
        ({"turns": 2}, Amounts(turns=3), "budget.turns"),
        ({"trials": 1}, Amounts(trials=("a", "b")), "cap of 1"),
    ],
)
def test_a_step_whose_worst_case_does_not_fit_is_not_started(
    journal: Journal, times: Times, caps: dict[str, float], worst: Amounts, says: str
) -> None:
    ledger = ledger_on(journal, times, **caps)
    before = len(journal.events())
    with pytest.raises(BudgetError, match=says), ledger.spending("train", "i0001", worst):
        raise AssertionError("the step was started")
    assert len(journal.events()) == before


def test_what_a_killed_process_had_reserved_counts_in_full(journal: Journal, times: Times) -> None:
    first = ledger_on(journal, times, dollars=10, tokens=1000, turns=5, trials=4)
    first.reserve("train", "i0001", Amounts(trials=("a", "b")))
    first.requests("plan", "i0001").reserve(Amounts(dollars=3.0, tokens=400, turns=1))
    # Nothing is settled: the process is gone. Another one takes the run up, twice.
    for _ in range(2):
        resumed = ledger_on(journal, times, dollars=10, tokens=1000, turns=5, trials=4)
        assert resumed.left() == BudgetLeft(dollars=7.0, tokens=600, turns=4, trials=2)
        assert resumed.account.open == {}
    # The same trials, gone on with, are no others.
    assert resumed.refusal(Amounts(trials=("a", "b", "c", "d"))) is None
    assert resumed.refusal(Amounts(trials=("c", "d", "e"))) is not None


@pytest.mark.parametrize(("away_s", "counted_s"), [(5.0, 5.0), (500.0, 60.0)])
def test_of_a_killed_steps_time_no_more_counts_than_can_have_passed(
    journal: Journal, times: Times, away_s: float, counted_s: float
) -> None:
    ledger_on(journal, times, gpus=1, wall_s=1000, gpu_hours=1).reserve(
        "train", "i0001", Amounts(wall_s=60.0, gpu_s=60.0)
    )
    times.seconds += away_s
    resumed = ledger_on(journal, times, gpus=1, wall_s=1000, gpu_hours=1)
    assert resumed.left() == BudgetLeft(wall_s=1000 - counted_s, gpu_s=3600 - counted_s)


def test_work_that_nobody_can_estimate_may_take_all_that_is_left(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, wall_s=100)
    times.seconds += 10
    with ledger.spending("start", "i0001", Amounts(wall_s=None)):
        assert ledger.left().wall_s == 0.0
        times.seconds += 30
        assert ledger.limit_s() == 60.0
    assert ledger.left().wall_s == 60.0


def test_the_time_between_two_steps_counts_too(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, wall_s=100)
    for _ in range(2):
        times.seconds += 7
        with ledger.spending("train", "i0001", Amounts(wall_s=10.0)):
            times.seconds += 3
    assert ledger.account.spent.wall_s == pytest.approx(20.0)


def test_a_later_run_starts_with_a_budget_of_its_own(journal: Journal, times: Times) -> None:
    first = ledger_on(journal, times, trials=2)
    with first.spending("train", "i0001", Amounts(trials=("a", "b"))):
        pass
    journal.end_run("r0001")
    journal.begin_run("r0002")
    assert first.left().trials == 0
    assert ledger_on(journal, times, "r0002", trials=2).left().trials == 2
    account = read_account(journal.events())
    assert (account.run_id, account.spent.trials) == ("r0002", ())


def test_requests_inside_a_step_are_settled_one_by_one_and_lost_ones_in_full(
    journal: Journal, times: Times
) -> None:
    ledger = ledger_on(journal, times, tokens=1000, turns=9, wall_s=1000)
    with ledger.spending("plan", "i0001", Amounts(wall_s=100.0)):
        meter = ledger.requests("plan", "i0001")
        answered = meter.reserve(Amounts(tokens=300, turns=1))
        meter.reserve(Amounts(tokens=300, turns=1))
        times.seconds += 20
        meter.settle(answered, Amounts(tokens=50, turns=1))
    assert ledger.account.open == {}
    assert ledger.left() == BudgetLeft(tokens=650, turns=7, wall_s=980.0)


def test_a_torn_settlement_leaves_the_worst_case_standing(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, tokens=1000)
    with ledger.spending("plan", "i0001", Amounts()):
        number = ledger.requests("plan", "i0001").reserve(Amounts(tokens=600, turns=1))
        ledger.requests("plan", "i0001").settle(number, Amounts(tokens=10, turns=1))
    lines = journal.path.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"tokens": 10' in line)
    journal.path.write_text("".join(lines[:cut]) + lines[cut][:40])
    assert ledger_on(journal, times, tokens=1000).left().tokens == 400


def test_the_gpu_time_is_what_the_worker_says_that_it_held(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, gpus=1, gpu_hours=1)
    with ledger.spending("train", "i0001", Amounts(gpu_s=1000.0)):
        ledger.note_worker(100.0, 1)
        ledger.note_worker(50.0, None)
    assert ledger.account.spent.gpu_s == 150.0
    # Whoever goes on counts with a GPU, also where none is found any more.
    assert ledger_on(journal, times, gpus=0, gpu_hours=1).limit_s() == 3600 - 150


def test_a_machine_whose_torch_has_no_gpu_spends_none(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, gpus=1, gpu_hours=1)
    with ledger.spending("start", "i0001", Amounts(gpu_s=None)):
        ledger.note_worker(100.0, 0)
        ledger.note_worker(100.0, None)
    assert ledger.account.spent.gpu_s == 0.0


def test_a_worker_that_finds_fewer_gpus_than_before_stops_the_run(journal: Journal, times: Times) -> None:
    with ledger_on(journal, times, gpus=1).spending("train", "i0001", Amounts()) as _:
        pass
    first = ledger_on(journal, times, gpus=1)
    with first.spending("train", "i0001", Amounts()):
        first.note_worker(10.0, 1)
    # Also after a restart, for the journal remembers it.
    resumed = ledger_on(journal, times, gpus=0)
    with pytest.raises(GpuLostError, match="nvidia-smi"), resumed.spending("train", "i0002", Amounts()):
        resumed.note_worker(10.0, 0)
    # Asked before a step, for a worker without a GPU would go on for hours on the CPU.
    with pytest.raises(GpuLostError, match="this machine found 0"):
        resumed.check_gpus()
    ledger_on(journal, times, gpus=1).check_gpus()


def test_a_lone_trial_on_one_of_several_gpus_is_no_loss(journal: Journal, times: Times) -> None:
    ledger = ledger_on(journal, times, gpus=2, gpu_hours=1)
    with ledger.spending("train", "i0001", Amounts()):
        ledger.note_worker(10.0, 2)
    with ledger.spending("train", "i0002", Amounts()):
        ledger.note_worker(10.0, 1)
    assert ledger.account.spent.gpu_s == 30.0
    ledger.check_gpus()


def test_words_for_what_is_left_and_spent() -> None:
    assert describe_left(BudgetLeft()) == "no cap"
    left = BudgetLeft(trials=3, wall_s=3720.0, gpu_s=65.0, dollars=1.5, tokens=12000, turns=4)
    assert describe_left(left) == (
        "1 h 02 min of wall clock, 1 min 05 s of GPU, $1.50, 12,000 tokens, 4 turns, 3 trials"
    )
    assert describe_spent(Amounts(wall_s=5.0, dollars=None, turns=2, tokens=10)).endswith("dollars unknown")
