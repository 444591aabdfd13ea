"""int8 linear layers, whose inputs are rounded as they come; recurrent layers and embeddings are int8 in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dlrun.compression import _layers, _onnx_graph, _quantized
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError


def build(
    spec: DataSpec,
    *,
    backend: Literal["torch", "onnxruntime"] = "torch",
    embeddings: bool = True,
    smallest: int = 256,
    ignore: list | None = None,
) -> Compressor:
    """Linear layers multiply int8 numbers: weights with a scale a row, inputs with a scale a token that is found as
    they come, so nothing is calibrated. Recurrent layers (LSTM, GRU, Elman) keep int8 weights in the file and compute
    in float32 with weights that are written out once at load; so do embeddings.

    Source: Yao et al. 2022, "ZeroQuant", section 4.1 (a scale a row and a token).

    Settings:
    backend: torch keeps the model, layer for layer; onnxruntime makes one graph of it, with a scale a tensor for what
        comes, and runs matrix products and recurrent layers in int8; it takes none of the settings below
    embeddings: keep embeddings in int8 too
    smallest: layers with fewer weights stay as they are
    ignore: layers to leave alone, by name or pattern, e.g. [head, "blocks.0.*"]
    """
    _layers.require(smallest >= 1, "quantize_dynamic.smallest", smallest, "an integer of at least 1")
    return QuantizeDynamic(backend, embeddings, smallest, ignore)


@dataclass(frozen=True)
class QuantizeDynamic:
    """See `build`."""

    backend: str
    embeddings: bool
    smallest: int
    ignore: list | None

    def require_ready(self) -> None:
        """See contracts.WithRequirements. A run that was made with such settings is still read."""
        if self.backend != "onnxruntime":
            return
        if self.ignore or not self.embeddings or self.smallest != 256:
            raise DlrunError(
                "compression.quantize_dynamic: backend=onnxruntime rounds every layer that it can, and takes none of "
                "embeddings, smallest and ignore",
                "leave them out, or compression.quantize_dynamic.backend=torch",
            )
        _onnx_graph.require_extras()

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with int8 layers, and their names."""
        if self.backend == "onnxruntime":
            note = _onnx_graph.spoken(model, tools, "quantize_dynamic.backend=onnxruntime")
            content = _onnx_graph.dynamic(model, tools)
            report = {"runtime": "ONNX Runtime", "bytes of the graph": len(content)} | note
            return _onnx_graph.as_module(content), {"graph_bytes": len(content), "report": report}
        linear, kept = self._layers(model)
        plan = {"linear": linear, "kept": kept}
        _apply(model, plan)
        report: dict[str, Any] = {"linear layers": len(linear), "tensors of other layers": len(kept)}
        if kept:
            report["note"] = "recurrent layers and embeddings are int8 in the file, and written out in float32 at load"
        return model, plan | {"report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same layers; their numbers come later."""
        if "graph_bytes" in plan:
            return _onnx_graph.empty(int(plan["graph_bytes"]))
        _apply(model, plan)
        return model

    def _layers(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Names of linear layers, and of weights of recurrent layers and embeddings. Raises: DlrunError if none."""
        tied = _layers.tied(model)
        linear: list[str] = []
        recurrent: list[str] = []
        embedded: list[str] = []
        for name, layer in model.named_modules():
            weights = [
                f"{name}.{key}"
                for key, weight in layer.named_parameters(recurse=False)
                if weight.dim() > 1 and weight.numel() >= self.smallest and id(weight) not in tied
            ]
            if _layers.is_linear(layer):
                linear += [name] if weights else []
            elif isinstance(layer, nn.Embedding):
                embedded += weights if self.embeddings else []
            elif hasattr(layer, "weight_ih") or isinstance(layer, nn.RNNBase):
                recurrent += weights
        chosen = _layers.without([*linear, *embedded, *recurrent], self.ignore, "quantize_dynamic")
        if not any(name in chosen for name in [*linear, *recurrent]):
            raise DlrunError(
                f"quantize_dynamic: {_layers.kind(model)} has no linear or recurrent layer of {self.smallest} weights",
                "for convolutions: compression=quantize_static",
            )
        return [name for name in linear if name in chosen], [n for n in [*embedded, *recurrent] if n in chosen]


def _apply(model: nn.Module, plan: Mapping[str, Any]) -> None:
    for name in plan["linear"]:
        layer: Any = model.get_submodule(name)
        weight_OI = layer.weight.t() if _layers.is_transposed(layer) else layer.weight
        _layers.replace(model, name, _quantized.Int8Linear.of(weight_OI, layer.bias))
    for name in plan["kept"]:
        _quantized.keep(model, name, "int8", 2)
