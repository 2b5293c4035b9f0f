"""Resources: what may be read in pages, or shown to a person, without a tool call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp_types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from mcp_server.boundary import explain
from mcp_server.owned_jobs import OwnedJobs, tell
from mcp_server.replies import hide_secrets
from mcp_server.workspaces import CURRENT, Confined
from tools.errors import BakehouseError

Facts = dict[str, Any]
PAGE_BYTES: Final = 16_384
PAGE_LINES: Final = 100
_COMPLETIONS: Final = 100


def add_resources(server: MCPServer[Any], house: Confined, jobs: OwnedJobs) -> None:
    """Add `recipe://`, `job://`, `lineage://`, `decide://` and `report://`, and completions for their ids."""
    shelf = _Shelf(house, jobs)
    for uri, read, description in (
        ("recipe://{workspace}/{recipe}", shelf.recipe, "A recipe: current, or a trial's id"),
        ("job://{job}", shelf.job, "A job as it is now"),
        ("job://{job}/log{?offset}", shelf.log, "A page of a job's output, from a byte on"),
        ("job://{job}/metrics{?line}", shelf.metrics, "A page of a training's metrics, from a line on"),
        ("lineage://{workspace}", shelf.lineage, "What was tried and what it came to, in Markdown"),
        ("decide://{entry}", shelf.decision, "A decision with its findings and provenance"),
        ("report://{workspace}/{iteration}", shelf.report, "A bakeoff's report: an HTML page"),
    ):
        mime = {"recipe": "application/yaml", "lineage": "text/markdown", "report": "text/html"}
        kind = mime.get(uri.partition(":")[0], "application/json")
        server.resource(uri, name=read.__name__, description=description, mime_type=kind)(_guard(read))
    server.completion()(shelf.complete)  # type: ignore[no-untyped-call]


class _Shelf:
    def __init__(self, house: Confined, jobs: OwnedJobs) -> None:
        self._house = house
        self._jobs = jobs

    def recipe(self, workspace: str, recipe: str) -> str:
        from tools.yaml_text import dump_yaml

        place = self._house.find(workspace)
        return dump_yaml(self._house.recipe(place, recipe).to_dict())

    def job(self, job: str) -> Facts:
        return tell(*self._jobs.find(job)).model_dump(mode="json", exclude_none=True)

    def log(self, job: str, offset: str = "0") -> Facts:
        _, found = self._jobs.find(job)
        start = _number(offset)
        try:
            with found.log_path.open("rb") as file:
                file.seek(start)
                block = file.read(PAGE_BYTES)
                more = bool(file.read(1))
        except FileNotFoundError:
            block, more = b"", False
        if more and b"\n" in block:
            # A page ends with a line, so that neither a character nor a secret is cut in two.
            block = block[: block.rindex(b"\n") + 1]
        end = start + len(block)
        return {
            "text": block.decode("utf-8", "replace"),
            "offset": start,
            "next_offset": end if more else None,
        }

    def metrics(self, job: str, line: str = "0") -> Facts:
        from agent.job_state import metrics_file

        path = metrics_file(*self._jobs.find(job))
        start = _number(line)
        lines: list[str] = []
        more = False
        if path is not None and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, text in enumerate(file):
                    if number >= start + PAGE_LINES:
                        more = True
                        break
                    if number >= start and text.strip():
                        lines.append(text.strip())
        return {"lines": lines, "line": start, "next_line": start + PAGE_LINES if more else None}

    def lineage(self, workspace: str) -> str:
        from agent.lineage_view import open_lineage
        from agent.score_sets import newest

        store = open_lineage(newest(self._house.find(workspace)).lineage_dir)
        return store.render_prompt(for_specialist="reader").rendered_prompt

    def decision(self, entry: str) -> Facts:
        for found in self._decisions():
            if found.slug == entry and found.path is not None:
                text = found.path.read_text("utf-8")
                return {"entry": found.slug, "lifecycle": found.lifecycle, "yaml": text}
        raise ResourceNotFoundError(f"no decision {entry[:80]!r}; refresh lists what the corpus holds")

    def report(self, workspace: str, iteration: str) -> str:
        reports = self._house.find(workspace).reports_dir
        if iteration not in _folders(reports):
            raise ResourceNotFoundError(f"no report {iteration[:80]!r}; there are {_folders(reports)}")
        return (reports / iteration / "report.html").read_text("utf-8")

    async def complete(
        self,
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion:
        from anyio.to_thread import run_sync

        given = dict(context.arguments or {}) if context is not None else {}
        try:
            known = await run_sync(self._known, argument.name, given.get("workspace", ""))
        except (BakehouseError, OSError):
            known = []
        values = [value for value in known if value.startswith(argument.value)]
        return Completion(
            values=values[:_COMPLETIONS], total=len(values), has_more=len(values) > _COMPLETIONS
        )

    def _known(self, name: str, workspace: str) -> list[str]:
        if name == "workspace":
            return sorted(self._house.all())
        if name in ("job", "job_id"):
            return [job.id for _, job in self._jobs.all()]
        if name == "entry":
            return [found.slug for found in self._decisions()]
        if name == "recipe":
            return [CURRENT, *self._trials(workspace)]
        if name == "iteration":
            return list(_folders(self._house.find(workspace).reports_dir))
        return []

    def _trials(self, workspace: str) -> list[str]:
        from agent.score_sets import newest

        folder = newest(self._house.find(workspace)).lineage_dir
        return sorted((path.parent.name for path in folder.glob("*/recipe.yaml")), reverse=True)

    def _decisions(self) -> list[Any]:
        from agent.corpus import entry_dirs
        from tools.decisions import scan_entries

        return list(scan_entries(entry_dirs(self._house.find_any(""))).entries)


def _guard(read: Callable[..., str | Facts]) -> Callable[..., str]:
    """Turn the project's errors into the protocol's, and hide secrets, under the reader's own signature."""
    import functools
    import inspect

    @functools.wraps(read)
    def guarded(**arguments: str) -> str:
        try:
            found = hide_secrets(read(**arguments))
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        except BakehouseError as err:
            raise ResourceNotFoundError(explain(err)) from err
        except OSError as err:
            raise ResourceError(f"it cannot be read: {err.strerror}") from err

    signature = inspect.signature(read, eval_str=True).replace(return_annotation=str)
    guarded.__signature__ = signature  # type: ignore[attr-defined]
    guarded.__dict__.pop("__wrapped__", None)
    return guarded


def _folders(reports: Path) -> tuple[str, ...]:
    return tuple(sorted((path.parent.name for path in reports.glob("*/report.html")), reverse=True))


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise ResourceNotFoundError(f"{text[:40]!r} is no position; a whole number from 0 is allowed")
    return int(text)
