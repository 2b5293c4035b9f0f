"""Prepare the work of a bakeoff benchmark: a base of known shape, and rows of known length.

    python benchmarks/bakeoff_prepare.py REQUEST.json

Weights are random where no folder is given; the tokenizer is a real one, small, with a chat
template that adds nothing of its own but the marks of a turn.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

__all__ = ["SHAPES", "Request"]

TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _shape(kind: str, layers: int, hidden: int, middle: int, heads: int, kv: int, **more: Any) -> Any:
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    return kind, {**sizes, **more}


SHAPES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "tiny": _shape("llama", 2, 64, 128, 4, 2, vocab_size=512),
    "smollm2-135m": _shape("llama", 30, 576, 1536, 9, 3, vocab_size=49152),
    "qwen3-0.6b": _shape("qwen3", 28, 1024, 3072, 16, 8, head_dim=128, vocab_size=151936),
    "qwen3-1.7b": _shape("qwen3", 28, 2048, 6144, 16, 8, head_dim=128, vocab_size=151936),
    "qwen3-8b": _shape(
        "qwen3", 36, 4096, 12288, 32, 8, head_dim=128, vocab_size=151936, tie_word_embeddings=False
    ),
}


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    folder: str
    shape: str | None
    model: str | None
    """A folder to use as it is, or None to make one of that shape."""
    device: str
    rows: str | None
    """JSONL of rows to use as they are, or None to make some."""
    n_rows: int
    rows_tokens: int
    spread: float
    """Row lengths differ by this part of rows_tokens up and down."""
    supervised_share: float
    system_prompt: str | None = None
    dev: str | None = None
    """JSONL of rows that a decision rests on."""
    n_dev: int = 0


def make_model(shape: str, device: str, folder: Path) -> None:
    """Save a model of a shape, with random weights in bfloat16, and its tokenizer."""
    import torch
    import transformers

    from tests.tiny import tiny_tokenizer

    kind, sizes = SHAPES[shape]
    tokenizer = tiny_tokenizer(TEMPLATE, vocab_size=512)
    config = transformers.AutoConfig.for_model(
        kind,
        **sizes,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(tokenizer: Any, request: Request) -> list[dict[str, Any]]:
    """Return conversations of one turn each, of random words, with the lengths asked for."""
    from tools.chat import render
    from tools.rows import Message

    draw = random.Random(0)
    words = ["".join(draw.choices("BCDFGHJKLMNPQRSTVWXZ", k=draw.randint(2, 5))) for _ in range(400)]
    costs = {word: len(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words}
    bare = render(tokenizer, [Message("user", "B"), Message("assistant", "B")])
    overhead = len(bare.input_ids)

    def text(n_tokens: int) -> str:
        chosen: list[str] = []
        left = n_tokens
        while left > 0:
            word = draw.choice(words)
            chosen.append(word)
            left -= costs[word]
        return " ".join(chosen)

    rows = []
    for number in range(request.n_rows):
        size = request.rows_tokens * (1 + request.spread * (2 * draw.random() - 1))
        answer = max(1, round(size * request.supervised_share) - 1)
        turns = [("user", text(max(1, round(size) - answer - overhead))), ("assistant", text(answer))]
        rows.append({"id": f"r{number}", "messages": [{"role": r, "content": c} for r, c in turns]})
    return rows


def write_dev(tokenizer: Any, request: Request, system_prompt: str | None, folder: Path) -> None:
    """Write the dev rows, and their prompts as tokens."""
    from tools.chat import render_prompt
    from tools.dataset import load_dataset
    from tools.engine.member import spread

    assert request.dev is not None
    lines = Path(request.dev).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "dev.jsonl").write_text("".join(spread(lines, request.n_dev)), encoding="utf-8")
    questions = [
        {
            "prompt_ids": list(render_prompt(tokenizer, row.prompt, system_prompt=system_prompt)),
            "expected": row.expected,
        }
        for row in load_dataset(folder / "dev.jsonl").rows
    ]
    (folder / "dev.json").write_text(json.dumps(questions), encoding="utf-8")


def main(path: str) -> None:
    """Write the model, the rows, their tokens and `prepared.json` into the request's folder."""
    import transformers

    from tools.chat import render
    from tools.dataset import load_dataset
    from tools.engine.batches import EncodedRow, shared_length
    from tools.hardware import read_shape

    request = Request(**json.loads(Path(path).read_text(encoding="utf-8")))
    folder = Path(request.folder)
    model = Path(request.model) if request.model else folder / "model"
    if request.model is None:
        assert request.shape is not None
        make_model(request.shape, request.device, model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows_path = folder / "rows.jsonl"
    if request.rows is None:
        lines = [json.dumps(row) + "\n" for row in make_rows(tokenizer, request)]
        rows_path.write_text("".join(lines), encoding="utf-8")
    else:
        rows_path.write_bytes(Path(request.rows).read_bytes())
    prompt = (
        Path(request.system_prompt).read_text(encoding="utf-8").strip() if request.system_prompt else None
    )
    rendered = [render(tokenizer, row.messages, system_prompt=prompt) for row in load_dataset(rows_path).rows]
    tokens = [
        {"input_ids": list(row.input_ids), "completion_mask": [int(flag) for flag in row.loss_mask]}
        for row in rendered
    ]
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    if request.dev:
        write_dev(tokenizer, request, prompt, folder)
    lengths = [len(row.input_ids) for row in rendered]
    facts = {
        "model": str(model),
        "rows": str(rows_path),
        "tokens": str(folder / "tokens.json"),
        "dev": str(folder / "dev.jsonl") if request.dev else None,
        "dev_tokens": str(folder / "dev.json") if request.dev else None,
        "n_rows": len(rendered),
        "mean_tokens": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "longest_prompt": max(row.loss_mask.index(True) for row in rendered),
        "supervised": sum(sum(row.loss_mask) for row in rendered) / sum(lengths),
        "shared_prefix": shared_length([EncodedRow("", r.input_ids, r.loss_mask) for r in rendered]),
        "n_params": read_shape(model).n_params,
        "shape": asdict(read_shape(model)),
    }
    (folder / "prepared.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
