"""Commands that work on training rows through a teacher: generate, audit, augment, patch, clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.cli.option_groups import TeacherOptions, spread_groups
from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, ERROR_CONSOLE, print_json, table
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.data_work.audit import Audit
    from agent.data_work.mending import Mended
    from agent.data_work.row_request import JobProgress, MadeRows, RowRequest

Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Batches asked at once.")]
BatchSize = Annotated[int, typer.Option(min=1, max=500, help="Rows asked for in one call.")]
Output = Annotated[Path | None, typer.Option(help="A .jsonl file for the rows; the train split by default.")]
TEACHER = TeacherOptions()


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    for command in (generate, audit, augment, patch, clean):
        app.command()(spread_groups(command))


def generate(
    n: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Rows to make: 500, or as many as a request asks.")
    ] = None,
    request: Annotated[
        str | None, typer.Option(help="Make the rows that an idea of the queue asks for, such as q0004.")
    ] = None,
    batch_size: BatchSize = 50,
    teacher: TeacherOptions = TEACHER,
    concurrency: Concurrency = 4,
    output: Output = None,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Let a teacher write training rows from the task's documents; each is checked before it is kept."""
    from agent.data_work.row_commands import generate_request

    workspace = Workspace.find(where)
    if request is not None:
        _fulfil(workspace, request, teacher, as_json, n=n, size=(batch_size, concurrency), output=output)
        return
    wanted = generate_request(
        workspace, n=n or 500, batch_size=batch_size, concurrency=concurrency, output=output
    )
    _make(wanted, teacher, as_json)


