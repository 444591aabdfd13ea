"""Gradient health: per-layer norms of gradients and activations, the share of dead units, a verdict and its cure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrun.contracts import Batch

_WATCHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LSTM, nn.GRU, nn.RNN)
_CAN_DIE = (nn.ReLU, nn.ReLU6)
# A gradient that shrinks (grows) by more than this factor from the last layer to the first has vanished (exploded).
# Glorot and Bengio 2010 show healthy networks within about one order of magnitude; three are beyond doubt.
_VANISHED, _EXPLODED = 1e-3, 1e3
_HUGE_NORM = 1e3
_DEAD_SHARE = 0.5


@dataclass
class _Layer:
    name: str
    weight: Tensor
    activation: float = math.nan
    dead: float = math.nan


class Diagnosis:
    """Watches a model's layers while it trains; `after_step` is the engine's hook (gradients are still there)."""

    def __init__(self, model: nn.Module, every: int = 20) -> None:
        self.every = every
        self.layers: list[_Layer] = []
        self.history: list[dict[str, dict[str, float]]] = []
        self._step = 0
        self._latest: _Layer | None = None  # the layer that computed last: what an activation belongs to
        for name, module in model.named_modules():
            weight = next(iter(module.parameters(recurse=False)), None)
            if isinstance(module, _WATCHED) and weight is not None and weight.requires_grad:
                layer = _Layer(name or "model", weight)
                self.layers.append(layer)
                module.register_forward_hook(self._watch(layer))
            elif isinstance(module, _CAN_DIE):
                module.register_forward_hook(self._watch_activation)

    def _is_due(self, module: nn.Module) -> bool:
        return module.training and (self._step + 1) % self.every == 0

    def _watch(self, layer: _Layer):
        def hook(module: nn.Module, _args: object, output: object) -> None:
            if self._is_due(module):
                self._latest = layer
                tensor = output[0] if isinstance(output, tuple) else output
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    layer.activation = float(tensor.detach().float().std())

        return hook

    def _watch_activation(self, module: nn.Module, _args: object, output: Tensor) -> None:
        """A unit that is zero for every example (and every pixel) of a batch is dead."""
        if self._is_due(module) and self._latest is not None and output.dim() > 1:
            units = output.detach().transpose(0, 1).flatten(1)
            self._latest.dead = float((units.amax(dim=1) <= 0).float().mean())

    def after_step(self, step: int, _micro_batches: list[Batch]) -> dict[str, float]:
        """Every `every` steps: norms by layer, for the metrics log."""
        self._step = step
        if step % self.every:
            return {}
        values: dict[str, float] = {}
        row: dict[str, dict[str, float]] = {}
        for layer in self.layers:
            gradient = layer.weight.grad
            size = float(layer.weight.detach().norm()) or 1.0
            norm = float(gradient.norm()) if gradient is not None else 0.0
            row[layer.name] = {
                "gradient_norm": norm,
                "relative_gradient": norm / size,
                "dead_share": layer.dead,
                "activation_std": layer.activation,
            }
            values[f"gradient/{layer.name}"] = norm
            values[f"activation/{layer.name}"] = layer.activation
        self.history.append(row)
        return {name: value for name, value in values.items() if value == value}

    def report(self) -> dict:
        """The verdict over the run: {"verdict", "reason", "cure", "layers": {name: means}}."""
        if not self.history or len(self.layers) < 2:
            return {"verdict": "unknown", "reason": "too few layers or steps were watched", "cure": [], "layers": {}}
        layers = {
            layer.name: {
                key: _median([row[layer.name][key] for row in self.history])
                for key in ("gradient_norm", "relative_gradient", "activation_std", "dead_share")
            }
            for layer in self.layers
        }
        verdict, reason, cure = judge(layers)
        return {"verdict": verdict, "reason": reason, "cure": cure, "layers": layers}


_CURES = {
    "exploding": ["train.clip_norm=1.0", "model.init=kaiming", "model.norm=batch", "optimizer.lr=1e-4"],
    "vanishing": ["model.activation=relu", "model.init=kaiming", "model.norm=batch", "model.skip=true"],
    "dead units": ["optimizer.lr=1e-4", "model.activation=leaky_relu", "model.norm=batch"],
    "healthy": [],
}


def judge(layers: dict[str, dict[str, float]]) -> tuple[str, str, list[str]]:
    """(verdict, reason, overrides that cure it) from each layer's medians, first layer first.

    The last layer is compared with the smallest (largest) of the layers before it.
    """
    verdict, reason = _verdict(layers)
    return verdict, reason, _CURES[verdict]


def _verdict(layers: dict[str, dict[str, float]]) -> tuple[str, str]:
    *names, last_name = layers
    last = layers[last_name]["gradient_norm"]
    norms = {name: layers[name]["gradient_norm"] for name in names}
    low, high = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    worst = max(names, key=lambda name: _known(layers[name]["dead_share"]))
    dead = _known(layers[worst]["dead_share"])
    finite = all(math.isfinite(norm) for norm in [*norms.values(), last])
    if not finite or max(last, norms[high]) > _HUGE_NORM or norms[high] > _EXPLODED * last > 0:
        return "exploding", f"the gradient of {high} has norm {norms[high]:.2g}, that of the last layer {last:.2g}"
    if dead > _DEAD_SHARE and (dead == 1 or norms[low] >= _VANISHED * last):
        return "dead units", f"{dead:.0%} of the units after {worst} are never positive"
    if norms[low] < _VANISHED * last or norms[high] == 0:
        return "vanishing", f"the gradient of {low} has norm {norms[low]:.2g}, that of the last layer {last:.2g}"
    return "healthy", f"gradient norms lie between {min(norms[low], last):.2g} and {max(norms[high], last):.2g}"


def _known(share: float) -> float:
    return share if share == share else 0.0


def _median(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return float(torch.tensor(known, dtype=torch.float64).median()) if known else math.nan
