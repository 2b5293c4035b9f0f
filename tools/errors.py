"""Every error the project raises on purpose.

    BakehouseError
    ├── RecipeError (ValueError)        a recipe is malformed or impossible
    ├── PatchError (ValueError)         a patch leaves the allow-list or its ranges
    ├── TaskError (ValueError)          task.yaml or the workspace is malformed
    ├── DatasetError (ValueError)       rows that cannot be used
    │   └── LeakError                   a training row is tied to a judged split
    ├── ChatError (ValueError)          a conversation the chat template cannot render
    ├── ModelError (RuntimeError)       a base model that cannot be found or loaded
    ├── MissingExtraError (ImportError) a command needs an optional package that is not installed
    ├── HardwareError (RuntimeError)    the recipe does not fit the machine
    ├── CapabilityError (ValueError)    a size or precision that the memory arithmetic cannot use
    ├── TrainError (RuntimeError)       a run could not start or did not finish
    ├── TrackerError (ValueError)       an experiment tracker is unknown
    ├── JobError (RuntimeError)         a detached job is unknown, lost or refused
    ├── MergeExportError (RuntimeError) merging or exporting failed
    │   └── ConvertError                a conversion between formats failed
    ├── ProbeError (RuntimeError)       a probe, its report or a comparison of reports is malformed
    ├── ScorerError (ValueError)        a scorer is unknown or broke its contract
    ├── EvaluationError (ValueError)    a bench, a grader or pass@k was asked for the impossible
    ├── JudgeError (RuntimeError)       a judge could not be asked, or its reply has no text
    │   └── EndpointBusyError           the endpoint is busy or out of reach; later it may answer
    ├── TeacherError (RuntimeError)     a teacher cannot be asked, or gave nothing that can be used
    ├── WeightsError (RuntimeError)     weights that do not fit the live model, or a swap in a swap
    │   └── AdapterFileError (FileNotFoundError)  an adapter's weights are not on disk
    ├── EvidenceError (ValueError)      too little evidence, or evidence that does not pair
    ├── DecideError (RuntimeError)      the decision corpus is malformed or cannot answer
    │   └── RerunError                  what an entry rests on cannot be measured again here
    ├── LineageError (ValueError)       a lineage row that cannot be written or read
    │   └── UnknownTrialError (KeyError)  a trial that the lineage does not hold
    ├── JournalError (RuntimeError)     the write-ahead log contradicts itself
    ├── RepoError (RuntimeError)        git refused, or would have touched the user's work
    ├── LockHeldError (RuntimeError)    another process holds the workspace
    ├── PlannerError (RuntimeError)     a planner returned no usable plan
    │   └── PlannerOutageError          its server could not be asked, or answered with no plan twice
    ├── IdeaError (ValueError)          an idea is malformed, unknown, or not in a state for that
    ├── BudgetError (RuntimeError)      a step's worst case is over what is left
    ├── DiskFullError (OSError)         the disk took no more; free some space and go on
    ├── GpuLostError (RuntimeError)     the GPU that was there is gone; mend it and go on
    └── McpError (ValueError)           the MCP server cannot be started as it was asked to

A leaf also inherits the standard class that a caller would expect. A message says what
came, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class BakehouseError(Exception):
    """Root of all errors raised on purpose."""


class RecipeError(BakehouseError, ValueError):
    """A recipe is malformed, or its fields contradict each other."""


class PatchError(BakehouseError, ValueError):
    """A patch names a field outside the allow-list or a value outside its range."""


class TaskError(BakehouseError, ValueError):
    """task.yaml or the workspace around it is malformed."""


class DatasetError(BakehouseError, ValueError):
    """Rows that cannot be used.

    Attributes:
        problems: One sentence per bad row or leaking pair, all of them; the message may show fewer.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class LeakError(DatasetError):
    """A training row is tied to a judged split."""


class ChatError(BakehouseError, ValueError):
    """A conversation that the chat template cannot render or mask."""


class ModelError(BakehouseError, RuntimeError):
    """A base model that cannot be found or loaded."""


class MissingExtraError(BakehouseError, ImportError):
    """A command needs an optional package that is not installed."""


class HardwareError(BakehouseError, RuntimeError):
    """The recipe does not fit the machine."""


class CapabilityError(BakehouseError, ValueError):
    """A size or a precision that the memory arithmetic cannot use."""


class TrainError(BakehouseError, RuntimeError):
    """A run could not start or did not finish."""


class TrackerError(BakehouseError, ValueError):
    """An experiment tracker that is unknown."""


class JobError(BakehouseError, RuntimeError):
    """A detached job is unknown, lost or refused."""


class MergeExportError(BakehouseError, RuntimeError):
    """Merging an adapter or exporting a model failed."""


class ConvertError(MergeExportError):
    """A conversion between checkpoint formats failed."""


class ProbeError(BakehouseError, RuntimeError):
    """A probe, its report or a comparison of reports is malformed."""


class ScorerError(BakehouseError, ValueError):
    """A scorer is unknown, or broke its contract."""


class EvaluationError(BakehouseError, ValueError):
    """A bench, a grader or an estimate was asked for something impossible."""


class JudgeError(BakehouseError, RuntimeError):
    """A judge could not be asked, or its reply holds no text."""


class EndpointBusyError(JudgeError):
    """An endpoint that is busy or out of reach; asked again later, it may answer.

    Attributes:
        wait_s: How long it asks to be left alone; 0 when it does not say.
    """

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class TeacherError(BakehouseError, RuntimeError):
    """A teacher that cannot be asked, or that gave nothing that can be used."""


class WeightsError(BakehouseError, RuntimeError):
    """Weights that do not fit the live model, or a swap inside a swap."""


class AdapterFileError(WeightsError, FileNotFoundError):
    """An adapter's weights are not on disk."""


class EvidenceError(BakehouseError, ValueError):
    """Too little evidence for the claim, or evidence that does not pair."""


class DecideError(BakehouseError, RuntimeError):
    """The decision corpus is malformed or has no answer."""


class RerunError(DecideError):
    """What an entry rests on cannot be measured again here."""


class LineageError(BakehouseError, ValueError):
    """A lineage row that cannot be written or read."""


class UnknownTrialError(LineageError, KeyError):
    """A trial that the lineage does not hold."""

    # A KeyError prints the repr of its message.
    __str__ = BakehouseError.__str__


class JournalError(BakehouseError, RuntimeError):
    """The write-ahead log contradicts itself."""


class RepoError(BakehouseError, RuntimeError):
    """Git refused, or would have touched the user's own work."""


class LockHeldError(BakehouseError, RuntimeError):
    """Another process holds the lock."""


class PlannerError(BakehouseError, RuntimeError):
    """A planner returned no usable plan."""


class PlannerOutageError(PlannerError):
    """A planner's server could not be asked, or gave no usable plan twice; another may step in."""


class IdeaError(BakehouseError, ValueError):
    """An idea of the queue that is malformed, unknown, or not in a state for what is asked."""


class BudgetError(BakehouseError, RuntimeError):
    """The worst case of a step is over what is left of the budget."""


class DiskFullError(BakehouseError, OSError):
    """The disk, its quota or a limit on files took no more; free some space and go on."""


class GpuLostError(BakehouseError, RuntimeError):
    """The GPU that was there is gone; mend it and go on."""


class McpError(BakehouseError, ValueError):
    """The MCP server cannot be started as it was asked to."""
