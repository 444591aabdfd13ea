"""Keep weights in fewer bits (int8, int4, bf16, fp16); they are written out in float32 once, when the run is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dlrun.compression import _layers, _quantized
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError


def build(
    spec: DataSpec,
    *,
    format: Literal["int8", "int4", "bf16", "fp16"] = "int8",
    group: int = 32,
    smallest: int = 256,
    ignore: list | None = None,
) -> Compressor:
    """Each weight matrix becomes integers with a scale for each of its rows (int8: w = s q, q from -127 to 127) or for
    each `group` values of a row (int4, q from -7 to 7, two a byte), or numbers of 16 bits. Activations stay as they
    are: the file is smaller, and the time is that of the float model, which is what computes.

    Settings:
    format: int8 is 4 times smaller and nearly exact; int4 is 7 times smaller and costs accuracy; bf16 and fp16 2 times
    group: values that share a scale in int4, an even number of at least 2; at most a row of each matrix
    smallest: tensors with fewer weights stay as they are
    ignore: layers to leave alone, by name or pattern, e.g. [head, "blocks.0.*"]
    """
    _layers.require(group >= 2 and group % 2 == 0, "quantize_weights.group", group, "an even number of at least 2")
    _layers.require(smallest >= 1, "quantize_weights.smallest", smallest, "an integer of at least 1")
    return QuantizeWeights(format, group, smallest, ignore)


@dataclass(frozen=True)
class QuantizeWeights:
    """See `build`."""

    format: str
    group: int
    smallest: int
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with its weights kept so, and their names."""
        names = self._weights(model)
        for name in names:
            _quantized.keep(model, name, self.format, self.group)
        report = {
            "tensors": len(names),
            "note": "the file is smaller; weights are written out in float32 at load, so that the time is the same",
        }
        return model, {"weights": names, "report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same weights, of zeros."""
        for name in plan["weights"]:
            with torch.no_grad():
                model.get_parameter(name).zero_()
            _quantized.keep(model, name, self.format, self.group)
        return model

    def _weights(self, model: nn.Module) -> list[str]:
        """Names of the weights. Raises: DlrunError where there are none."""
        found = kept_weights(model, self.smallest)
        kept = _layers.without(found, self.ignore, "quantize_weights")
        if not kept:
            raise DlrunError(
                f"quantize_weights: {_layers.kind(model)} has no weight matrix of {self.smallest} or more floats",
                "compression.quantize_weights.smallest=1",
            )
        return kept


def kept_weights(model: nn.Module, smallest: int) -> list[str]:
    """Names of the float matrices and kernels of a model that nothing else goes by."""
    tied = _layers.tied(model)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
        and parameter.is_floating_point()
        and parameter.numel() >= smallest
        and id(parameter) not in tied
        and "parametrizations." not in name
    ]
