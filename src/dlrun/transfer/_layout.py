"""Where the head of a model is, and in which order the parts of its body come; for any nn.Module."""

from __future__ import annotations

from torch import nn

from dlrun.errors import DlrunError

_HEADS = ("head", "fc", "classifier", "heads")  # the names the own models and torchvision's give the last layers


def find_head(model: nn.Module) -> str:
    """Dotted name of the layer that gives the classes: the last linear one of a module named head, fc, classifier or
    heads (SqueezeNet: the last convolution of it), else the last linear layer of the model.

    Raises: DlrunError if the model has no such layer.
    """
    for name in _HEADS:
        scope = getattr(model, name, None)
        if isinstance(scope, nn.Module):
            found = _last(scope, nn.Linear, name) or _last(scope, nn.Conv2d, name)
            if found:
                return found
    found = _last(model, nn.Linear, "")
    if not found:
        raise DlrunError(
            f"transfer: {type(model).__name__} has no linear layer that could be its head", "name its last layer 'head'"
        )
    return found


def _last(scope: nn.Module, kind: type[nn.Module], prefix: str) -> str:
    names = [name for name, module in scope.named_modules(prefix=prefix) if isinstance(module, kind)]
    return names[-1] if names else ""


def outside(module: nn.Module, head: str, prefix: str = "") -> list[str]:
    """Names that cover everything but the head, in the order of the model: whole modules where possible, and
    parameters that stand alone."""
    first, _, rest = head.partition(".")
    names = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if name != first:
            names.append(prefix + name)
        elif rest:
            names += outside(child, rest, f"{prefix}{name}.")
    return names


def body_parts(model: nn.Module, head: str) -> list[list[str]]:
    """The body from input to output; each part lists the names of what should move together.

    Containers are taken apart, and so is a module with more than half of all parameters. What holds vectors alone
    (a normalisation) or is a bare parameter joins the part before it.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    names = [name for top in outside(model, head) for name in _pieces(model, top, total)]
    parts: list[list[str]] = []
    waiting: list[str] = []
    for name in names:
        if not _has_weights(model, name):
            (parts[-1] if parts else waiting).append(name)
        else:
            parts.append([*waiting, name])
            waiting = []
    return parts or ([waiting] if waiting else [])


def _pieces(model: nn.Module, name: str, total: int) -> list[str]:
    """A module's name, or the names of its pieces; nothing for what has no parameters."""
    module = _module(model, name)
    if module is None:
        return [name]
    size = sum(parameter.numel() for parameter in module.parameters())
    children = [child for child, _ in module.named_children()]
    if not size:
        return []
    if not children or not (isinstance(module, nn.Sequential | nn.ModuleList) or 2 * size > total):
        return [name]
    own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
    return own + [piece for child in children for piece in _pieces(model, f"{name}.{child}", total)]


def _has_weights(model: nn.Module, name: str) -> bool:
    module = _module(model, name)
    return module is not None and any(parameter.dim() > 1 for parameter in module.parameters())


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """The module of this name; None where the name is a parameter's."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def inside(name: str, module: str) -> bool:
    """Whether a tensor's name lies in a module (of no name: in none)."""
    return bool(module) and (name == module or name.startswith(module + "."))
