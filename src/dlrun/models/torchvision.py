"""Any classification architecture of torchvision, by its name, untrained."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean
from dlrun.models import _layers


def build(spec: DataSpec, *, architecture: str, options: dict[str, Any] | None = None) -> nn.Module:
    """A model of torchvision's registry, with the head and the first convolution made to fit the data.

    Weights are not loaded here: transfer=finetune transfer.from=torchvision:NAME does that.

    Settings:
    architecture: name in torchvision.models, e.g. resnet18, vgg16_bn, efficientnet_b0
    options: further arguments of the architecture, e.g. {dropout: 0.2}
    """
    shape = _layers.image_shape(spec, architecture)
    maker = _maker(architecture)
    settings = _settings(maker, architecture, options or {}, shape)
    try:
        model = maker(weights=None, progress=False, num_classes=spec.num_outputs, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise _unfit(architecture, options, shape, error) from error
    _layers.fit_channels(model, shape[0])
    _require_size(model, architecture, options, shape)
    return model


def _maker(architecture: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        raise DlrunError(f"model.architecture: torchvision has no '{architecture}'", did_you_mean(architecture, known))
    return models.get_model_builder(architecture)


def _settings(
    maker: Callable[..., nn.Module], architecture: str, options: dict[str, Any], shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The options, checked against the architecture, and what it must be told of the data."""
    arguments = inspect.signature(typing.get_type_hints(maker)["return"]).parameters
    known = _known_options(maker, arguments)
    if "weights" in options:
        raise DlrunError(
            "model.options.weights: weights come through transfer",
            f"transfer=finetune transfer.from=torchvision:{architecture}",
        )
    for name in options:
        if name not in known:
            raise DlrunError(f"model.options: {architecture} has no '{name}'", did_you_mean(name, known))
    facts: dict[str, Any] = {}
    if "aux_logits" in arguments:  # GoogLeNet and Inception: further heads that only their own loss would train
        facts = {"aux_logits": False, "init_weights": True}
    if "image_size" in arguments:  # vision transformers count their positions in advance
        facts["image_size"] = shape[1]
    if "input_size" in arguments:
        facts["input_size"] = shape[1:]
    return facts | {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _known_options(maker: Callable[..., nn.Module], arguments: Mapping[str, inspect.Parameter]) -> set[str]:
    """Names that a config can give: the arguments of the class that the maker leaves open; no functions."""
    optional = [
        argument.name
        for argument in arguments.values()
        if argument.default is not inspect.Parameter.empty and "Callable" not in str(argument.annotation)
    ]
    set_here = {"weights", "progress", "num_classes", "kwargs", "aux_logits"}
    return {*inspect.signature(maker).parameters, *optional} - set_here


def _require_size(
    model: nn.Module, architecture: str, options: dict[str, Any] | None, shape: tuple[int, int, int]
) -> None:
    """Raises: DlrunError unless an image of this shape gets through (asked of shapes alone: nothing is computed)."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(model, shapes, torch.empty(1, *shape, device="meta"))
    except (RuntimeError, AssertionError) as error:
        raise _unfit(architecture, options, shape, error) from error
    finally:
        model.train(training)


def _unfit(
    architecture: str, options: dict[str, Any] | None, shape: tuple[int, int, int], error: Exception
) -> DlrunError:
    """The user's view of an architecture that cannot be made with these options, or for images of this size."""
    from torchvision import models

    published = models.get_model_weights(architecture)["DEFAULT"]
    least_height, least_width = published.meta["min_size"]
    usual = published.transforms.keywords["crop_size"]
    _, height, width = shape
    if not options and (height < least_height or width < least_width) and isinstance(error, RuntimeError):
        problem = f"needs images of at least {least_height}x{least_width}; the data has {height}x{width}"
    else:
        given = f"with {', '.join(f'{name}={value}' for name, value in options.items())} " if options else ""
        problem = f"{given}does not work on images of {height}x{width}: {str(error).splitlines()[0]}"
    hint = f"data.image_size={usual}" + (", or leave out model.options" if options else "")
    return DlrunError(f"model: {architecture} {problem}", hint)