def patch(
    description: Annotated[str, typer.Argument(help="What the rows should be about, in plain words.")],
    n: Annotated[int, typer.Option(min=1, max=100_000, help="Rows to make.")] = 20,
    batch_size: BatchSize = 25,
    teacher: TeacherOptions = TEACHER,
    concurrency: Concurrency = 4,
    output: Output = None,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Let a teacher write training rows that fill one gap."""
    from agent.data_work.row_commands import patch_request

    request = patch_request(
        Workspace.find(where), description, n=n, batch_size=batch_size, concurrency=concurrency, output=output
    )
    _make(request, teacher, as_json)


def augment(
    n: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Rows to make; 20 for each kind of failure.")
    ] = None,
    batch_size: BatchSize = 25,
    teacher: TeacherOptions = TEACHER,
    concurrency: Concurrency = 4,
    output: Output = None,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Let a teacher write training rows aimed at what the best recipe gets wrong on dev."""
    from agent.data_work.row_commands import augment_request

    request = augment_request(
        Workspace.find(where), n=n, batch_size=batch_size, concurrency=concurrency, output=output
    )
    _make(request, teacher, as_json)


def audit(
    fix: Annotated[
        bool, typer.Option("--fix", help="Rewrite bad rows where a fix passes every check.")
    ] = False,
    min_severity: Annotated[
        str, typer.Option(help="Fix findings from this severity on: error, warning or info.")
    ] = "error",
    anew: Annotated[bool, typer.Option("--anew", help="Ask again about rows already reviewed.")] = False,
    batch_size: BatchSize = 20,
    teacher: TeacherOptions = TEACHER,
    concurrency: Concurrency = 4,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Review every training row, by checks and by a teacher."""
    from agent.data_work.audit import audit_rows
    from agent.data_work.mending import check_severity, mend_rows
    from agent.data_work.target import choose_target

    workspace = Workspace.find(where)
    least = check_severity(min_severity)
    if fix:
        choose_target(workspace, workspace.load_task(), None).check_free()
    asked = teacher.open()
    with _shown_progress("reviewing", as_json) as show:
        found = audit_rows(
            workspace,
            asked,
            batch_size=batch_size,
            concurrency=concurrency,
            anew=anew,
            caps=teacher.caps,
            on_progress=show,
        )
    mended = mend_rows(workspace, found, min_severity=least) if fix else None
    _report_audit(found, mended, as_json)


def clean(
    keep_seed: Annotated[
        bool, typer.Option("--keep-seed", help="Keep only rows that stand in data/seed.jsonl as well.")
    ] = False,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Take the rows that a teacher wrote out of the train split again."""
    from agent.data_work.cleaning import clean_rows

    cleaned = clean_rows(Workspace.find(where), keep_seed=keep_seed)
    if as_json:
        print_json(cleaned)
        return
    CONSOLE.print(f"{cleaned.removed} rows taken out, {cleaned.left} left in {cleaned.file}", markup=False)
    if cleaned.log:
        CONSOLE.print(f"the rows taken out are kept in {cleaned.log}", markup=False, soft_wrap=True)


def _make(request: RowRequest, teacher: TeacherOptions, as_json: bool) -> MadeRows:
    from agent.data_work.row_making import make_rows

    asked = teacher.open()
    with _shown_progress(f"asking {asked.name}", as_json) as show:
        made = make_rows(request, asked, caps=teacher.caps, on_progress=show)
    if as_json:
        print_json(made)
    else:
        _print_made(made)
    return made


def _fulfil(
    workspace: Workspace,
    item_id: str,
    teacher: TeacherOptions,
    as_json: bool,
    *,
    n: int | None,
    size: tuple[int, int],
    output: Path | None,
) -> None:
    from agent.data_work.fulfilment import note_rows, request_of
    from agent.ideas.queue import open_queue

    queue = open_queue(workspace)
    item = queue.find(item_id)
    wanted = request_of(workspace, item, n=n, batch_size=size[0], concurrency=size[1], output=output)
    made = None if wanted.request is None else _make(wanted.request, teacher, as_json)
    told = note_rows(queue, item, wanted, made)
    if as_json and made is None:
        print_json({"added": 0, "wanted": wanted.total, "reason": told})
    elif not as_json:
        ERROR_CONSOLE.print(told, markup=False, highlight=False, soft_wrap=True)


def _print_made(made: MadeRows) -> None:
    lines = [f"{made.added} of {made.wanted} rows added to {made.target}"]
    if made.stopped_by != "done":
        lines.append(f"stopped early: {made.reason}")
    if made.refused:
        lines.append("refused: " + ", ".join(f"{count} {reason}" for reason, count in made.refused.items()))
    if made.leaks:
        lines.append(f"pairs of rows tied to a judged split, for your eyes only: {made.leaks}")
    lines += made.notes
    lines.append(f"{made.calls} calls, {made.tokens} tokens; everything that came: {made.log}")
    for line in lines:
        CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def _report_audit(found: Audit, mended: Mended | None, as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {
            "job": found.job_id,
            "findings": list(found.findings),
            "unreviewed": found.unreviewed,
            "reason": found.reason,
            "calls": found.calls,
            "tokens": found.tokens,
        }
        print_json(facts if mended is None else {**facts, "mended": mended.mended, "kept": mended.kept})
        return
    rows = [
        (finding.index, finding.severity, finding.issue, _shown_fix(finding.suggested_fix))
        for finding in found.findings
        if finding.severity != "ok"
    ]
    CONSOLE.print(table(f"{found.file}", ("index", "severity", "issue", "suggested fix"), rows))
    good = sum(finding.severity == "ok" for finding in found.findings)
    lines = [f"{good} rows ok, {len(rows)} findings, {found.calls} calls, {found.tokens} tokens"]
    if found.unreviewed:
        lines.append(f"{len(found.unreviewed)} rows not reviewed: {found.reason}")
    if mended is not None:
        lines.append(f"{len(mended.mended)} rows rewritten; what they were is in {found.log}")
        lines += [f"  row {index} stays: {why}" for index, why in mended.kept.items()]
    for line in lines:
        CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown_fix(fix: Any) -> str:
    import json

    return "" if fix is None else json.dumps(fix, ensure_ascii=False)[:300]


@contextmanager
def _shown_progress(doing: str, as_json: bool) -> Iterator[Callable[[JobProgress], None]]:
    """Show a bar on a terminal, and a line for each batch in a log."""
    console = ERROR_CONSOLE if as_json else CONSOLE
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(doing, total=None)

        def show(now: JobProgress) -> None:
            words = f"{doing}: {now.spent.calls} calls, {now.spent.tokens} tokens, {now.refused} refused"
            progress.update(bar, total=now.wanted, completed=now.done, description=words)
            if not console.is_terminal:
                line = f"  {words}, {now.done} of {now.wanted}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield show
