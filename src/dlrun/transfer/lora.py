"""LoRA: the given weights stay as they came; what trains is a small addition to each linear layer, and the head."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from dlrun.contracts import DataSpec, Tools, Transferred
from dlrun.errors import DlrunError, did_you_mean
from dlrun.transfer import _fit, _layout

_CLASSES = {"classes", "labels", "targets"}  # sizes of data whose models end in a small head


def build(
    model: nn.Module,
    spec: DataSpec,
    tools: Tools,
    source: str,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: list | None = None,
    replace_head: bool | None = None,
    train_head: bool | None = None,
) -> Transferred:
    """Load the weights, freeze them, and add alpha / rank * B A to each targeted weight; A and B train, B from zero.

    Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. Adapting every linear
    layer rather than some of the attention's: Dettmers et al. 2023, "QLoRA", section 4.

    Settings:
    rank: of the addition, at least 1
    alpha: its scale is alpha / rank
    dropout: share of what enters A that is set to zero while training, in [0, 1)
    targets: layers to adapt, by the end of their names or a pattern, e.g. [query, value] or [blocks.*.qkv]; null: every
      linear layer but the head
    replace_head: whether the head starts anew; null: where the classes differ in number or (as far as known) in name
    train_head: whether the head trains, all of it; null: where it starts anew, or the data has classes, labels or
      targets
    """
    result = _fit.fit(model, tools.weights(source), spec.labels, replace_head)
    head = _layout.find_head(model)
    if train_head is None:
        train_head = bool(result.head) or bool(spec.sizes.keys() & _CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tools.seed)
        result.model = reshape(model, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or (train_head and _layout.inside(name, head)))
    result.frozen = tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)
    )
    return result


def reshape(model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: list | None, **_: Any) -> nn.Module:
    """Add untrained adapters to the model, in place: the module tree that a checkpoint of such a run holds.

    Raises: DlrunError for settings out of range, targets that are not there, and where peft is missing.
    """
    _require(rank >= 1, "rank", rank, "an integer of at least 1")
    _require(alpha > 0, "alpha", alpha, "a number above 0")
    _require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    peft = _peft()
    names = _targeted(model, targets)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="|".join(map(re.escape, names)), bias="none"
    )
    with warnings.catch_warnings(action="ignore"):  # that it looks at each layer whether its weight is transposed
        peft.inject_adapter_in_model(config, model)
    return model


def merged(model: nn.Module) -> nn.Module:
    """Fold the adapters into the weights they add to, in place: the model as it was before `reshape`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    for name, layer in adapted:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    return model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise DlrunError("transfer=lora needs peft", 'pip install "dlrun[text]"') from error
    return peft


def _targeted(model: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the layers to adapt. Raises: DlrunError naming a target that none fits."""
    from transformers.pytorch_utils import Conv1D

    head = _layout.find_head(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not _layout.inside(name, head) and not _is_read_past(model, name)
    ]
    if targets is None:
        if not linear:
            raise DlrunError("transfer: the model has no linear layer but its head", "transfer=finetune")
        return linear
    chosen = set()
    for target in targets:
        found = {name for name in linear if fnmatch(name, str(target)) or fnmatch(name, f"*.{target}")}
        if not found:
            ends = {name.rpartition(".")[2] for name in linear}
            raise DlrunError(
                f"transfer.targets: no linear layer of the body is called '{target}'", did_you_mean(str(target), ends)
            )
        chosen |= found
    return sorted(chosen)


def _is_read_past(model: nn.Module, name: str) -> bool:
    """Whether a layer's weight is used without calling the layer, so that an adapter would never be asked."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)


def _require(condition: bool, setting: str, given: object, expected: str) -> None:
    if not condition:
        raise DlrunError(f"transfer.{setting}: expected {expected}, got {given}")
