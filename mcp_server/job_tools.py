"""The tools of long work: each starts a detached job, or looks at one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context
from pydantic import Field

from mcp_server.owned_jobs import OwnedJobs, tell
from mcp_server.replies import Polled, Started
from mcp_server.workspaces import Confined, inside
from tools.errors import TaskError
from tools.files import digest_bytes

if TYPE_CHECKING:
    from tools.recipe import TrainRecipe
    from tools.workspace import Workspace

WorkspaceName = Annotated[str, Field(description="Only where several are served.")]
RecipeName = Annotated[str, Field(description="Trial id or YAML path in the workspace; empty: recipe.yaml.")]
Key = Annotated[
    str, Field(description="Your own unique text: repeating a call with it starts nothing twice.")
]
AdapterName = Annotated[
    str, Field(description="Training job or trial id, or iter_NNNNNNN folder; empty: untrained base.")
]
_LOOK_EVERY_S: Final = 0.5
_CANCEL_WAIT_S: Final = 3.0


@dataclass(frozen=True)
class JobTools:
    """Handlers over the jobs of the roots' workspaces."""

    house: Confined
    jobs: OwnedJobs
    # More threads at once do not read faster, they only wait for one another.
    lookers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4))

    def train(
        self,
        recipe: RecipeName = "",
        mode: Literal["smoke", "full"] = "full",
        idempotency_key: Key = "",
        workspace: WorkspaceName = "",
    ) -> Started:
        """Train a LoRA adapter from a recipe, detached: the job survives this client and server.
        Use after validate_recipe; smoke is a few steps to see that it runs. Next: poll, then evaluate."""
        from agent.launch import start_training

        place = self.house.find(workspace)
        frozen = self.house.freeze(place, self.house.recipe(place, recipe))
        launch = partial(start_training, place, recipe_file=frozen, smoke=mode == "smoke", check_data=True)
        return self.jobs.start(place, idempotency_key, lambda key: launch(key=key))

    async def poll(
        self,
        ctx: Context[Any, Any],
        job_id: Annotated[str, Field(description="Empty: the newest, with a list of all.")] = "",
        wait_s: Annotated[float, Field(ge=0, le=50, description="Wait this long for its end.")] = 2.0,
        workspace: WorkspaceName = "",
    ) -> Polled:
        """See how far a job is, from what is on disk: status, step, loss, score, result, log.
        Use after any tool that returns a job_id, and first thing in a new conversation to find what ran
        before. Call again after poll_again_s until ended is true."""
        deadline = time.monotonic() + wait_s
        reached = 0
        while True:
            found = await run_sync(self._look, job_id, workspace, limiter=self.lookers)
            if found.step is not None and found.step > reached:
                reached = found.step
                await ctx.report_progress(reached, found.total_steps, found.phase)
            left_s = deadline - time.monotonic()
            if found.ended or left_s <= 0:
                return found
            job_id = found.job_id
            await anyio.sleep(min(_LOOK_EVERY_S, left_s))

    def cancel(self, job_id: str) -> Polled:
        """End a job and all of its processes; what it saved stays. Use when a run is hopeless or not wanted.
        It may take half a minute to save: poll until ended is true."""
        place, job = self.jobs.find(job_id)
        # Saving takes a trainer up to half a minute, longer than some clients wait for an answer.
        self.jobs.start_cancelling(place, job).join(_CANCEL_WAIT_S)
        return tell(*self.jobs.find(job_id))

    def evaluate(
        self,
        adapter: AdapterName = "",
        split: Literal["dev", "selection"] = "selection",
        idempotency_key: Key = "",
        workspace: WorkspaceName = "",
    ) -> Started:
        """Score an adapter, or the untrained base, on a split, as a job. selection decides what is kept;
        dev may be looked into. Next: poll, then compare the job ids of two evaluations."""
        from agent.launch import start_evaluation
        from agent.score_sets import find_adapter

        place = self.house.find(workspace)
        self.house.recipe(place, "")
        folder = find_adapter(place, self._own(adapter))
        launch = partial(start_evaluation, place, split=split, adapter=folder)
        return self.jobs.start(place, idempotency_key, lambda key: launch(key=key))

    def start_bakeoff(
        self,
        iterations: Annotated[int, Field(ge=0, le=1000, description="0: as the task says.")] = 0,
        plan: Annotated[str, Field(description="YAML list of patches to try; empty: planned.")] = "",
        idempotency_key: Key = "",
        workspace: WorkspaceName = "",
    ) -> Started:
        """Run the flywheel unattended: plan candidate recipes, train them together, compare each with the
        best so far, keep one only on evidence, commit to the bakeoff branch. Use for hours or a night.
        Next: poll; then lineage. A person approves by merging the branch."""
        from agent.launch import start_flywheel

        place = self.house.find(workspace)
        self.house.recipe(place, "")
        launch = partial(
            start_flywheel,
            place,
            iterations=iterations or None,
            plan_file=_existing(place, plan) if plan else None,
        )
        return self.jobs.start(place, idempotency_key, lambda key: launch(key=key))

    def merge(
        self,
        recipe: RecipeName = "",
        iteration: Annotated[int, Field(ge=0, description="Checkpoint; 0: the best.")] = 0,
        idempotency_key: Key = "",
        workspace: WorkspaceName = "",
    ) -> Started:
        """Merge a trained recipe's or trial's adapter into its base, export it in Hugging Face layout and
        check that the export answers as the adapter does, as a job. Use once evaluation says that it is
        worth serving. Next: poll; its result tells the parity."""
        from agent.launch import start_merge

        place = self.house.find(workspace)
        frozen = self.house.freeze(place, self.house.recipe_of_run(place, recipe))
        launch = partial(start_merge, place, recipe_file=frozen, iteration=iteration or None)
        return self.jobs.start(place, idempotency_key, lambda key: launch(key=key))

    def probe(
        self,
        adapter: AdapterName = "",
        questions: Annotated[str, Field(description="JSONL in the workspace; empty: the task's.")] = "",
        idempotency_key: Key = "",
        workspace: WorkspaceName = "",
    ) -> Started:
        """Ask the model a probe set, as a job: does it still reason, does it still know? Use on the base and
        on an adapter. Next: poll both, then compare their job ids with split='probe'."""
        from agent.launch import start_probe
        from agent.score_sets import find_adapter
        from tools.models import resolve_base_model

        place = self.house.find(workspace)
        recipe = self.house.recipe(place, "").resolve(place.root)
        file = _existing(place, questions or place.load_task().data.probe)
        folder = find_adapter(place, self._own(adapter))
        probed = "base" if folder is None else folder.name
        launch = partial(
            start_probe,
            place,
            questions=file,
            model=resolve_base_model(recipe.base_model),
            adapter=folder,
            tag=probed,
        )
        # The name comes of the key: a call that is repeated has to name the same report.
        reports = place.state_dir / "probes" / f"{file.stem}-{probed}"
        return self.jobs.start(
            place,
            idempotency_key,
            lambda key: launch(
                report=reports / f"{digest_bytes(key.encode('utf-8', 'surrogatepass'))[:16]}.json", key=key
            ),
        )

    def ask_train(self, recipe: str, mode: str, idempotency_key: str, workspace: str) -> str | None:
        """Ask before a training that sees many rows."""
        place = self.house.find(workspace)
        if self.jobs.has_key(place, idempotency_key):
            return None
        rows = 0 if mode == "smoke" else _rows_seen(self.house.recipe(place, recipe), place)
        return self._ask_rows(rows, "This training")

    def ask_bakeoff(self, iterations: int, idempotency_key: str, workspace: str) -> str | None:
        """Ask before a bakeoff that no cap of the task holds and that may see many rows."""
        place = self.house.find(workspace)
        if self.jobs.has_key(place, idempotency_key):
            return None
        task = place.load_task()
        caps = task.budget
        if any(cap is not None for cap in (caps.wall_s, caps.gpu_hours, caps.trials)):
            return None
        trials = task.bakeoff.candidates + 2 * len(task.seeds)
        rows = _rows_seen(self.house.recipe(place, ""), place)
        return self._ask_rows(rows * trials * (iterations or task.bakeoff.iterations), "This bakeoff")

    def ask_merge(self, recipe: str, idempotency_key: str, workspace: str) -> str | None:
        """Ask before an export is replaced."""
        from tools.merge import MERGED_HF

        place = self.house.find(workspace)
        folder = inside(place, self.house.recipe_of_run(place, recipe).output_dir) / MERGED_HF
        if not folder.exists() or self.jobs.has_key(place, idempotency_key):
            return None
        return f"{folder.relative_to(place.root.resolve())} is there already and would be replaced."

    def _ask_rows(self, rows: int, what: str) -> str | None:
        free = self.house.settings.free_rows
        if rows <= free:
            return None
        return f"{what} may see {rows:,} rows, more than the {free:,} that need no consent."

    def _look(self, job_id: str, workspace: str) -> Polled:
        if job_id:
            return tell(*self.jobs.find(job_id))
        place, job, lines = self.jobs.newest(workspace)
        return tell(place, job, lines)

    def _own(self, adapter: str) -> str:
        if adapter[:1].isdigit():
            self.jobs.find(adapter)
        return adapter


def _existing(place: Workspace, name: str) -> Any:
    path = inside(place, name)
    if not path.is_file():
        raise TaskError(f"no file {name!r} in the workspace {place.root.name}; name one that exists")
    return path


def _rows_seen(recipe: TrainRecipe, place: Workspace) -> int:
    from tools.lanes.lane import count_rows
    from tools.recipe import MODE_FULL

    resolved = recipe.resolve(place.root)
    try:
        return resolved.total_steps(count_rows(resolved), MODE_FULL) * resolved.global_batch_size
    except OSError as err:
        raise TaskError(f"the training rows {recipe.dataset_jsonl!r} cannot be read: {err.strerror}") from err
