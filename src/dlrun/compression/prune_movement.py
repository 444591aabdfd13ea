"""Set to zero the weights that training moves towards zero, and keep those that it moves away (Sanh et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dlrun.compression import _layers, _masks
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError

_UPDATES = 100  # times that masks are chosen anew: to sort all scores costs as much as some steps


def build(
    spec: DataSpec,
    *,
    sparsity: float = 0.5,
    scope: Literal["global", "layer"] = "global",
    until: float = 0.75,
    finetune: str = "2 epochs",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """Each weight W of a linear or convolution layer has a score S, which trains: the layer computes with W M(S), M
    one where S is among the largest, and the gradient passes M as if it were S, so that dL/dS = dL/dW' W: a score
    grows where W moves away from zero. Suits a pretrained model that is fitted to a new task: what matters is where
    weights go, and not how large they came. The zeros alone save no time.

    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 3 (hard movement pruning);
    its schedule is the cubic one of Zhu and Gupta 2017.

    Settings:
    sparsity: share of those weights that becomes zero, in [0, 1); 0 changes nothing
    scope: what competes: the scores of all layers (global), or those of a layer
    until: share of the training in which sparsity grows, in (0, 1]
    finetune: how long to train; scores cannot be known without
    lr_scale: factor on the run's learning rate
    ignore: layers to leave alone, by name or pattern, e.g. [head, "blocks.0.*"]
    """
    _layers.require(0 <= sparsity < 1, "prune_movement.sparsity", sparsity, "a number in [0, 1)")
    _layers.require(0 < until <= 1, "prune_movement.until", until, "a number in (0, 1]")
    _layers.require_training("prune_movement", "finetune", finetune, lr_scale, optional=False)
    return PruneMovement(sparsity, scope, until, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class PruneMovement:
    """See `build`."""

    sparsity: float
    scope: str
    until: float
    finetune: str
    lr_scale: float
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with zeros, and a plan that is a report alone: no shape changes."""
        before, names = _layers.numbers(model), self._weights(model)
        if self.sparsity > 0:
            scored = {name: _score(model, name) for name in names}
            last: dict[str, Tensor] = {}

            def after_step(step: int, total: int) -> None:
                if step % max(1, total // _UPDATES) == 0 or step == total:
                    self._choose(scored, step / max(1, total))
                if step == total:
                    last.update({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

            trained = tools.finetune(model, self.finetune, lr_scale=self.lr_scale, after_step=after_step)
            assert trained is model, "fine-tuning is in place"
            if last and not self._is_done(scored):  # the best weights were of a time when more were left
                model.load_state_dict(last)
            elif not self._is_done(scored):  # it stopped early
                self._choose(scored, 1.0)
            for name in names:
                path, _, attribute = name.rpartition(".")
                parametrize.remove_parametrizations(model.get_submodule(path), attribute, leave_parametrized=True)
        weights = {name: model.get_parameter(name) for name in names}
        return model, {"sparsity": self.sparsity, "report": _masks.report(before, model, weights)}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The model itself."""
        return model

    def _weights(self, model: nn.Module) -> list[str]:
        """Names of the weights to score. Raises: DlrunError where most of a model's lie elsewhere."""
        weights = _masks.prunable(model, None, "prune_movement")
        layers = nn.Linear | _layers.Convolution
        fitting = []
        for name in weights:
            layer = model.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, layers) or _layers.is_transposed(layer):
                fitting.append(name)
        if 2 * sum(weights[name].numel() for name in fitting) < sum(weight.numel() for weight in weights.values()):
            raise DlrunError(
                f"prune_movement: most weights of {_layers.kind(model)} are recurrent; scores need linear layers or"
                " convolutions",
                "compression=prune_magnitude",
            )
        return _layers.without(fitting, self.ignore, "prune_movement")

    def _choose(self, scored: Mapping[str, _Scores], position: float) -> None:
        sparsity = self.sparsity * _masks.cubic(position / self.until)
        scores = {name: layer.scores.detach() for name, layer in scored.items()}
        for name, mask in _masks.largest(scores, sparsity, over_all=self.scope == "global").items():
            scored[name].mask.copy_(mask)

    def _is_done(self, scored: Mapping[str, _Scores]) -> bool:
        """Whether as many weights are masked as shall be (but for ties)."""
        masks = [layer.mask for layer in scored.values()]
        left = sum(int(mask.count_nonzero()) for mask in masks)
        return left <= (1 - self.sparsity) * sum(mask.numel() for mask in masks) + len(masks)


class _Scores(nn.Module):
    """torch's parametrization of a weight: its scores, and the mask that was last chosen by them."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return _Masked.apply(weight, self.scores, self.mask)


class _Masked(torch.autograd.Function):
    """W M, whose gradient reaches S as if M were S (a straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradients[0] * mask, gradients[0] * weight, None


def _score(model: nn.Module, name: str) -> _Scores:
    """Give a weight scores, in place."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    scores = _Scores(model.get_parameter(name).detach())
    parametrize.register_parametrization(layer, attribute, scores)
    return scores
