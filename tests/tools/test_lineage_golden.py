"""Files and prompts are, byte for byte, those of fieldkit 0.34.1.

golden/lineage was made by that package: the trials below appended to a fresh
`fieldkit.lineage.LineageStore(root)` (results.tsv), and what `render_prompt` gave for the
arguments of each case below (prompt-*.md). Nothing here needs it or the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.lineage import FailureLabel, LineageStore, Trial

GOLDEN = Path(__file__).parent / "golden" / "lineage"

# exp_id, parent, status, metric, delta, hypothesis, notes
ROWS: tuple[tuple[str, str, str, float | None, float | None, str, str], ...] = (
    ("000", "", "baseline", 1.2, None, "", ""),
    ("001", "000", "keep", 1.15, -0.05, "raise the learning rate to 1e-3", "held on both seeds"),
    ("002", "001", "discard", 1.31, 0.16, 'drop the "warm-up" entirely', "x" * 250),
    ("003", "001", "crash", None, None, "rank 256 on all projections", "out of memory"),
    ("004", "001", "eval_budget_overrun", 1.14, -0.01, "32k context: " + "é" * 120, ""),
    ("005", "001", "keep", 1.0938273, -0.0561727, "rank 16 → 32, " + "long reasons " * 12, "seed 17"),
    ("006", "005", "size_blocked", 1.12, 1e-05, "a 'quoted', comma, list", ""),
    ("007", "005", "harness_abort", None, None, "killed at 03:00", "wall clock"),
    ("008", "404", "preflight_crash", None, None, "parent is gone", ""),
    ("009", "005", "train_budget_overrun", 1.2e-07, None, "tiny number", ""),
    ("010", "005", "disqualified", None, 12345.5, "cheats", "gate"),
    ("011", "005", "keep", 1.0938273, 0.0, "same metric as 005", ""),
)
CASES: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("default", True, {}),
    (
        "small",
        True,
        {"top_k": 2, "recent_n": 3, "last_m_full": 1, "session_timestamp": "2026-05-11T11:00:00Z"},
    ),
    ("wide", True, {"top_k": 0, "recent_n": 500, "last_m_full": 500}),
    ("higher-is-better", False, {"session_timestamp": "T"}),
)


def fields(row: tuple[str, str, str, float | None, float | None, str, str]) -> dict[str, Any]:
    exp_id, parent, status, metric, delta, hypothesis, notes = row
    return {
        "exp_id": exp_id,
        "timestamp": f"2026-05-11T10:{int(exp_id):02d}:00Z",
        "specialist": "" if status == "baseline" else "opt",
        "parent_exp": parent,
        "baseline_exp": "000",
        "domain": "drone-router",
        "hypothesis": hypothesis,
        "expected_delta": "-0.02",
        "status": status,
        "core_metric": metric,
        "val_bpb": metric,
        "delta_vs_best": delta,
        "train_s": 61.25 if metric else None,
        "total_s": 90,
        "job_name": f"job-{exp_id}",
        "snapshot_path": f"snapshots/{exp_id}_opt" if status == "keep" else "",
        "notes": notes,
    }


def make_trial(row: tuple[str, str, str, float | None, float | None, str, str]) -> Trial:
    values = fields(row)
    return Trial(**values | {"status": FailureLabel(values["status"])})


def test_the_table_is_written_as_fieldkit_writes_it(tmp_path: Path) -> None:
    store = LineageStore(tmp_path)
    for row in ROWS:
        store.append(make_trial(row))
    assert store.results_path.read_bytes() == (GOLDEN / "results.tsv").read_bytes()


def test_a_table_of_fieldkit_loads_whole() -> None:
    store = LineageStore(GOLDEN)
    assert store.all_trials() == [make_trial(row) for row in ROWS]
    assert store.problems() == ()


@pytest.mark.parametrize(("name", "lower_is_better", "arguments"), CASES, ids=[case[0] for case in CASES])
def test_the_prompt_is_rendered_as_fieldkit_renders_it(
    name: str, lower_is_better: bool, arguments: dict[str, Any]
) -> None:
    store = LineageStore(GOLDEN, lower_is_better=lower_is_better)
    text = store.render_prompt("opt", **arguments).rendered_prompt
    assert text == (GOLDEN / f"prompt-{name}.md").read_text(encoding="utf-8")


def test_an_empty_store_is_rendered_as_fieldkit_renders_it(tmp_path: Path) -> None:
    assert LineageStore(tmp_path).render_prompt("opt").rendered_prompt == "# Session start — empty lineage\n"


def test_a_table_with_line_breaks_inside_quotes_loads(tmp_path: Path) -> None:
    # fieldkit writes a line break inside a text as it is, so that a row spans several lines.
    quoted = '"first line\nsecond ""line""\tafter a tab"'
    text = (GOLDEN / "results.tsv").read_text(encoding="utf-8")
    (tmp_path / "results.tsv").write_text(
        text.replace("rank 256 on all projections", quoted), encoding="utf-8"
    )
    trials = LineageStore(tmp_path).all_trials()
    assert [trial.exp_id for trial in trials] == [row[0] for row in ROWS]
    assert trials[3].hypothesis == 'first line\nsecond "line"\tafter a tab'
