"""Several networks of one architecture in one module, trained side by side: what `model.copies` makes."""

# B batch, M copies, K outputs

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dlrun.contracts import Batch, DataSpec, Exportable, Loss, Metric, Outputs, Row, Task
from dlrun.errors import DlrunError

Kind = Literal["classes", "labels", "numbers"]
_KINDS: dict[str, Kind] = {"targets": "numbers", "labels": "labels", "classes": "classes"}  # by the data's sizes


def kind_of(spec: DataSpec) -> Kind:
    """What a model of such data says. Raises: DlrunError where it is no row of numbers an example."""
    found: list[Kind] = [kind for size, kind in _KINDS.items() if size in spec.sizes]
    if not found:
        raise DlrunError(
            "model.members and model.copies are for classes, labels and numbers of a whole example",
            "train several runs, and then: dlrun ensemble RUN RUN …",
        )
    return found[0]


def mean_of(said_BMK: Tensor, kind: Kind) -> Tensor:
    """What several models say together, [B, K]: the mean of numbers, or the logits of the mean of probabilities."""
    if kind == "numbers":
        return said_BMK.mean(1)
    if kind == "classes":
        return said_BMK.log_softmax(2).logsumexp(1) - math.log(said_BMK.shape[1])
    return said_BMK.sigmoid().mean(1).logit(eps=1e-7)


class Copies(nn.Module):
    """Independent networks of one architecture. `model` is one of them whose tensors have a first dimension M.

    While it trains, the rows of a batch are those of the first copy, then of the second, and so on (`EachCopy` lays
    them out so), and every copy gets the gradient that it would get alone. Asked, each copy sees every row, and the
    mean is said. All of them are computed at once by torch.func.vmap.
    """

    def __init__(self, models: Sequence[nn.Module], kind: Kind) -> None:
        super().__init__()
        self.members = len(models)
        self.kind: Kind = kind
        every = [dict(model.named_parameters()) | dict(model.named_buffers()) for model in models]
        self.model = _with_tensors(models[0], lambda name, _: torch.stack([each[name].detach() for each in every]))

    def forward(self, *inputs: Tensor) -> Tensor:
        """In training [M * B, …] to [M * B, K], else [B, …] to [B, K]."""
        if not self.training:
            return mean_of(self._together(inputs, None).transpose(0, 1), self.kind)
        own = [field.unflatten(0, (self.members, -1)) for field in inputs]
        return _Magnified.apply(self._together(own, 0).flatten(0, 1), self.members)

    def _together(self, inputs: Sequence[Tensor], rows_at: int | None) -> Tensor:
        """[M, B, K]. rows_at: where the inputs have the dimension of copies; None: each copy sees all of them."""

        def one(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
            return functional_call(self.model, (dict(parameters), dict(buffers)), tuple(given))

        tensors = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        try:
            return vmap(one, in_dims=(0, 0, rows_at), randomness="different")(*tensors, list(inputs))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise DlrunError(
                f"the copies of this model cannot be computed at once ({reason})",
                "train them one after the other: model.copies=1, or ensemble=deep",
            ) from error

    def exportable(self) -> nn.Module:
        """The copies as models side by side, whose graph is that of each and their mean."""
        return Mean([self.member(index) for index in range(self.members)], self.kind)

    def member(self, index: int) -> nn.Module:
        """One copy as a model by itself."""
        return _with_tensors(self.model, lambda _, tensor: tensor[index].detach().clone())


class Mean(nn.Module):
    """What several models say together. Each has its `exportable` form where it has one."""

    def __init__(self, models: Sequence[nn.Module], kind: Kind) -> None:
        super().__init__()
        forms = [model.exportable() if isinstance(model, Exportable) else model for model in models]
        self.models = nn.ModuleList(forms)
        self.kind: Kind = kind

    def forward(self, *inputs: Tensor) -> Tensor:
        """[B, …] to [B, K]."""
        return mean_of(torch.stack([model(*inputs) for model in self.models], 1), self.kind)


def _with_tensors(model: nn.Module, new: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """The same modules with other tensors: new(name, tensor) for each parameter and buffer; tied ones stay tied."""
    model = deepcopy(model)
    made: dict[int, Any] = {}
    for path, module in list(model.named_modules()):
        for held in (module._parameters, module._buffers):
            for leaf, tensor in list(held.items()):
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fresh = new(f"{path}.{leaf}" if path else leaf, tensor)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                held[leaf] = made[id(tensor)]
    return model


class _Magnified(torch.autograd.Function):
    """The identity, whose gradient is so many times as large: it undoes the mean over copies of `EachCopy`."""

    @staticmethod
    def forward(ctx: Any, said: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return said.view_as(said)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class EachCopy:
    """A task whose batch is shown to every copy of the model; its loss is the mean over them."""

    def __init__(self, task: Task, copies: int) -> None:
        self.task, self.copies = task, copies
        self.goal, self.additive = task.goal, task.additive

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def count(self, batch: Batch) -> int:
        return self.task.count(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """As the task's, of the batch repeated for each copy."""
        repeated = {name: field.repeat(self.copies, *[1] * (field.dim() - 1)) for name, field in batch.items()}
        total, count = self.task.loss(model, repeated)
        return Loss(total / self.copies, count // self.copies)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        return self.task.outputs(model, batch)

    def metrics(self) -> list[Metric]:
        return self.task.metrics()

    def rows(self, outputs: Outputs) -> list[Row]:
        return self.task.rows(outputs)
