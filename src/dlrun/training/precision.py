"""Number formats of a step: fp32, bf16 or fp16 under autocast, with a loss scaler where fp16 needs one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """name: fp32, bf16 or fp16. The scaler is disabled (and costs nothing) unless fp16."""

    name: str
    device_type: str
    scaler: torch.amp.GradScaler

    @staticmethod
    def of(name: str, device: torch.device) -> Precision:
        """The precision of a run on a device."""
        return Precision(name, device.type, torch.amp.GradScaler(device.type, enabled=name == "fp16"))

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_TYPES[self.name])

    def backward(self, loss: Tensor) -> None:
        """Backward of the (scaled) loss."""
        (self.scaler.scale(loss) if self.scaler.is_enabled() else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer step; fp16 skips it when a scaled gradient overflowed."""
        if not self.scaler.is_enabled():
            optimizer.step()
            return
        # A fused SGD that skips its first step for an overflow leaves its momentum uninitialised (torch 2.15):
        # let the scaler look at the overflow itself, and call the optimizer only where there is none.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self.scaler.step(optimizer)
        self.scaler.update()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients back to their true size, before they are looked at or clipped."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
