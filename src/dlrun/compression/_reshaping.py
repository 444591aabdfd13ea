"""The shapes of a model's tensors and the sizes its modules know, as JSON: what changed, and how to change it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn


class Sizes(NamedTuple):
    """Of a model: the shape of every tensor by name, and of every module its attributes that are integers."""

    tensors: dict[str, list[int]]
    modules: dict[str, dict[str, Any]]


def sizes(model: nn.Module) -> Sizes:
    """As they are now."""
    tensors = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return Sizes(tensors, {name: _integers(module) for name, module in model.named_modules()})


def _integers(module: nn.Module) -> dict[str, Any]:
    known = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: _plain(value) for name, value in known.items() if _is_integral(value)}


def _is_integral(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_is_integral, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def difference(before: Sizes, after: Sizes) -> dict[str, Any]:
    """What of a model of the first sizes must change to get the second."""
    return {
        "tensors": {name: shape for name, shape in after.tensors.items() if before.tensors[name] != shape},
        "modules": {
            name: changed
            for name, known in after.modules.items()
            if (changed := {key: value for key, value in known.items() if before.modules[name].get(key) != value})
        },
    }


def reshape(model: nn.Module, change: Mapping[str, Any]) -> nn.Module:
    """Apply a difference in place; changed tensors are empty, ties stay."""
    for name, known in change["modules"].items():
        module = model.get_submodule(name)
        for key, value in known.items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
    made: dict[int, nn.Parameter] = {}
    for name, shape in change["tensors"].items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        old = module._parameters[key] if key in module._parameters else module._buffers[key]
        assert old is not None
        empty = torch.zeros(shape, dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            fresh = made.setdefault(id(old), nn.Parameter(empty, requires_grad=old.requires_grad))
            module._parameters[key] = fresh
        else:
            module._buffers[key] = empty
    return model
