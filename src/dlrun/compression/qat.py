"""Train with rounded weights and activations, so that a quantizer behind it costs little (Jacob et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from dlrun.compression import _layers, _quantized
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError


def build(
    spec: DataSpec,
    *,
    duration: str = "2 epochs",
    lr_scale: float = 0.1,
    examples: int = 256,
    ignore: list | None = None,
) -> Compressor:
    """Convolutions and linear layers compute with weights rounded to int8 (a scale a channel) and inputs rounded to
    uint8 (a range that training examples gave); the gradient passes as if nothing was rounded. What comes out are
    floats again, for `compression=[qat,quantize_static]`. A norm behind a convolution may be folded into it later: a
    scale a channel is not changed by that.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks …", section 3; the gradient: Bengio et
    al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".

    Settings:
    duration: of the training, as train.duration
    lr_scale: factor on the run's learning rate
    examples: of the training split, for the ranges of inputs
    ignore: layers to leave alone, by name or pattern, e.g. [head, "blocks.0.*"]
    """
    _layers.require(examples >= 1, "qat.examples", examples, "an integer of at least 1")
    _layers.require_training("qat", "duration", duration, lr_scale, optional=False)
    return Qat(duration, lr_scale, examples, ignore)


@dataclass(frozen=True)
class Qat:
    """See `build`."""

    duration: str
    lr_scale: float
    examples: int
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The trained model, of floats."""
        layers = {name: layer for name, layer in model.named_modules() if _rounds(layer)}
        names = _layers.without(layers, self.ignore, "qat")
        if not names:
            raise DlrunError(f"qat: {_layers.kind(model)} has no convolution or linear layer to round")
        ranges = _ranges(model, {name: layers[name] for name in names}, tools, self.examples)
        handles = []
        for name in names:
            parametrize.register_parametrization(layers[name], "weight", Rounded())
            handles.append(layers[name].register_forward_pre_hook(_rounding(*ranges[name])))
        try:
            model = tools.finetune(model, self.duration, lr_scale=self.lr_scale)
        finally:
            for handle in handles:
                handle.remove()
            for name in names:
                parametrize.remove_parametrizations(layers[name], "weight", leave_parametrized=False)
        report: dict[str, Any] = {"layers": len(names), "duration": self.duration}
        if loops := _layers.recurrent(model):
            report["note"] = f"recurrent layers were not rounded: {', '.join(loops)}"
        return model, {"report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """Nothing has another shape."""
        return model


def _rounds(layer: nn.Module) -> bool:
    return isinstance(layer, _layers.Convolution) or type(layer) is nn.Linear


class Rounded(nn.Module):
    """A weight as int8 would have it; its gradient is that of the weight itself."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = _quantized.scales(weight, 127)
        rounded = _quantized.rounded(weight, scale, 127).to(weight.dtype) * scale
        return weight + (rounded - weight).detach()


def _ranges(
    model: nn.Module, layers: Mapping[str, nn.Module], tools: CompressionTools, examples: int
) -> dict[str, tuple[float, float]]:
    """Least and largest input of each layer over some examples; 0 lies between them."""
    found = dict.fromkeys(layers, (0.0, 0.0))

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def note(_: nn.Module, inputs: Any) -> None:
            low, high = found[name]
            found[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

        return note

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    for batch in tools.batches("train", examples):
        _layers.answer(model, tools, batch)
    for handle in handles:
        handle.remove()
    return found


def _rounding(low: float, high: float) -> Callable[[nn.Module, Any], Any]:
    """A hook that rounds a layer's first input to 256 levels from low to high."""
    scale = max(high - low, 1e-8) / 255
    zero = round(-low / scale)

    def rounded(_: nn.Module, inputs: Any) -> Any:
        given = inputs[0]
        levels = ((given / scale).round() + zero).clamp(0, 255)
        within = given.clamp((0 - zero) * scale, (255 - zero) * scale)
        return (within + ((levels - zero) * scale - within).detach(), *inputs[1:])

    return rounded
