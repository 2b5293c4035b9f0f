"""From the machine's memory to the device's, without waiting."""

from __future__ import annotations

import torch

__all__ = ["send"]


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a CPU tensor on a device; CUDA copies it while the caller goes on.

    From memory that may be paged out, a copy to CUDA would wait for all that the device has to do
    before it. Torch keeps the pinned memory until the copy is done.
    """
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
