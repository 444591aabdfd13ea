"""Where the blocks and heads of a transformer are, own or a library's, and how to take some out."""

# H heads, D width of a head

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dlrun.contracts import CompressionTools


def value(model: nn.Module, tools: CompressionTools) -> float:
    """The goal's metric on validation; more is better, whatever the goal."""
    goal, found = tools.task.goal, tools.score(model)[tools.task.goal.metric]
    return found if goal.mode == "max" else -found


# ---------------------------------------------------------------- blocks


def stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Lists of two or more blocks of one kind, each with attention, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            blocks = list(module)
            if len({type(block) for block in blocks}) == 1 and any(map(_is_attention, blocks[0].modules())):
                found[name] = blocks
    return found


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def keep_blocks(model: nn.Module, name: str, blocks: Sequence[nn.Module], kept: Sequence[int]) -> None:
    """Let a stack consist of some of these blocks, in place."""
    container = model.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    chosen = [blocks[index] for index in kept]
    if isinstance(container, nn.Sequential):
        setattr(owner, attribute, nn.Sequential(OrderedDict((str(place), block) for place, block in enumerate(chosen))))
    else:
        setattr(owner, attribute, nn.ModuleList(chosen))
    for place, block in enumerate(chosen):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):  # where a library's block has its cache
                setattr(module, "layer_idx", place)  # noqa: B010  a module's attributes have no types


def count_blocks(model: nn.Module, name: str, kept: Sequence[int], before: int) -> None:
    """Tell a library's config how many blocks are left, where it counts them."""
    config: Any = getattr(model.get_submodule(name.rpartition(".")[0]), "config", None)
    if config is None or getattr(config, "num_hidden_layers", None) != before:
        return
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and len(types) == before:
        config.layer_types = [types[index] for index in kept]
    config.num_hidden_layers = len(kept)


# ---------------------------------------------------------------- heads


class Attention(NamedTuple):
    """A layer of attention with H heads of width D.

    inputs: linear layers by name, and how often H x D outputs follow each other in them.   out: the one after it.
    counts: attributes of the module that are H.   widths: those that are H x D.
    """

    path: str
    heads: int
    width: int
    inputs: dict[str, int]
    out: str
    counts: tuple[str, ...]
    widths: tuple[str, ...] = ()


_OWN = ({"qkv": 3}, {"q": 1, "kv": 2})
_LIBRARYS = (  # projections, the layer after them beside the module ("self" of BERT has it in its parent)
    (("query", "key", "value"), "^output.dense"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
)


def attentions(model: nn.Module) -> list[list[Attention]]:
    """The layers of attention whose heads can go; those of one list lose the same ones (a decoder's block of the own
    transformer makes its caches from one another)."""
    groups: dict[str, list[Attention]] = {}
    for path, module in model.named_modules():
        found = _own(path, module) or _librarys(model, path, module)
        if found is not None:
            own_block = path.rpartition(".")[0] if hasattr(module, "heads") else path
            groups.setdefault(own_block, []).append(found)
    return list(groups.values())


def _own(path: str, module: Any) -> Attention | None:
    for inputs in _OWN:
        if isinstance(getattr(module, "heads", None), int) and all(
            _is_linear(module, name) for name in (*inputs, "out")
        ):
            width = module.out.in_features // module.heads
            return Attention(path, module.heads, width, _under(path, inputs), f"{path}.out", ("heads",))
    return None


def _librarys(model: nn.Module, path: str, module: Any) -> Attention | None:
    width = getattr(module, "attention_head_size", None) or getattr(module, "head_dim", None)
    for names, out in _LIBRARYS:
        parent = path.rpartition(".")[0] if out.startswith("^") else path
        out_path = ".".join(filter(None, (parent, out.removeprefix("^"))))
        if not isinstance(width, int) or not all(_is_linear(module, name) for name in names):
            continue
        sizes = {getattr(module, name).out_features for name in names}
        last: Any = _found(model, out_path)
        if len(sizes) == 1 and isinstance(last, nn.Linear) and last.in_features == (size := sizes.pop()):
            counted = [n for n in ("num_attention_heads", "num_heads", "n_heads") if hasattr(module, n)]
            wide = [n for n in ("all_head_size", "dim", "embed_dim") if getattr(module, n, None) == size]
            inputs = _under(path, dict.fromkeys(names, 1))
            return Attention(path, size // width, width, inputs, out_path, tuple(counted), tuple(wide))
    return None


def _is_linear(module: nn.Module, name: str) -> bool:
    return type(getattr(module, name, None)) is nn.Linear


def _under(path: str, names: Mapping[str, int]) -> dict[str, int]:
    return {".".join(filter(None, (path, name))): copies for name, copies in names.items()}


def _found(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def keep_heads(model: nn.Module, attention: Attention, kept: Sequence[int]) -> None:
    """Let a layer of attention have these heads only, in place."""
    own = torch.cat([torch.arange(head * attention.width, (head + 1) * attention.width) for head in kept])
    whole = attention.heads * attention.width
    for name, copies in attention.inputs.items():
        layer: Any = model.get_submodule(name)
        rows = torch.cat([own + copy * whole for copy in range(copies)]).to(layer.weight.device)
        layer.weight = _selected(layer.weight, rows, 0)
        layer.bias = None if layer.bias is None else _selected(layer.bias, rows, 0)
        layer.out_features = len(rows)
    last: Any = model.get_submodule(attention.out)
    last.weight = _selected(last.weight, own.to(last.weight.device), 1)
    last.in_features = len(own)
    module = model.get_submodule(attention.path)
    for name in attention.counts:
        setattr(module, name, len(kept))
    for name in attention.widths:
        setattr(module, name, len(own))


def _selected(parameter: nn.Parameter, indices: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, indices), requires_grad=parameter.requires_grad)
