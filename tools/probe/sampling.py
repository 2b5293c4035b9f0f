"""Drawing tokens: the same answer to a question whatever else is asked beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tools.errors import ProbeError
from tools.files import digest_bytes

if TYPE_CHECKING:
    from tools.engine.generation import Choose
    from tools.probe.generator import Sampling

__all__ = ["chooser"]


def chooser(sampling: Sampling, prompts: Sequence[str]) -> Choose:
    """Return what picks the next tokens of prompts.

    Each prompt has a generator of its own, on the CPU and seeded by the seed and the prompt's
    text, so that neither the batch nor the device nor other draws in the process move it.
    """
    generators = [_generator(sampling.seed, prompt) for prompt in prompts]

    def choose(logits_B_V: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        if sampling.temperature == 0:
            return _checked(logits_B_V.argmax(-1), logits_B_V.amax(-1))
        draws = [float(torch.rand((), generator=generators[number])) for number in numbers]
        draw_B = torch.tensor(draws, device=logits_B_V.device)
        return _draw(logits_B_V, draw_B, sampling.temperature, sampling.top_p)

    return choose


def _draw(logits_B_V: torch.Tensor, draw_B: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    probability_B_V = torch.softmax(logits_B_V.float() / temperature, dim=-1)
    sorted_B_V, token_B_V = probability_B_V.sort(dim=-1, descending=True, stable=True)
    reached_B_V = sorted_B_V.cumsum(-1)
    # The likeliest tokens up to the one that reaches top_p; the first is always among them.
    n_kept_B = ((reached_B_V - sorted_B_V) < top_p).sum(-1).clamp_min(1)
    total_B = reached_B_V.gather(-1, n_kept_B[:, None] - 1)[:, 0]
    place_B = torch.searchsorted(reached_B_V, (draw_B * total_B)[:, None], right=True)[:, 0]
    place_B = torch.minimum(place_B, n_kept_B - 1)
    return _checked(token_B_V.gather(-1, place_B[:, None])[:, 0], total_B)


def _checked(token_B: torch.Tensor, witness_B: torch.Tensor) -> torch.Tensor:
    if bool(torch.isnan(witness_B).any()):
        raise ProbeError("the model's next-token scores are NaN; its weights or its adapter are broken")
    return token_B


def _generator(seed: int, prompt: str) -> torch.Generator:
    digest = digest_bytes(f"{seed}:{prompt}".encode())
    return torch.Generator().manual_seed(int(digest[:15], 16))
