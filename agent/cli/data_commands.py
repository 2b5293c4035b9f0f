"""Commands that work on training rows through a teacher: generate, audit, augment, patch, clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent.cli.options import AsJson, Where
from agent.cli.output import CONSOLE, ERROR_CONSOLE, print_json, table
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.data_work.audit import Audit
    from agent.data_work.mending import Mended
    from agent.data_work.row_request import JobProgress, MadeRows, RowRequest
    from agent.teachers.meter import Caps
    from agent.teachers.teacher import Teacher

TeacherKind = Annotated[
    str, typer.Option("--teacher", help="claude, or openai for any server with /chat/completions.")
]
Model = Annotated[str, typer.Option(help="The teacher's model, as its endpoint calls it.")]
BaseUrl = Annotated[
    str | None, typer.Option(help="Address of the endpoint, such as http://localhost:8000/v1.")
]
KeyEnv = Annotated[str | None, typer.Option("--api-key-env", help="Environment variable that holds the key.")]
Timeout = Annotated[float, typer.Option("--timeout-s", min=1, help="Seconds for one reply.")]
MaxCalls = Annotated[int, typer.Option(min=1, help="Calls that the job may make.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens that the job may take, read and written.")]
Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Batches asked at once.")]
BatchSize = Annotated[int, typer.Option(min=1, max=500, help="Rows asked for in one call.")]
Output = Annotated[Path | None, typer.Option(help="A .jsonl file for the rows; the train split by default.")]

_CALLS = 200
_TOKENS = 2_000_000


def register(app: typer.Typer) -> None:
    """Add the commands to app."""
    for command in (generate, audit, augment, patch, clean):
        app.command()(command)


def generate(
    n: Annotated[int, typer.Option(min=1, max=100_000, help="Rows to make.")] = 500,
    batch_size: BatchSize = 50,
    teacher: TeacherKind = "claude",
    model: Model = "",
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    timeout_s: Timeout = 600.0,
    max_calls: MaxCalls = _CALLS,
    max_tokens: MaxTokens = _TOKENS,
    concurrency: Concurrency = 4,
    output: Output = None,
    where: Where = Path("."),
    as_json: AsJson = False,
) -> None:
    """Let a teacher write training rows from the task's documents; each is checked before it is kept."""
    from agent.data_work.row_commands import generate_request

    request = generate_request(
        Workspace.find(where), n=n, batch_size=batch_size, concurrency=concurrency, output=output
    )
    asked = _open_teacher(teacher, model, base_url, api_key_env, timeout_s)
    _make(request, asked, _caps(max_calls, max_tokens), as_json)


def patch(
    description: Annotated[str, typer.Argument(help="What the rows should be about, in plain words.")],
    n: Annotated[int, typer.Option(min=1, max=100_000, help="Rows to make.")] = 20,
    batch_size: BatchSize = 25,
    teacher: TeacherKind = "claude",
    model: Model = "",
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    timeout_s: Timeout = 600.0,
    max_calls: MaxCalls = _CALLS,
    max_tokens: MaxTokens = _TOKENS,
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
    asked = _open_teacher(teacher, model, base_url, api_key_env, timeout_s)
    _make(request, asked, _caps(max_calls, max_tokens), as_json)


def augment(
    n: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Rows to make; 20 for each kind of failure.")
    ] = None,
    batch_size: BatchSize = 25,
    teacher: TeacherKind = "claude",
    model: Model = "",
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    timeout_s: Timeout = 600.0,
    max_calls: MaxCalls = _CALLS,
    max_tokens: MaxTokens = _TOKENS,
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
    asked = _open_teacher(teacher, model, base_url, api_key_env, timeout_s)
    _make(request, asked, _caps(max_calls, max_tokens), as_json)


def audit(
    fix: Annotated[
        bool, typer.Option("--fix", help="Rewrite bad rows where a fix passes every check.")
    ] = False,
    min_severity: Annotated[
        str, typer.Option(help="Fix findings from this severity on: error, warning or info.")
    ] = "error",
    anew: Annotated[bool, typer.Option("--anew", help="Ask again about rows already reviewed.")] = False,
    batch_size: BatchSize = 20,
    teacher: TeacherKind = "claude",
    model: Model = "",
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    timeout_s: Timeout = 600.0,
    max_calls: MaxCalls = _CALLS,
    max_tokens: MaxTokens = _TOKENS,
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
    asked = _open_teacher(teacher, model, base_url, api_key_env, timeout_s)
    with _shown_progress("reviewing", as_json) as show:
        found = audit_rows(
            workspace,
            asked,
            batch_size=batch_size,
            concurrency=concurrency,
            anew=anew,
            caps=_caps(max_calls, max_tokens),
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


def _open_teacher(
    kind: str, model: str, base_url: str | None, api_key_env: str | None, timeout_s: float
) -> Teacher:
    from agent.teachers.registry import TeacherChoice, open_teacher

    return open_teacher(TeacherChoice(kind, model, base_url, api_key_env, timeout_s))


def _caps(max_calls: int, max_tokens: int) -> Caps:
    from agent.teachers.meter import Caps

    return Caps(max_calls, max_tokens)


def _make(request: RowRequest, teacher: Teacher, caps: Caps, as_json: bool) -> None:
    from agent.data_work.row_making import make_rows

    with _shown_progress(f"asking {teacher.name}", as_json) as show:
        made = make_rows(request, teacher, caps=caps, on_progress=show)
    if as_json:
        print_json(made)
    else:
        _print_made(made)


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
