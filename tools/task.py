"""task.yaml: what is measured, on what, and what counts as a gain."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tools.errors import TaskError
from tools.files import digest_json
from tools.patch_space import PatchSpace
from tools.yaml_text import parse_yaml

SPLITS: Final = ("train", "dev", "selection", "test")
JUDGED_SPLITS: Final = ("dev", "selection", "test")
Split = Literal["train", "dev", "selection", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScorerSpec(_Frozen):
    """Which registered scorer judges an answer, and what it leaves out.

    `custom` calls `score(expected, actual)` of the workspace's own scorer.py.
    """

    name: Literal["exact", "json_cmd", "json", "custom"] = "json_cmd"
    ignore: tuple[str, ...] = ()
    """Keys of the expected object that `json` does not compare, at the top level."""


class DataPaths(_Frozen):
    """The four splits and the optional probe set, relative to the workspace."""

    train: str = "data/train.jsonl"
    dev: str = "data/dev.jsonl"
    selection: str = "data/selection.jsonl"
    test: str = "data/test.jsonl"
    probe: str = "data/probe.jsonl"


class PlannerPrices(_Frozen):
    """US dollars per million tokens, as the planner's server bills them."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_read: float = Field(ge=0)
    cache_write: float = Field(ge=0)


class TeacherSettings(_Frozen):
    """The model that makes the rows which wait in the queue, while a flywheel runs."""

    kind: Literal["claude", "openai"] = "openai"
    model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s@?#]+$", max_length=500)
    """A key is sent only where the environment names the same address."""
    rows: int = Field(default=100, ge=1, le=5000)
    """Most rows of one candidate."""
    prices: PlannerPrices | None = None
    """None leaves the dollars unknown."""


class SearchSettings(_Frozen):
    """Successive halving of an iteration's candidates by their dev scores on the way."""

    rungs: tuple[float, ...] = (0.25, 0.5)
    """Parts of each candidate's steps after which the worst leave, rising, above 0 and below 1."""
    keep: float = Field(default=0.5, gt=0, lt=1)
    """Part of the candidates that goes on from a rung, rounded up; the loss tells equal scores apart."""

    @field_validator("rungs")
    @classmethod
    def _rungs_rise(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in itertools.pairwise((0.0, *rungs, 1.0)))
        if not rungs or not rising:
            raise ValueError(f"rungs must rise, above 0 and below 1, and not be empty; came {list(rungs)}")
        return rungs


class BakeoffSettings(_Frozen):
    """How many candidates an iteration tries, who proposes them and when the flywheel stops."""

    candidates: int = Field(default=3, ge=1, le=64)
    iterations: int = Field(default=1, ge=1, le=1000)
    planner: Literal["optuna", "claude"] = "optuna"
    planner_seed: int = Field(default=0, ge=0)
    planner_model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")
    """The model that `claude` asks for by this name; needed there."""
    planner_base_url: str | None = Field(default=None, pattern=r"^https?://[^\s@?#]+$", max_length=500)
    """A server that speaks the Messages API; no key is sent to an address that stands here alone."""
    planner_turns: int = Field(default=8, ge=2, le=64)
    """Most replies of the model a plan."""
    planner_prices: PlannerPrices | None = None
    """None leaves the dollars of a plan unknown."""
    search: SearchSettings | None = None
    """None trains every candidate to its end."""
    data_work: bool = False
    """Whether a request for rows that waits in the queue becomes a candidate with those rows."""
    teacher: TeacherSettings = TeacherSettings()

    @model_validator(mode="after")
    def _data_work_can_be_done(self) -> BakeoffSettings:
        if self.data_work and (self.teacher.model is None or self.candidates < 2):
            raise ValueError(
                "bakeoff.data_work needs bakeoff.teacher.model, and bakeoff.candidates from 2: its candidate "
                "takes one of the places"
            )
        return self


class SmokeSettings(_Frozen):
    """The gate before the budget is spent: can the recipe's plumbing learn a few rows by heart?"""

    rows: int = Field(default=10, ge=1, le=256)
    steps: int = Field(default=30, ge=1, le=1000)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)


class BudgetCaps(_Frozen):
    """Caps of one run, the times that it was cut off and went on included; None leaves one open."""

    wall_s: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours in which a worker held a GPU; on a CPU nothing is spent of them."""
    dollars: float | None = Field(default=None, gt=0)
    """What language models cost, at `bakeoff.planner_prices`."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens that language models read and write."""
    turns: int | None = Field(default=None, ge=1)
    """Requests to language models, repeated ones included."""
    trials: int | None = Field(default=None, ge=1)


class Task(_Frozen):
    """The locked half of a workspace: the agent may read it and never change it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    description: str = ""
    scorer: ScorerSpec = ScorerSpec()
    data: DataPaths = DataPaths()
    seeds: tuple[int, ...] = (17,)
    """Training seeds, in the order in which they are spent: the first on every candidate, the
    others only while a verdict is open."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Two-sided confidence of a verdict's interval, before correction for the number tried."""
    minimum_gain: float = Field(default=0.0, ge=0, lt=1)
    """A candidate whose gain is surely below this is discarded; one is kept only above it."""
    target_score: float = Field(default=1.0, gt=0, le=1)
    """The flywheel stops once the incumbent reaches this on `selection`."""
    max_new_tokens: int = Field(default=128, ge=1, le=32768)
    eval_batch_size: int = Field(default=32, ge=1, le=4096)
    mid_eval_items: int = Field(default=24, ge=1)
    """Dev rows that a mid-run evaluation looks at."""
    forbidden_outputs: tuple[str, ...] = ()
    """Values of `cmd`, or whole outputs, that are always wrong; any rise of their rate vetoes."""
    patch_space: dict[str, Any] = Field(default_factory=dict)
    """Narrows what patches may set, as `tools.patch_space.PatchSpace.from_mapping` reads it."""
    smoke: SmokeSettings = SmokeSettings()
    bakeoff: BakeoffSettings = BakeoffSettings()
    budget: BudgetCaps = BudgetCaps()

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("seeds must be a non-empty list of distinct whole numbers from 0")
        return seeds

    @field_validator("patch_space")
    @classmethod
    def _patch_space_narrows(cls, rules: dict[str, Any]) -> dict[str, Any]:
        PatchSpace.from_mapping(rules)
        return rules

    @model_validator(mode="after")
    def _splits_are_distinct(self) -> Task:
        paths = [getattr(self.data, split) for split in SPLITS]
        if len({str(Path(path)) for path in paths}) != len(paths):
            raise ValueError(f"data: two splits name the same file: {paths}")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> Task:
        """Read task.yaml.

        Raises:
            TaskError: missing, no YAML, an unknown key or a value outside its range.
        """
        try:
            data = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise TaskError(f"no task at {path}; `bakehouse init` writes one") from err
        except (OSError, ValueError) as err:
            raise TaskError(f"{path} cannot be read as YAML: {err}") from err
        try:
            return cls.model_validate(data)
        except ValidationError as err:
            lines = [f"{'.'.join(str(p) for p in e['loc']) or 'task'}: {e['msg']}" for e in err.errors()]
            raise TaskError(f"{path}: " + "; ".join(lines)) from err

    @property
    def digest(self) -> str:
        """SHA-256 over what a verdict depends on: all but how wide and how long the search runs."""
        plain = self.model_dump(
            mode="json", exclude={"bakeoff", "budget", "description", "smoke", "patch_space"}
        )
        return digest_json(plain)
