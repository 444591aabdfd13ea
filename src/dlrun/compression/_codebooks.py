"""A weight as a codebook of a few values and the number of each weight's value, packed into bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# N weights, K values of a codebook

_PRUNED = 0.05  # share of exact zeros from which zero is a value of its own


@torch.no_grad()
def clustered(weight: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """(values [K] in ascending order, uint8 index of each weight's value in the weight's shape), K at most `clusters`.

    Lloyd's k-means in one dimension. It starts from the distinct values where they are few; else from values that are
    spread evenly (Han et al. 2016, section 3.2) and again from quantiles, and the smaller error wins. Zero is a value
    of its own where a share of the weights was pruned.
    """
    flat_N = weight.flatten().double()
    distinct = flat_N.unique()
    if len(distinct) <= clusters:
        values_K = distinct
    else:
        pruned = flat_N == 0
        has_zero = float(pruned.double().mean()) >= _PRUNED
        rest_N = flat_N[~pruned] if has_zero else flat_N
        values_K = _best_values(rest_N.sort().values, clusters - has_zero, iterations)
        if has_zero:
            values_K = torch.cat([values_K[values_K != 0], values_K.new_zeros(1)]).sort().values
    values_K = values_K.to(weight.dtype)
    middles = (values_K[1:].double() + values_K[:-1].double()) / 2
    return values_K, torch.bucketize(flat_N, middles).to(torch.uint8).view(weight.shape)


def _best_values(sorted_N: Tensor, clusters: int, iterations: int) -> Tensor:
    """The better of two results of k-means, which finds the nearest minimum only."""
    even_K = torch.linspace(float(sorted_N[0]), float(sorted_N[-1]), clusters, dtype=torch.float64).to(sorted_N)
    places_K = (torch.arange(clusters, device=sorted_N.device) + 0.5) * (len(sorted_N) / clusters)
    found = [_k_means(sorted_N, start_K, iterations) for start_K in (even_K, sorted_N[places_K.long()])]
    return min(found, key=lambda values_K: _error(sorted_N, values_K))


def _error(weights_N: Tensor, values_K: Tensor) -> float:
    nearest_N = values_K[torch.bucketize(weights_N, (values_K[1:] + values_K[:-1]) / 2)]
    return float((weights_N - nearest_N).square().sum())


def _k_means(sorted_N: Tensor, values_K: Tensor, iterations: int) -> Tensor:
    """Values [K] in ascending order, from such a start. What belongs to a value is a stretch of the sorted weights,
    whose mean two sums up to its ends give. A value that nothing belongs to stays where it is."""
    sums = torch.cat([sorted_N.new_zeros(1), sorted_N.cumsum(0)])
    for _ in range(iterations):
        inner = torch.searchsorted(sorted_N, (values_K[1:] + values_K[:-1]) / 2)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(sorted_N)])])
        counts_K = ends.diff()
        means_K = sums[ends].diff() / counts_K.clamp(min=1)
        moved_K = torch.where(counts_K > 0, means_K, values_K)
        if torch.equal(moved_K, values_K):
            break
        values_K = moved_K
    return values_K


# ---------------------------------------------------------------- packing


def bits(size: int) -> int:
    """Bits of an index into so many values: 1, 2, 4 or 8."""
    return next(width for width in (1, 2, 4, 8) if size <= 2**width)


def packed(indices: Tensor, width: int) -> Tensor:
    """uint8 indices as bytes that hold 8 / width of them, the first in the lowest bits."""
    each = 8 // width
    flat_N = nn.functional.pad(indices.flatten(), (0, -indices.numel() % each))
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=indices.device)
    return (flat_N.view(-1, each) << shifts).sum(1, dtype=torch.uint8)


def unpacked(bytes_: Tensor, width: int, count: int) -> Tensor:
    """The inverse of `packed`: int32 [count]."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=bytes_.device)
    return ((bytes_[:, None] >> shifts) & (2**width - 1)).flatten()[:count].int()


# ---------------------------------------------------------------- a layer with a codebook


class Book(nn.Module):
    """Gives a weight from its packed indices (torch's parametrization). Written out once while nothing changes."""

    def __init__(self, values_K: Tensor, indices: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values_K)
        self.shape, self.count, self.width = indices.shape, indices.numel(), bits(len(values_K))
        self._start = packed(indices, self.width)
        self._written: tuple[tuple, Tensor] | None = None

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """What is stored in place of the weight; asked once, when a layer gets its codebook."""
        return (self._start,)

    def forward(self, bytes_: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.values.requires_grad
        if learns or torch.compiler.is_compiling():
            return self._write(bytes_)
        state = tuple((tensor.data_ptr(), tensor._version, tensor.device) for tensor in (bytes_, self.values))
        if self._written is None or self._written[0] != state:
            self._written = state, self._write(bytes_).detach()
        return self._written[1]

    def indices(self, bytes_: Tensor) -> Tensor:
        """int32, in the weight's shape."""
        return unpacked(bytes_, self.width, self.count).view(self.shape)

    def _write(self, bytes_: Tensor) -> Tensor:
        return self.values.index_select(0, unpacked(bytes_, self.width, self.count)).view(self.shape)


def share(model: nn.Module, name: str, values_K: Tensor, indices: Tensor) -> Book:
    """Give the weight of this name a codebook, in place. The file then holds `….original0`, bytes, and `….0.values`."""
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    weight = layer._parameters.pop(attribute)
    assert weight is not None
    layer.register_buffer(attribute, weight.detach())  # what stands for a parameter would have to be floating point
    book = Book(values_K.to(weight.dtype), indices)
    parametrize.register_parametrization(layer, attribute, book)
    if isinstance(layer, nn.RNNBase) and not layer._forward_pre_hooks:
        layer.register_forward_pre_hook(_gather)
        layer.register_forward_hook(_let_go)
    return book


def of(model: nn.Module, name: str) -> Book:
    """The codebook of the weight of this name."""
    path, _, attribute = name.rpartition(".")
    layer: Any = model.get_submodule(path)
    return layer.parametrizations[attribute][0]


def _gather(layer: Any, _: Any) -> None:
    """A recurrent layer runs on a list of its weights, which it made at the start."""
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _let_go(layer: Any, _: Any, __: Any) -> None:
    """Weights that hang on a graph could not be copied."""
    layer._flat_weights = [weight.detach() for weight in layer._flat_weights]
