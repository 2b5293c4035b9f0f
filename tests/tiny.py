"""A real tokenizer, small enough to be made inside a test: byte-level BPE and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

TemplateName = Literal["chatml", "mistral", "generation", "thinking", "dated", "silent", "endless"]

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]")

CHATML: Final = """{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou answer in JSON.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# No system role, and turns must alternate, as in Mistral-7B-Instruct-v0.2.
MISTRAL: Final = """{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\
{% endfor %}"""

# Marks the assistant's text itself, and leaves the end-of-turn token outside the mark.
GENERATION: Final = """{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] }}{% endgeneration %}\
{% else %}{{ message['content'] }}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Drops the reasoning of every assistant turn but the last, as reasoning models' templates do.
THINKING: Final = """{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}\
{% else %}{{ message['content'] }}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

DATED: Final = (
    """{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}""" + CHATML
)

# Knows no system role and does not say so: the turn vanishes.
SILENT: Final = """{% for message in messages %}{% if message['role'] != 'system' %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Ends an answer with a line break alone, which a model cannot learn to stop at.
ENDLESS: Final = """{% for message in messages %}\
{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

TEMPLATES: Final[dict[str, str]] = {
    "chatml": CHATML,
    "mistral": MISTRAL,
    "generation": GENERATION,
    "thinking": THINKING,
    "dated": DATED,
    "silent": SILENT,
    "endless": ENDLESS,
}

_LINES: Final = (
    'take off to 10 metres {"cmd": "takeoff", "args": {"altitude_m": 10.0}, "confidence": 0.97}',
    'land now please {"cmd": "land", "args": {}, "confidence": 0.92}',
    'go to waypoint B4 {"cmd": "goto_waypoint", "args": {"name": "B4"}}',
    "hover here for twenty seconds and then come back home, user system assistant",
    "what is the weather like? I do not know that command.",
)


def tiny_tokenizer(template: TemplateName | str = "chatml", *, vocab_size: int = 384) -> Any:
    """Return a fast tokenizer with every byte in its vocabulary, the same one on every call.

    Args:
        template: A key of TEMPLATES, or the text of a template.
        vocab_size: Size of the vocabulary at most; the 256 bytes and the special tokens are always in it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_LINES, trainer)
    mistral = template == "mistral"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if mistral else "<|im_start|>",
        eos_token="</s>" if mistral else "<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATES.get(template, template),
        model_max_length=4096,
    )


def tiny_model(
    architecture: Literal["llama", "qwen3"] = "llama",
    *,
    seed: int = 0,
    vocab_size: int = 384,
    **overrides: Any,
) -> Any:
    """Return a two-layer decoder in float32 with random weights, the same ones for a seed.

    Its weights are drawn wide, so that its greedy answers differ from prompt to prompt.

    Args:
        vocab_size: At least the tokenizer's.
        overrides: Fields of the config to set otherwise.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **overrides,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
        return LlamaForCausalLM(LlamaConfig(**fields)).eval()


def save_tiny_base(folder: Path) -> Path:
    """Save the tiny decoder and its tokenizer in Hugging Face layout; returns the folder."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
