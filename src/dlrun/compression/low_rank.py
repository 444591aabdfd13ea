"""Replace large layers by two thin ones with nearly the same product: a singular value decomposition, cut off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.compression import _layers
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError

# O outputs, I inputs (of a convolution: times the pixels of its kernel), R rank


def build(
    spec: DataSpec,
    *,
    energy: float = 0.9,
    rank: float | None = None,
    finetune: str | None = "1 epoch",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """A weight W of O x I, the sum of s_i u_i v_i^T over its singular values, keeps its R largest: W ~ B A with A of
    R x I and B of O x R. A linear layer becomes two; a convolution becomes one of R channels with the same kernel and
    one of 1x1. Only layers with fewer numbers after it than before, R (O + I) < O I, are replaced, and no head.

    Source: Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks", section 3.2; for
    convolutions in this layout Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.1.

    Settings:
    energy: share of the sum of squared singular values that is kept, in (0, 1]; 1 leaves out what is zero
    rank: share of the full rank that is kept, in (0, 1], in place of energy
    finetune: how long to train afterwards, e.g. "3 epochs"; null for not at all
    lr_scale: factor on the run's learning rate
    ignore: layers to leave alone, by name or pattern, e.g. [head, "blocks.0.*"]
    """
    _layers.require(0 < energy <= 1, "low_rank.energy", energy, "a number in (0, 1]")
    _layers.require(rank is None or 0 < rank <= 1, "low_rank.rank", rank, "a number in (0, 1], or null")
    _layers.require_training("low_rank", "finetune", finetune, lr_scale)
    return LowRank(energy, rank, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class LowRank:
    """See `build`."""

    energy: float
    rank: float | None
    finetune: str | None
    lr_scale: float
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with thin layers, and the rank of each."""
        before, names = _layers.numbers(model), _called(model, tools, factorisable(model, self.ignore))
        ranks = {}
        for name in names:
            layer = model.get_submodule(name)
            factors = decomposed(matrix(layer))
            kept = self._rank_of(factors.sizes_R)
            if saves(layer, kept):
                ranks[name] = kept
                _layers.replace(model, name, filled(layer, factors, kept))
        if ranks:
            _check(model, tools)
            if _layers.trains(self.finetune):
                assert self.finetune is not None
                model = tools.finetune(model, self.finetune, lr_scale=self.lr_scale)
        report = _layers.change(before, model) | {
            "layers": ranks,
            "left": [name for name in names if name not in ranks],
        }
        return model, {"ranks": ranks, "report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same layers in place of the large ones, empty."""
        for name, kept in plan["ranks"].items():
            _layers.replace(model, name, thin(model.get_submodule(name), kept))
        return model

    def _rank_of(self, sizes_R: Tensor) -> int:
        """How many singular values stay. sizes_R: in descending order."""
        if self.rank is not None:
            return max(1, round(self.rank * len(sizes_R)))
        energies_R = sizes_R.square().cumsum(0)
        return max(1, int((energies_R < self.energy * energies_R[-1] * (1 - 1e-12)).sum()) + 1)


@dataclass(frozen=True)
class Factors:
    """W = left diag(sizes) right, in float64: left [O, R], sizes [R] in descending order, right [R, I]."""

    left_OR: Tensor
    sizes_R: Tensor
    right_RI: Tensor


def factorisable(model: nn.Module, ignored: list | None) -> list[str]:
    """Names of the layers that could be replaced: no head, whose few outputs all matter. Raises: DlrunError for a model
    that has none."""
    tied, heads = _layers.tied(model), _layers.in_heads(model)
    found = [
        name
        for name, layer in model.named_modules()
        if (_layers.is_linear(layer) or _is_plain_convolution(layer))
        and id(layer.weight) not in tied
        and name not in heads
    ]
    names = _layers.without(found, ignored, "low_rank")
    if not names:
        raise DlrunError(
            f"low_rank: {_layers.kind(model)} has no linear or convolution layer to factorise",
            "heads, recurrent layers, embeddings and what is tied to them are not factorised",
        )
    return names


def _is_plain_convolution(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and getattr(layer, "groups", 1) == 1


def matrix(layer: Any) -> Tensor:
    """A layer's weight as [O, I]."""
    weight = layer.weight.detach()
    return weight.T if _layers.is_transposed(layer) else weight.flatten(1)


def decomposed(weight_OI: Tensor) -> Factors:
    """The singular value decomposition."""
    left_OR, sizes_R, right_RI = torch.linalg.svd(weight_OI.double(), full_matrices=False)
    return Factors(left_OR, sizes_R, right_RI)


def saves(layer: Any, rank: int) -> bool:
    """Whether two layers of this rank hold fewer numbers than the one."""
    outputs, inputs = matrix(layer).shape
    return rank * (outputs + inputs) < outputs * inputs


def thin(layer: Any, rank: int) -> nn.Sequential:
    """Two empty layers with the shapes of this one's factors, of its number format and on its device."""
    like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    has_bias = layer.bias is not None
    outputs, inputs = matrix(layer).shape
    if _layers.is_linear(layer):
        return nn.Sequential(nn.Linear(inputs, rank, False, **like), nn.Linear(rank, outputs, has_bias, **like))
    first = type(layer)(
        layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode, **like,
    )  # fmt: skip
    return nn.Sequential(first, type(layer)(rank, outputs, 1, bias=has_bias, **like))


@torch.no_grad()
def filled(layer: Any, factors: Factors, rank: int) -> nn.Sequential:
    """Two layers whose product is the layer's best approximation of this rank; each has the root of every size."""
    pair: Any = thin(layer, rank)
    roots_R = factors.sizes_R[:rank].sqrt()
    pair[0].weight.copy_((roots_R[:, None] * factors.right_RI[:rank]).view_as(pair[0].weight))
    pair[1].weight.copy_((factors.left_OR[:, :rank] * roots_R).view_as(pair[1].weight))
    if layer.bias is not None:
        pair[1].bias.copy_(layer.bias)
    return pair.train(layer.training)


def _called(model: nn.Module, tools: CompressionTools, names: list[str]) -> list[str]:
    """Those of the layers that a model calls; of others (torchvision's Swin has some) it reads the weights itself."""
    called: set[str] = set()
    hooks = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name)) for name in names]
    try:
        _layers.answer(model, tools, _layers.one_batch(tools))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in names if name in called]


def _check(model: nn.Module, tools: CompressionTools) -> None:
    """Raises: DlrunError where a model reads a layer's weight itself, so that two cannot stand in its place."""
    try:
        _layers.answer(model, tools, _layers.one_batch(tools))
    except AttributeError as error:
        raise DlrunError(
            f"low_rank: {_layers.kind(model)} reads past a layer that was factorised: {error}",
            "leave it out: compression.low_rank.ignore=[NAME]",
        ) from error
