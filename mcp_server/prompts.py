"""Prompts: the jobs that people come with, as requests that a model can carry out with these tools."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from mcp_server.settings import Settings

Where = Annotated[str, Field(description="Workspace; empty where only one is served.")]


def add_prompts(server: MCPServer[Any], settings: Settings) -> None:
    """Add the prompts whose tools are served."""
    wanted = {
        first_run: {"validate_recipe", "train", "poll", "evaluate", "compare"},
        overnight_bakeoff: {"validate_recipe", "start_bakeoff", "poll"},
        review_last_night: {"poll", "lineage", "compare"},
        why_no_gain: {"lineage", "compare", "validate_recipe"},
    }
    for prompt, needed in wanted.items():
        if needed <= set(settings.enabled):
            server.prompt(name=prompt.__name__, title=_title(prompt.__name__))(prompt)


def first_run(workspace: Where = "") -> str:
    """Check a workspace, train its recipe once and say whether it helped."""
    return (
        f"Do a first training run{_in(workspace)}. Call validate_recipe and stop at any problem, telling me "
        "what to mend. Then train with mode='smoke' and poll until it has ended. If it succeeded, train in "
        "full and poll it, coming back as poll_again_s says. Then evaluate the untrained base and the "
        "training job's adapter on selection, poll both, and compare base with candidate. Tell me the gain "
        "with its interval and the verdict in plain words, and do not call a change better when the verdict "
        "is inconclusive."
    )


def overnight_bakeoff(workspace: Where = "", iterations: str = "") -> str:
    """Start an unattended bakeoff that is safe to leave alone."""
    n = f" for {iterations} iterations" if iterations else ""
    return (
        f"Prepare and start an overnight bakeoff{_in(workspace)}{n}. First poll without a job_id to see that "
        "nothing runs already, and validate_recipe. Read lineage to know what was tried. Then start_bakeoff "
        "with an idempotency_key made of today's date, poll it until the first step is done, and tell me its "
        "job_id, what it will try, and how I look at it tomorrow. It goes on when this conversation ends."
    )


def review_last_night(workspace: Where = "") -> str:
    """Say what last night's bakeoff found and what a person has to decide."""
    return (
        f"Review what ran last{_in(workspace)}. Poll without a job_id to find it; if it failed, say why from "
        "error and log_tail. Read lineage; for each new trial say what was changed and what it came to, with "
        "intervals where there are any. Compare the best candidate with the incumbent on selection. End with "
        "what I have to decide: merging the bakeoff branch approves its decisions, and only I do that."
    )


def why_no_gain(workspace: Where = "") -> str:
    """Find out why candidates do not beat the incumbent."""
    return (
        f"Find out why the model does not get better{_in(workspace)}. Read lineage and compare the best "
        "candidates with the incumbent. Tell apart: the interval is too wide (more items or seeds are "
        "needed), the candidates are truly worse, trials crashed (read their reasons), or the score is near "
        "its ceiling. Check with validate_recipe that data and recipe are sound. Then propose at most three "
        "changes with what each would show, and do not propose to touch the judged splits."
    )


def _in(workspace: str) -> str:
    return f" in the workspace {workspace}" if workspace else ""


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
