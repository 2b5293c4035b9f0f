"""A probe in a process of its own: `python -P -m tools.probe QUESTIONS --model M --out REPORT`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.errors import BakehouseError, ProbeError
from tools.evaluation.chat_clients import OpenAICompatibleClient
from tools.files import write_json_atomic
from tools.generators.endpoint import EndpointGenerator
from tools.probe.generator import Sampling, open_generator
from tools.probe.knowledge import KnowledgeProbe
from tools.probe.questions import load_probe_kind
from tools.probe.reasoning import ReasoningProbe

logger = logging.getLogger("tools.probe")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe that the questions' kind asks for and write its report, whole.

    Returns:
        0 when the report is written; 1 when there is none, the reason on stderr.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        if load_probe_kind(args.questions) == "reasoning":
            _probe_reasoning(args)
        else:
            _probe_knowledge(args)
    except (BakehouseError, ImportError) as err:
        logger.error("%s: %s", type(err).__name__, err)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m tools.probe", description=__doc__)
    parser.add_argument("questions", type=Path, help="JSONL: qid, category, question; or question, ideal")
    parser.add_argument("--model", required=True, help="a folder, a .gguf file or a Hub id")
    parser.add_argument("--adapter", help="folder of a peft adapter")
    parser.add_argument("--endpoint", help="ask an OpenAI-compatible http(s)://host/v1 for --model instead")
    parser.add_argument("--api-key-env", help="variable that holds the endpoint's key")
    parser.add_argument("--out", required=True, type=Path, help="the report, JSON")
    parser.add_argument("--resume", type=Path, help="JSONL that keeps the rows, to go on from")
    parser.add_argument("--tag", default="probe", help="names the report of a knowledge probe")
    parser.add_argument("--step", type=int, help="training step, for the report")
    parser.add_argument("--max-new-tokens", type=int, help="1024 for reasoning, 256 for knowledge")
    parser.add_argument("--temperature", type=float, help="0.6 for reasoning, 0 for knowledge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    return parser


def _probe_reasoning(args: argparse.Namespace) -> None:
    sampling = Sampling(
        1024 if args.max_new_tokens is None else args.max_new_tokens,
        0.6 if args.temperature is None else args.temperature,
        args.seed,
    )
    report = ReasoningProbe.from_jsonl(args.questions).run(
        args.model,
        lora_path=args.adapter,
        step=args.step,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        generator=_endpoint(args, sampling),
        resume_path=args.resume,
        batch_size=args.batch_size,
        seed=args.seed,
        on_progress=lambda done, total, row: logger.info("%d of %d: %s", done, total, row.qid),
    )
    report.to_json(args.out)


def _probe_knowledge(args: argparse.Namespace) -> None:
    probe = KnowledgeProbe.from_jsonl(args.questions)
    sampling = Sampling(
        256 if args.max_new_tokens is None else args.max_new_tokens,
        0.0 if args.temperature is None else args.temperature,
        args.seed,
    )
    local = partial(open_generator, args.model, args.adapter, sampling=sampling, batch_size=args.batch_size)
    report = probe.run(
        _endpoint(args, sampling) or local(),
        tag=args.tag,
        model=args.model,
        adapter=args.adapter,
        resume_path=args.resume,
        on_progress=lambda done, total, _row: logger.info("%d of %d", done, total),
    )
    write_json_atomic(args.out, report.to_dict())


def _endpoint(args: argparse.Namespace, sampling: Sampling) -> EndpointGenerator | None:
    """Return who answers behind --endpoint, None where the model is loaded here."""
    if args.endpoint is None:
        return None
    if args.adapter is not None:
        raise ProbeError("--endpoint serves its adapters under names of their own; give that as --model")
    client = OpenAICompatibleClient(args.endpoint, args.model, api_key_env=args.api_key_env, timeout_s=600.0)
    return EndpointGenerator(client, sampling, args.batch_size)


if __name__ == "__main__":
    sys.exit(main())
