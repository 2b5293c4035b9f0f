from __future__ import annotations

from agent.report.wrong_rows import find_wrong_rows
from tools.evaluation.scores import ScoreRow


def row(item: str, score: float, error: str | None = None, seed: int = 1) -> ScoreRow:
    return ScoreRow(item, seed, score, output="o", expected="e", prompt="p", error=error)


def test_rows_are_grouped_by_kind_the_most_frequent_first() -> None:
    rows = [
        row("a", 0.0, "invalid_json"),
        row("b", 0.0, "mismatch:args"),
        row("c", 0.0, "mismatch:cmd"),
        row("d", 1.0),
    ]
    found = find_wrong_rows(rows, [])
    assert [(group.kind, len(group.items)) for group in found.groups] == [
        ("mismatch", 2),
        ("invalid_json", 1),
    ]
    assert (found.n_wrong, found.n_items, found.n_seeds) == (3, 4, 1)
    assert [group.n_before for group in found.groups] == [None, None]


def test_an_item_counts_once_over_its_seeds_with_its_lowest_answer() -> None:
    rows = [row("a", 1.0, seed=1), row("a", 0.5, "custom", seed=2), row("a", 0.2, "custom", seed=3)]
    (group,) = find_wrong_rows(rows, []).groups
    (item,) = group.items
    assert (item.n_wrong, item.n_seeds, item.row.seed) == (2, 3, 3)


def test_mended_and_broken_rows_are_told_against_the_incumbent() -> None:
    before = [row("a", 0.0, "mismatch"), row("b", 1.0), row("c", 0.0, "mismatch"), row("d", 1.0)]
    after = [row("a", 1.0), row("b", 0.0, "mismatch"), row("c", 0.0, "mismatch"), row("d", 1.0)]
    found = find_wrong_rows(after, before)
    assert found.mended == ("a",)
    assert found.broken == ("b",)
    assert [(item.row.item_id, item.is_new) for item in found.groups[0].items] == [("b", True), ("c", False)]
    assert found.groups[0].n_before == 2


def test_items_that_only_one_side_answered_are_neither_mended_nor_broken() -> None:
    found = find_wrong_rows([row("new", 0.0)], [row("gone", 1.0)])
    assert (found.mended, found.broken) == ((), ())
    assert found.groups[0].kind == "partly right"


def test_a_recipe_without_mistakes_has_no_groups() -> None:
    found = find_wrong_rows([row("a", 1.0)], [row("a", 0.0)])
    assert found.groups == ()
    assert found.mended == ("a",)
