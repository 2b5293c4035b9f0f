"""Time to the same decision: which of K recipes scores best on the dev rows.

The peer trains every recipe to its end and answers the dev rows with transformers' `generate`,
in batches. This engine scores a part of the dev rows on the way, lets the worse half of the
recipes go at two rungs, and answers all dev rows with those that are left. Both walls are from a
cold start; both answer greedily and are judged by the same scorer.

Run by benchmarks/bakeoff.py --decision; as a script, the part inside a contender's process.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bakeoff_report import Outcome  # noqa: E402
from benchmarks.bakeoff_run import Peers, Run, Runner, prepare, work_of  # noqa: E402
from benchmarks.bakeoff_work import (  # noqa: E402
    ABSENT,
    Job,
    Measured,
    Recipe,
    Stopwatch,
    peak_bytes,
    write_measured,
)

__all__ = ["run_decision"]

EXAMPLE: Final = ROOT / "examples" / "drone-router"
PEER: Final = "trl packed+pure"
OURS: Final = "bakehouse to a decision"
SCORER: Final = ("json", ("confidence",))
MAX_NEW_TOKENS: Final = 56
BATCH_SIZE: Final = 160
MID_ITEMS: Final = 24
# Rates a factor apart: a search begins like this, and most of it is for throwing away.
RATES: Final = (2e-3, 3e-5, 5e-4, 1e-5, 1e-4, 2e-4, 4e-3, 1e-3)


def run_decision(model: str, options: argparse.Namespace, folder: Path) -> Outcome:
    """Have the peer and this engine decide, in turn."""
    example = {
        "rows": str(EXAMPLE / "data" / "train.jsonl"),
        "system_prompt": str(EXAMPLE / "system_prompt.md"),
        "dev": str(EXAMPLE / "data" / "dev.jsonl"),
    }
    if options.rows is None:
        options = argparse.Namespace(**{**vars(options), **example})
    facts = prepare(model, options, folder)
    recipes = tuple(
        Recipe(f"r{i}", RATES[i % len(RATES)], 16, 32, 17 + i, ("q_proj", "k_proj", "v_proj", "o_proj"))
        for i in range(options.recipes)
    )
    runner = Runner(work_of(facts, options, recipes), Peers(options.peer_python), folder, options.threads)
    outcome = Outcome(model, facts, work_of(facts, options, recipes))
    peer = f"trl {options.trl[0]}" if options.trl else PEER
    for repeat in range(options.repeat):
        for contender in (peer, OURS):
            print(f"  {contender}, run {repeat + 1} of {options.repeat}", file=sys.stderr)
            outcome.take(contender, runner.run(contender, range(len(recipes)), script=Path(__file__).name))
    outcome.notes += list(notes_on(outcome, peer))
    return outcome


def notes_on(outcome: Outcome, peer: str) -> list[str]:
    """Say who won where, and whether it is the same recipe."""
    if peer not in outcome.runs:
        return []
    pairs = zip(outcome.runs[peer], outcome.runs[OURS], strict=True)
    ratios = [other.wall_s / ours.wall_s for other, ours in pairs]
    theirs, ours = (scores_of(outcome.runs[name][0]) for name in (peer, OURS))
    best, chosen = (max(scores, key=lambda name: scores[name]) for scores in (theirs, ours))
    lines = [f"{'recipe':8} {'rate':>8} {'peer':>7} {'ours':>7}"]
    for recipe in outcome.work.recipes:
        name = recipe.name
        scored = f"{ours[name]:7.3f}" if name in ours else f"{'let go':>7}"
        lines.append(f"{name:8} {recipe.learning_rate:8.0e} {theirs[name]:7.3f} {scored}")
    same = "the same recipe" if best == chosen else "another recipe"
    lines.append(
        f"the peer chose {best}, ours {chosen}: {same}; the peer scores what ours chose {theirs[chosen]:.3f} "
        f"against {theirs[best]:.3f} for its own"
    )
    lines.append(
        f"time to the decision: {median(ratios):.2f}x faster than {peer}, "
        f"{outcome.cpu_s(peer) / outcome.cpu_s(OURS):.2f}x in processor time"
    )
    return lines


def scores_of(run: Run) -> dict[str, float]:
    assert run.measured is not None
    assert run.measured.scores is not None
    return run.measured.scores


def main(path: str) -> None:
    """Train, answer and score inside the contender's process."""
    job = Job.read(path)
    write_measured(job, decide_here(job) if job.contender == OURS else decide_elsewhere(job))


