"""What the methods share: which layers a model has, its head, its tied tensors, its size; and checks of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.durations import Duration
from dlrun.contracts import Batch, CompressionTools
from dlrun.errors import DlrunError, did_you_mean

_HEADS = ("head", "box_head", "fc", "classifier", "heads", "lm_head")
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def kind(model: nn.Module) -> str:
    """What a message calls a model: the library's name of its architecture, else its class."""
    return str(getattr(model, "architecture", type(model).__name__))


def require(condition: bool, setting: str, given: object, expected: str) -> None:
    """Raise DlrunError naming the setting ("prune_channels.macs") unless the condition holds."""
    if not condition:
        raise DlrunError(f"compression.{setting}: expected {expected}, got {given}")


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is the linear layer of the transformers library whose weight is [inputs, outputs] (GPT-2's)."""
    return type(layer).__name__ == "Conv1D" and not isinstance(layer, nn.Conv1d)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear, in torch's layout or the transformers library's; the subclass that attention of
    torch reads past (its weight is used, the layer is never called) is not."""
    return type(layer) is nn.Linear or is_transposed(layer)


def recurrent(model: nn.Module) -> list[str]:
    """Names of the recurrent layers, torch's and the cells that a loop calls."""
    layers = model.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.RNNBase) or hasattr(layer, "weight_hh")]


def in_heads(model: nn.Module) -> set[str]:
    """Names of the linear and convolution layers whose outputs are the model's: those of the modules that go by a
    head's name, else the last linear one."""
    scopes = [(name, getattr(model, name)) for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
    found = {
        names[-1]
        for scope, module in scopes
        if (names := [n for n, layer in module.named_modules(prefix=scope) if isinstance(layer, nn.Linear)])
        or (names := [n for n, layer in module.named_modules(prefix=scope) if isinstance(layer, Convolution)])
    }
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return found or set(linear[-1:])


def tied(model: nn.Module) -> set[int]:
    """ids of the parameters that go by several names."""
    seen: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def at_least_one(share: float, count: int) -> int:
    """How many of `count` a share is: none of a share of 0 alone, else a method passes for one that did something."""
    return max(1, round(share * count)) if share else 0


def without(names: Iterable[str], ignored: Sequence[Any] | None, method: str) -> list[str]:
    """The names that no pattern of the setting `ignore` fits: a layer's name, what lies in it, or with * and ?.

    Raises: DlrunError for a pattern that fits none.
    """
    names = list(names)
    left = set()
    for pattern in map(str, ignored or ()):
        found = {name for name in names if fnmatch(name, pattern) or name.startswith(pattern + ".")}
        if not found:
            raise DlrunError(
                f"compression.{method}.ignore: no layer is called '{pattern}'", did_you_mean(pattern, names)
            )
        left |= found
    return [name for name in names if name not in left]


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of this name."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def numbers(model: nn.Module) -> tuple[int, int]:
    """How many parameters a model has, each once, and how many of them are not zero."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters)


def change(before: tuple[int, int], model: nn.Module) -> dict[str, list[int]]:
    """Of a report: parameters and those that are not zero, before and after."""
    after = numbers(model)
    return {"parameters": [before[0], after[0]], "nonzero": [before[1], after[1]]}


def length(duration: str) -> Duration:
    """How long to fine-tune. Raises: DlrunError for what is no number of epochs or steps."""
    found = Duration.parse(duration)
    if found.unit in ("seconds", "percent"):
        raise DlrunError(f"fine-tuning for '{duration}': write epochs or steps", '"2 epochs"')
    return found


def trains(duration: str | None) -> bool:
    """Whether a duration is any training. Raises: DlrunError as `length`."""
    return duration is not None and length(duration).value > 0


def require_training(method: str, setting: str, duration: str | None, lr_scale: float, optional: bool = True) -> None:
    """Check the settings of a method's training before anything is done. optional: whether it may be left out."""
    is_any = trains(duration)
    require(optional or is_any, f"{method}.{setting}", duration, 'some training, e.g. "2 epochs"')
    require(lr_scale > 0, f"{method}.lr_scale", lr_scale, "a number above 0")


def one_batch(tools: CompressionTools, examples: int = 2) -> Batch:
    """A few examples to try a model on."""
    return next(iter(tools.batches("train", examples)))


def answer(model: nn.Module, tools: CompressionTools, batch: Batch) -> Any:
    """What a model says in evaluation of a batch's inputs."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(*[batch[name] for name in tools.spec.inputs])
    finally:
        model.train(was_training)


def shapes(said: Any) -> list[tuple[int, ...]]:
    """Shapes of the tensors in an answer; of sizes that depend on the answer itself (detections) the first is left."""
    if isinstance(said, Tensor):
        return [tuple(said.shape)]
    if isinstance(said, dict):
        said = list(said.values())
    return [shape for part in said for shape in shapes(part)] if isinstance(said, list | tuple) else []
