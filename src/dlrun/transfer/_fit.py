"""Load given tensors into a model: by name and shape, with a fresh head where the classes differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dlrun.contracts import FromLibrary, Transferred, Weights
from dlrun.errors import DlrunError, nearest
from dlrun.transfer import _layout

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, and trainers around a model

_CLASSIFIER_SCOPES = ("", "features.")  # where a library's classifier keeps what others use as a backbone


def fit(model: nn.Module, weights: Weights, labels: tuple[str, ...], replace_head: bool | None) -> Transferred:
    """Copy into the model, in place, every tensor of the weights that fits.

    labels: the classes of the new task. replace_head: whether the head keeps its fresh start; None: where the
    weights are known to be of other classes, or its shape differs.
    Names lose the prefixes that wrappers add, and a library's become the model's. Where nothing fits so, the weights
    may be of a part: a classifier's, for the backbone of a detector. Images with another number of channels: the first
    convolution's weights are summed over their input channels and shared out evenly.
    Returns loaded, missing (of the model, the fresh head included) and unexpected (of the weights, unused); `head`
    names the head if it stays fresh, `body` the part. Raises: DlrunError if nothing fits, or the weights are of another
    architecture.
    """
    _check_architecture(model, weights)
    target = model.state_dict()
    plain, body = _placed(_plain_names(model, weights.tensors, target), model, target)
    given = _with_ties(plain, target)
    head = _layout.find_head(model)
    fresh = head if _starts_fresh(head, target, given, weights.labels, labels, replace_head) else ""
    first = _first_convolution(model)
    result = Transferred(model, head=fresh, body=body)
    for name, tensor in target.items():
        fitted = None if _layout.inside(name, fresh) else _fitted(given.get(name), tensor, name == first)
        if fitted is None:
            result.missing.append(name)
        else:
            with torch.no_grad():
                tensor.copy_(fitted)
            result.loaded.append(name)
    result.unexpected = sorted(given.keys() - set(result.loaded))
    if not result.loaded:
        raise _nothing_fits(weights, given, target, fresh)
    return result


def _check_architecture(model: nn.Module, weights: Weights) -> None:
    """Many architectures of one library name their tensors alike; most of them would load, and mean nothing."""
    if isinstance(model, FromLibrary) and weights.architecture not in ("", model.architecture):
        raise DlrunError(
            f"transfer.from: {weights.origin} holds a {weights.architecture}; the model is a {model.architecture}",
            f"model=pretrained model.path={weights.origin}",
        )


def _plain_names(model: nn.Module, tensors: Mapping[str, Tensor], known: Iterable[str]) -> dict[str, Tensor]:
    """The tensors by names of the model where taking wrappers' prefixes off, or asking the model, leads to one."""
    known = set(known)
    plain = {_plain_name(name, known): tensor for name, tensor in tensors.items()}
    if not isinstance(model, FromLibrary):
        return plain
    own = model.own_names([name for name in plain if name not in known])
    return {own.get(name, name): tensor for name, tensor in plain.items()}


def _placed(given: dict[str, Tensor], model: nn.Module, target: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors by names of the model, and the part of it that they are of, if they are of one.

    They are of a part if none fits the whole, and most of them fit under the name of one of its modules.
    """
    shapes = {name: tensor.shape for name, tensor in target.items()}
    if any(shapes.get(name) == tensor.shape for name, tensor in given.items()):
        return given, ""
    found: tuple[list[str], dict[str, Tensor], str] = [], given, ""
    for scope in _CLASSIFIER_SCOPES:
        bare = {name.removeprefix(scope): tensor for name, tensor in given.items()}
        for part, _ in model.named_modules():
            fitting = [name for name, tensor in bare.items() if shapes.get(f"{part}.{name}") == tensor.shape]
            if len(fitting) > len(found[0]):
                found = fitting, {f"{part}.{name}": tensor for name, tensor in bare.items()}, part
    return found[1:] if 2 * len(found[0]) > len(given) else (given, "")


def _with_ties(given: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, where a tensor that goes by several names in the model is given by all of them or none."""
    places = {name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in target.items()}
    found = {places[name]: given[name] for name in target if name in given and places[name][0]}
    return {name: found[place] for name, place in places.items() if place in found} | given


def _plain_name(name: str, known: set[str]) -> str:
    plain = name
    while plain not in known:
        wrapper = next((wrapper for wrapper in _WRAPPERS if plain.startswith(wrapper)), None)
        if wrapper is None:
            return plain
        plain = plain.removeprefix(wrapper)
    return plain


def _starts_fresh(
    head: str,
    target: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    old_labels: tuple[str, ...],
    labels: tuple[str, ...],
    replace_head: bool | None,
) -> bool:
    names = [name for name in target if _layout.inside(name, head)]
    fits = all(name in given and given[name].shape == target[name].shape for name in names)
    if replace_head is False and not fits:
        raise DlrunError(
            f"transfer.replace_head: the head '{head}' of the weights does not fit {len(labels) or 'the'} classes",
            "transfer.replace_head=null",
        )
    if replace_head is not None:
        return replace_head
    return not fits or bool(old_labels and labels and old_labels != labels)


def _first_convolution(model: nn.Module) -> str:
    """Name of the weight that meets the input channels; empty where there is none."""
    names = (f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d))
    return next(names, "")


def _fitted(given: Tensor | None, target: Tensor, meets_channels: bool) -> Tensor | None:
    """The tensor to copy, or None."""
    if given is None or given.shape == target.shape:
        return given
    same_but_channels = (
        given.dim() == target.dim() and given.shape[:1] + given.shape[2:] == target.shape[:1] + target.shape[2:]
    )
    if meets_channels and target.dim() > 2 and same_but_channels:
        return (given.sum(1, keepdim=True) / target.shape[1]).expand_as(target)
    return None


def _nothing_fits(
    weights: Weights, given: Mapping[str, Tensor], target: Mapping[str, Tensor], fresh: str
) -> DlrunError:
    counts = f"none of the {len(given)} tensors of {weights.origin} fits one of the model's {len(target)}"
    examples = f"the weights have e.g. {_examples(given)}; the model has e.g. {_examples(target)}"
    if fresh and all(_layout.inside(name, fresh) for name in target):
        examples = f"the model is nothing but a head ('{fresh}'), which starts anew"
    close = [(name, nearest(name, target)) for name in list(given)[:20]]
    hints = [f"{name} is nearest to {other}" for name, other in close if other]
    return DlrunError(
        f"transfer.from: {counts}: {examples}", hints[0] if hints else "use the model they were made with"
    )


def _examples(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(
        f"{name} {'x'.join(map(str, tensor.shape))}".rstrip() for name, tensor in list(tensors.items())[:3]
    )
