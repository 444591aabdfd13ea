"""Any optimizer of torch.optim, by the name of its class."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

from dlrun.errors import DlrunError, did_you_mean
from dlrun.optimizers import _torch

_REFUSED = {
    "LBFGS": "it evaluates the loss several times a step (a closure), which no training loop over batches offers",
    "SparseAdam": "it needs sparse gradients, and the models here give dense ones",
}


def build(
    groups: list[dict[str, Any]],
    *,
    algorithm: str,
    lr: float = 1e-3,
    options: dict[str, Any] | None = None,
) -> Optimizer:
    """An optimizer of the installed torch: RAdam, NAdam, Adagrad, Adadelta, Adamax, RMSprop, Rprop, ASGD, Adafactor …

    Settings:
    algorithm: name of the class in torch.optim
    lr: learning rate, before the schedule's factor, at least 0
    options: further arguments of the class, e.g. {momentum: 0.9, weight_decay: 0.01}
    """
    kind = _class(algorithm)
    settings = _checked(kind, options or {})
    if algorithm == "Muon":
        _require_matrices(groups)
    return _torch.make(kind, groups, lr=lr, **settings)


def algorithms() -> dict[str, type[Optimizer]]:
    """The optimizers of the installed torch that a training loop can drive, by name."""
    found = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    return {
        name: kind
        for name, kind in found.items()
        if issubclass(kind, Optimizer) and kind is not Optimizer and name not in _REFUSED
    }


def _class(algorithm: str) -> type[Optimizer]:
    if algorithm in _REFUSED:
        raise DlrunError(f"optimizer.algorithm: {algorithm} cannot be used: {_REFUSED[algorithm]}", "optimizer=adamw")
    known = algorithms()
    if algorithm not in known:
        raise DlrunError(f"optimizer.algorithm: torch.optim has no '{algorithm}'", did_you_mean(algorithm, known))
    return known[algorithm]


def _checked(kind: type[Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """The options as the class takes them. Raises: DlrunError for one that it does not have."""
    known = set(inspect.signature(kind).parameters) - {"params", "lr"}
    for name in options:
        if name == "lr":
            raise DlrunError(
                "optimizer.options.lr: the learning rate is a setting of its own", f"optimizer.lr={options[name]}"
            )
        if name not in known:
            raise DlrunError(f"optimizer.options: {kind.__name__} has no '{name}'", did_you_mean(name, known))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _require_matrices(groups: list[dict[str, Any]]) -> None:
    """Raises: DlrunError unless every parameter is a matrix, the only shape that Muon can orthogonalise."""
    others = [parameter for parameter in _torch.parameters(groups) if parameter.dim() != 2]
    if others:
        shape = "x".join(map(str, others[0].shape))
        raise DlrunError(
            f"optimizer.algorithm: Muon takes matrices only; this model has {len(others)} parameters of another shape"
            f" (the first: {shape})",
            "optimizer=adamw",
        )
