"""Which weights of a model may be set to zero, and which of them are: masks by size, over all, by layer, or N:M."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.compression import _codebooks, _layers
from dlrun.errors import DlrunError

# O outputs, I inputs, N numbers of a weight

Masks = dict[str, Tensor]  # of each weight, bool: what stays
_SPARED = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
NO_FASTER = "zeros are stored and multiplied like any other number: they alone save neither time nor memory"


def prunable(model: nn.Module, ignored: Sequence[Any] | None, method: str) -> dict[str, nn.Parameter]:
    """The weights of linear, convolution and recurrent layers by name; no bias, norm or embedding, nor what is tied to
    one. Raises: DlrunError for a model that has none."""
    tied = _layers.tied(model)
    found = {
        f"{path}.{name}" if path else name: parameter
        for path, layer in model.named_modules()
        if not isinstance(layer, _SPARED)
        for name, parameter in layer.named_parameters(recurse=False)
        if "weight" in name and parameter.dim() > 1 and id(parameter) not in tied
    }
    kept = _layers.without(found, ignored, method)
    if not kept:
        raise DlrunError(
            f"{method}: {_layers.kind(model)} has no weight of a linear, convolution or recurrent layer to prune",
            "biases, norms, embeddings and what is tied to them are spared",
        )
    return {name: found[name] for name in kept}


def cubic(position: float) -> float:
    """Share of the final sparsity at a position in [0, 1]: fast at first, while there is much that is not needed.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", eq. 1, from an initial sparsity of 0.
    """
    return 1.0 - (1.0 - min(1.0, position)) ** 3


def largest(scores: Mapping[str, Tensor], sparsity: float, *, over_all: bool) -> Masks:
    """What stays where the share `sparsity` with the smallest scores goes: of all together, or of each alone."""
    if not over_all:
        return {name: score > _threshold(score.flatten(), sparsity) for name, score in scores.items()}
    threshold = _threshold(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    return {name: score > threshold for name, score in scores.items()}


def _threshold(scores_N: Tensor, sparsity: float) -> Tensor:
    """The largest score that goes; minus infinity where none does."""
    gone = round(sparsity * scores_N.numel())
    return scores_N.kthvalue(gone).values if gone else scores_N.new_tensor(float("-inf"))


def n_of_m(weights: Mapping[str, nn.Parameter], n: int, m: int, transposed: set[str]) -> Masks:
    """Of every m weights that follow each other along the inputs, the n largest stay. Weights whose inputs are no
    multiple of m are left out.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.
    """
    masks = {}
    for name, weight in weights.items():
        inputs = 0 if name in transposed else 1
        if weight.shape[inputs] % m:
            continue
        by_input = weight.detach().abs().transpose(inputs, -1)
        groups = by_input.unflatten(-1, (-1, m))
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(n, dim=-1).indices, True)
        masks[name] = kept.flatten(-2).transpose(inputs, -1)
    return masks


@torch.no_grad()
def put_back(weights: Mapping[str, nn.Parameter], masks: Masks) -> None:
    """Exact zeros where a mask says so."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


def keep_zeros(model: nn.Module) -> Callable[[], None]:
    """A call that puts back the zeros that the matrices of a model have now, and those of codebooks."""
    held = [weight for weight in model.parameters() if weight.dim() > 1]
    held += [book.values for book in model.modules() if isinstance(book, _codebooks.Book)]
    zeros = [(weight, weight.detach() == 0) for weight in held if (weight.detach() == 0).any()]

    @torch.no_grad()
    def put() -> None:
        for weight, is_zero in zeros:
            weight.masked_fill_(is_zero, 0.0)

    return put


def hold(weights: Mapping[str, nn.Parameter], masks: Masks) -> bool:
    """Whether every weight that a mask takes is zero."""
    return bool(masks) and all(not weights[name].detach()[~mask].count_nonzero() for name, mask in masks.items())


def report(before: tuple[int, int], model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a plan says of zeros: numbers before and after, and the share of zeros of each layer."""
    zeros = {name: weight.numel() - int(weight.count_nonzero()) for name, weight in weights.items()}
    return _layers.change(before, model) | {
        "sparsity": sum(zeros.values()) / sum(weight.numel() for weight in weights.values()),
        "layers": {name: zeros[name] / weight.numel() for name, weight in weights.items()},
        "note": NO_FASTER,
    }
