"""Gradient health: per-layer norms of gradients and activations, the share of dead units, a verdict and its cure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrun.contracts import Batch

_WATCHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LSTM, nn.GRU, nn.RNN)
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
        for name, module in model.named_modules():
            weight = next(iter(module.parameters(recurse=False)), None)
            if isinstance(module, _WATCHED) and weight is not None and weight.requires_grad:
                layer = _Layer(name or "model", weight)
                self.layers.append(layer)
                module.register_forward_hook(self._watch(layer))

    def _watch(self, layer: _Layer):
        def hook(module: nn.Module, _args: object, output: object) -> None:
            if not module.training or (self._step + 1) % self.every:
                return
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                found = tensor.detach().float()
                layer.activation = float(found.std())
                # A unit whose pre-activation is never positive is dead behind a ReLU.
                units = found.transpose(0, 1).flatten(1) if found.dim() > 1 else found.unsqueeze(0)
                layer.dead = float((units.amax(dim=1) <= 0).float().mean())

        return hook

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


def judge(layers: dict[str, dict[str, float]]) -> tuple[str, str, list[str]]:
    """(verdict, reason, overrides that cure it) from each layer's medians, first layer first.

    The last layer is compared with the smallest (largest) of the layers before it.
    """
    names = list(layers)
    last = layers[names[-1]]["gradient_norm"]
    before = {name: layers[name]["gradient_norm"] for name in names[:-1]}
    low, high = min(before, key=before.__getitem__), max(before, key=before.__getitem__)
    if (
        any(not math.isfinite(value) for value in before.values())
        or max(last, before[high]) > _HUGE_NORM
        or (last > 0 and before[high] / last > _EXPLODED)
    ):
        return (
            "exploding",
            f"the gradient of {high} has norm {before[high]:.2g}, that of the last layer {last:.2g}",
            ["train.clip_norm=1.0", "model.init=kaiming", "model.norm=batch", "optimizer.lr=1e-4"],
        )
    if last > 0 and before[low] / last < _VANISHED:
        return (
            "vanishing",
            f"the gradient of {low} has norm {before[low]:.2g}, that of the last layer {last:.2g}",
            ["model.activation=relu", "model.init=kaiming", "model.norm=batch", "model.skip=true"],
        )
    dead = {name: layers[name]["dead_share"] for name in names[:-1] if layers[name]["dead_share"] > _DEAD_SHARE}
    if dead:
        worst = max(dead, key=dead.__getitem__)
        return (
            "dead units",
            f"{dead[worst]:.0%} of the units of {worst} are never positive",
            ["optimizer.lr=1e-4", "model.activation=leaky_relu", "model.norm=batch"],
        )
    return "healthy", f"gradient norms lie between {min(before[low], last):.2g} and {max(before[high], last):.2g}", []


def _median(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return float(torch.tensor(known, dtype=torch.float64).median()) if known else math.nan