def decide_elsewhere(job: Job) -> Measured:
    """Train every recipe to its end with TRL, and score each with `generate`."""
    try:
        from benchmarks import bakeoff_peers

        run = bakeoff_peers.Trl(job)
    except ImportError as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        sys.exit(ABSENT)
    scores: dict[str, float] = {}

    def score(recipe: Recipe, model: Any) -> None:
        scores[recipe.name] = mean_score(job, generate(job, model.eval(), run.tokenizer))

    run.after = score
    return replace(run.train_all(), scores=scores)


def generate(job: Job, model: Any, tokenizer: Any) -> list[str]:
    """Answer the dev rows in batches of like length, padded on the left."""
    import torch

    prompts = [question["prompt_ids"] for question in job.work.dev_questions()]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    said = [""] * len(prompts)
    stops = {tokenizer.eos_token_id, *_list(model.generation_config.eos_token_id)}
    for start in range(0, len(order), BATCH_SIZE):
        numbers = order[start : start + BATCH_SIZE]
        width = len(prompts[numbers[0]])
        pads = [width - len(prompts[i]) for i in numbers]
        rows = [[0] * pad + prompts[i] for pad, i in zip(pads, numbers, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor(rows, device=job.work.device),
                attention_mask=torch.tensor(mask, device=job.work.device),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
            )
        for i, tokens in zip(numbers, out[:, width:].tolist(), strict=True):
            said[i] = tokenizer.decode(tokens, skip_special_tokens=True)
    return said


def _list(value: Any) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def mean_score(job: Job, answers: list[str]) -> float:
    from tools.evaluation.scorers import get_scorer

    scorer = get_scorer(SCORER[0], ignore=SCORER[1])
    questions = job.work.dev_questions()
    scores = [scorer(q["expected"], said).score for q, said in zip(questions, answers, strict=True)]
    return sum(scores) / len(scores)


def decide_here(job: Job) -> Measured:
    """Train all recipes together with early exit, and score what is left."""
    import torch

    from benchmarks import bakeoff_ours
    from tools.engine.base import load_base
    from tools.engine.evaluate import evaluate_adapters
    from tools.engine.halving import Halving
    from tools.engine.spec import AdapterRef, EvaluateSpec, MidEval, ScorerChoice, StackMember
    from tools.engine.trainer import train_stack

    work = job.work
    assert work.dev is not None
    base = load_base(work.model, "bfloat16", device=torch.device(work.device))
    scorer = ScorerChoice(SCORER[0], SCORER[1])
    members = [
        StackMember(
            recipe.name,
            bakeoff_ours.train_recipe(work, recipe),
            str(Path(job.folder) / recipe.name),
        )
        for recipe in job.chosen
    ]
    mid_eval = MidEval(work.dev, MID_ITEMS, scorer, MAX_NEW_TOKENS, BATCH_SIZE)
    watch = Stopwatch(work.device)
    watch.start(0)
    results = train_stack(base, members, mid_eval=mid_eval, search=Halving())
    tokens = sum(result.tokens for result in results)
    speed = watch.speed(tokens)
    prompt = Path(work.system_prompt).read_text(encoding="utf-8").strip() if work.system_prompt else None
    spec = EvaluateSpec(
        base_model=work.model,
        torch_dtype="bfloat16",
        adapters=tuple(
            AdapterRef(result.trial_id, 0, result.adapter_dir)
            for result in results
            if result.status == "done"
        ),
        splits={"dev": work.dev},
        scorer=scorer,
        scores_dir=str(Path(job.folder) / "scores"),
        result_path=str(Path(job.folder) / "result.json"),
        system_prompt=prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=BATCH_SIZE,
    )
    scored = evaluate_adapters(base, spec)
    steps = {member.trial_id: bakeoff_ours.steps_of([member]) for member in members}
    return Measured(
        tokens_per_s=speed.wall,
        tokens_per_cpu_s=speed.cpu,
        tokens=tokens,
        losses={name: bakeoff_ours.mean([loss for loss, _ in found]) for name, found in steps.items()},
        peak_bytes=peak_bytes(work.device),
        versions=bakeoff_ours.versions_of(["torch", "transformers", "peft"]),
        scores={result.trial_id: result.splits["dev"].mean for result in scored},
    )


if __name__ == "__main__":
    main(sys.argv[1])
