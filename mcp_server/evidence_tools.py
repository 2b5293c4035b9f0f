"""The tools that answer at once: checks, comparisons, and what the corpus and the lineage hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_server.boundary import explain
from mcp_server.job_tools import RecipeName, WorkspaceName
from mcp_server.owned_jobs import OwnedJobs
from mcp_server.probe_reports import compare_probes
from mcp_server.replies import Compared, Decided, Refreshed, Standardized, Trials, Validated
from mcp_server.workspaces import Confined, inside
from tools.errors import BakehouseError

ScoreName = Annotated[str, Field(description="base, trial, candidate (i0001-c1) or evaluation job id.")]


@dataclass(frozen=True)
class EvidenceTools:
    """Handlers that read, and one that tidies an export."""

    house: Confined
    jobs: OwnedJobs

    def validate_recipe(self, recipe: RecipeName = "", workspace: WorkspaceName = "") -> Validated:
        """Check a recipe without training: values, every row, leaks into the judged splits, memory.
        Use first in a workspace and after every edit. Next: train, or mend what problem says."""
        from agent.validation import check_data, check_recipe
        from tools.lanes.lane import count_rows

        place = self.house.find(workspace)
        try:
            found = self.house.recipe(place, recipe)
            splits = check_data(place, place.load_task(), found)
            resolved = check_recipe(place, found)
            steps = resolved.total_steps(count_rows(resolved))
        except BakehouseError as err:
            return Validated(ok=False, problem=explain(err), next="mend it and call validate_recipe again")
        return Validated(
            ok=True,
            recipe_digest=found.digest,
            base_model=found.base_model,
            steps=steps,
            train_rows=len(splits["train"]),
            dev_rows=len(splits["dev"]),
            selection_rows=len(splits["selection"]),
            next="train(mode='smoke') to see it run, train() in earnest, or start_bakeoff",
        )

    def compare(
        self,
        base: ScoreName,
        candidate: ScoreName,
        split: Literal["selection", "dev", "probe"] = "selection",
        workspace: WorkspaceName = "",
    ) -> Compared:
        """Compare two scored models item by item: gain, its interval, and keep, discard or inconclusive.
        Use after evaluate, or on trials of lineage; split='probe' compares two probe jobs. Next: decide, or
        more data and seeds where it is inconclusive."""
        from agent.score_sets import load_scores
        from tools.comparison import compare
        from tools.verdict import reach_verdict

        for name in (base, candidate):
            if name[:8].isdigit():
                self.jobs.find(name)
        if split == "probe":
            return compare_probes(self.jobs, base, candidate)
        place = self.house.find(workspace)
        task = place.load_task()
        before, after = load_scores(place, base, split), load_scores(place, candidate, split)
        ruling = reach_verdict(
            compare(before, after, level=task.level), minimum_gain=task.minimum_gain, metric=split
        )
        found = ruling.comparison
        return Compared(
            verdict=ruling.verdict.value,
            reason=ruling.reason,
            gain=found.gain,
            low=found.low,
            high=found.high,
            base_mean=found.base_mean,
            candidate_mean=found.candidate_mean,
            n_items=found.n_items,
        )

    def lineage(
        self,
        last: Annotated[int, Field(ge=1, le=100)] = 20,
        workspace: WorkspaceName = "",
    ) -> Trials:
        """List the newest trials of all bakeoffs, unmerged ones included. Use to see what was tried before
        anything new is planned. Next: compare two of them, or start_bakeoff."""
        from agent.lineage_view import open_lineage
        from agent.score_sets import newest

        place = self.house.find(workspace)
        store = open_lineage(newest(place).lineage_dir)
        trials, best = store.all_trials(), store.best()
        return Trials(
            best=None if best is None else best.exp_id,
            total=len(trials),
            trials=[_line(t) for t in trials[-last:]],
        )

    def standardize(
        self,
        path: Annotated[str, Field(description="Folder of an export inside the workspace.")],
        workspace: WorkspaceName = "",
    ) -> Standardized:
        """Mend a Hugging Face export in place: shard names, tokenizer class, legacy rope keys. merge does it
        by itself; use it on exports made elsewhere. Harmless to repeat."""
        from tools.standardize import standardize_hf_export

        place = self.house.find(workspace)
        renames, remaps = standardize_hf_export(inside(place, path))
        return Standardized(path=path, changes=[f"{old} -> {new}" for old, new in (*renames, *remaps)])

    def decide(
        self,
        question: Annotated[str, Field(description="Such as train_backend or recipe.")],
        optimize_for: Annotated[str, Field(description="Such as wall_clock.")],
        context: Annotated[dict[str, str], Field(description="What the entry must match.")] = {},  # noqa: B006
        workspace: WorkspaceName = "",
    ) -> Decided:
        """Ask the corpus of approved decisions what was found best, and on what evidence. Use before
        choosing a lane or recipe by guess. An error lists what the corpus can answer. Only people approve
        decisions."""
        from agent.corpus import entry_dirs
        from tools import decisions

        dirs = entry_dirs(self.house.find_any(workspace))
        found = decisions.decide(question, context=context, optimize_for=optimize_for, dirs=dirs)
        return Decided(
            pick=found.pick,
            evidence=found.evidence,
            entry=found.entry.slug,
            created=found.entry.created.isoformat(),
        )

    def refresh(
        self,
        freshness_days: Annotated[int, Field(ge=0, le=36500)] = 180,
        workspace: WorkspaceName = "",
    ) -> Refreshed:
        """Say which decisions are stale: too old, or base model, driver or libraries changed. Use before
        relying on decide. Next: a bakeoff that measures the question again."""
        from agent.corpus import current_environment, entry_dirs
        from tools import freshness

        place = self.house.find_any(workspace)
        reports = freshness.refresh(
            dirs=entry_dirs(place), freshness_days=freshness_days, environment=current_environment(place)
        )
        stale = [report for report in reports if report.stale]
        lines = [f"{r.entry.slug} ({r.age_days} days): {'; '.join(r.reasons)}" for r in stale]
        return Refreshed(stale=lines, fresh=len(reports) - len(stale))


def _line(trial: Any) -> str:
    score = "unscored" if trial.core_metric is None else f"{trial.core_metric:.4f}"
    gain = "" if trial.delta_vs_best is None else f" ({trial.delta_vs_best:+.4f})"
    return f"{trial.exp_id} {trial.status.value} {score}{gain}: {trial.hypothesis[:200]}"
