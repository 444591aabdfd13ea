"""Train the model as it is now for some more time: between two steps of a stack, or a compressed run that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dlrun.compression import _layers
from dlrun.contracts import CompressionTools, Compressor, DataSpec


def build(spec: DataSpec, *, duration: str = "1 epoch", lr_scale: float = 0.1) -> Compressor:
    """The loop, data, augmentation, optimizer and schedule of `train`; the weights that were best on validation stay.

    Settings:
    duration: how long, as train.duration
    lr_scale: factor on the run's learning rate
    """
    _layers.require_training("finetune", "duration", duration, lr_scale, optional=False)
    return Finetune(duration, lr_scale)


@dataclass(frozen=True)
class Finetune:
    """See `build`."""

    duration: str
    lr_scale: float

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The trained model."""
        return tools.finetune(model, self.duration, lr_scale=self.lr_scale), {"report": {"duration": self.duration}}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """Nothing has another shape."""
        return model
