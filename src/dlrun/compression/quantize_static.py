"""int8 weights and activations, a scale a channel, calibrated on training examples; the whole model is one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dlrun.compression import _layers, _onnx_graph, _pt2e_graph
from dlrun.contracts import CompressionTools, Compressor, DataSpec

_STAYS_FLOAT = "weights of recurrent layers ({}) stay float32; for int8 ones: compression=quantize_dynamic"


def build(
    spec: DataSpec,
    *,
    backend: Literal["onnxruntime", "pt2e"] = "onnxruntime",
    compile: bool = True,
    examples: int = 256,
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax",
) -> Compressor:
    """Convolutions and matrix products on int8 numbers: w = s_c q with a scale for each output channel c, and
    activations x = s (q - z) with scales and zero points that are found on training examples beforehand. Recurrent
    layers stay float32. A graph has no steps to generate with.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Krishnamoorthi 2018, section 3, for a scale a channel.

    Settings:
    backend: what quantizes and runs the graph: ONNX Runtime, or torch's own export (pt2e, through torchao)
    compile: pt2e runs through torch.compile where there is a C++ compiler; each number of examples is compiled once
    examples: of the training split, for calibration
    calibration: how a range is made of what was seen: from least to most, a percentile, or by entropy; of onnxruntime
    """
    _layers.require(examples >= 1, "quantize_static.examples", examples, "an integer of at least 1")
    return QuantizeStatic(backend, compile, examples, calibration)


@dataclass(frozen=True)
class QuantizeStatic:
    """See `build`."""

    backend: str
    compile: bool
    examples: int
    calibration: str

    def require_ready(self) -> None:
        """See contracts.WithRequirements."""
        (_pt2e_graph if self.backend == "pt2e" else _onnx_graph).require_extras()

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model as a graph, whose bytes the run's file holds: scales and zero points are in it."""
        loops = _layers.recurrent(model)
        note: dict[str, Any] = _onnx_graph.spoken(model, tools, "quantize_static")
        note |= {"note": _STAYS_FLOAT.format(", ".join(loops))} if loops else {}
        if self.backend == "pt2e":
            graph, plan = _pt2e_graph.quantized(model, tools, self.examples, self.compile)
            report = {"runtime": "torch", "calibrated on": self.examples, "points": len(plan["points"])}
            return graph, {"pt2e": plan, "report": report | note}
        content = _onnx_graph.static(model, tools, self.examples, self.calibration)
        report = {"runtime": "ONNX Runtime", "calibrated on": self.examples, "bytes of the graph": len(content)}
        return _onnx_graph.as_module(content), {"graph_bytes": len(content), "report": report | note}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """A module for a graph of that size."""
        if "pt2e" in plan:
            return _pt2e_graph.rebuilt(model, plan["pt2e"], self.compile)
        return _onnx_graph.empty(int(plan["graph_bytes"]))
