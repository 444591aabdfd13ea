"""Leave out the attention heads that validation misses least, and train what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dlrun.compression import _layers, _transformers
from dlrun.compression._transformers import Attention
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError


def build(
    spec: DataSpec,
    *,
    share: float = 0.25,
    finetune: str | None = "1 epoch",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """Each head is silenced alone, and the goal on validation says what it was worth; those worth least go, with their
    rows and columns of the projections around them. An evaluation a head.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 3.2.

    Settings:
    share: of all heads, to leave out, in [0, 1), at least one if above 0; each layer of attention keeps one
    finetune: how long to train afterwards, e.g. "3 epochs"; null for not at all
    lr_scale: factor on the run's learning rate
    ignore: layers of attention that keep theirs, by name or pattern, e.g. [blocks.0.attention]
    """
    _layers.require(0 <= share < 1, "drop_heads.share", share, "a number in [0, 1)")
    _layers.require_training("drop_heads", "finetune", finetune, lr_scale)
    return DropHeads(share, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class DropHeads:
    """See `build`."""

    share: float
    finetune: str | None
    lr_scale: float
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with fewer heads, and which are left in each layer that lost some."""
        groups = self._groups(model)
        before = _layers.numbers(model)
        gone = self._choose(model, tools, groups)
        kept: dict[str, list[int]] = {}
        for index, group in enumerate(groups):
            lost = {head for place, head in gone if place == index}
            for attention in group if lost else ():
                kept[attention.path] = [head for head in range(attention.heads) if head not in lost]
                _transformers.keep_heads(model, attention, kept[attention.path])
        if gone and _layers.trains(self.finetune):
            assert self.finetune is not None
            model = tools.finetune(model, self.finetune, lr_scale=self.lr_scale)
        heads = {a.path: [a.heads, len(kept.get(a.path, range(a.heads)))] for group in groups for a in group}
        cost = {f"{groups[place][0].path}.{head}": value for (place, head), value in gone.items()}
        report = _layers.change(before, model) | {"layers": heads, "cost": cost}
        return model, {"kept": kept, "report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same heads."""
        for group in _transformers.attentions(model):
            for attention in group:
                if attention.path in plan["kept"]:
                    _transformers.keep_heads(model, attention, plan["kept"][attention.path])
        return model

    def _groups(self, model: nn.Module) -> list[list[Attention]]:
        """Layers of attention that lose heads together. Raises: DlrunError for a model that has none."""
        groups = _transformers.attentions(model)
        paths = [attention.path for group in groups for attention in group]
        free = set(_layers.without(paths, self.ignore, "drop_heads") if paths else [])
        groups = [group for group in groups if all(attention.path in free for attention in group)]
        if not groups:
            raise DlrunError(
                f"drop_heads: {_layers.kind(model)} has no attention whose heads can be taken out",
                "own transformers have, and BERT, DistilBERT, BART and their kin; ignore fewer layers, or drop_layers",
            )
        return groups

    def _choose(
        self, model: nn.Module, tools: CompressionTools, groups: Sequence[list[Attention]]
    ) -> dict[tuple[int, int], float]:
        """(group, head) of those that go, and what each cost the goal, alone."""
        units = [(place, head) for place, group in enumerate(groups) for head in range(group[0].heads)]
        number = _layers.at_least_one(self.share, len(units))
        if not number:
            return {}
        whole, costs = _transformers.value(model, tools), {}
        for place, head in units:
            with _silent(model, groups[place], head):
                costs[place, head] = whole - _transformers.value(model, tools)
        left = [group[0].heads for group in groups]
        gone: dict[tuple[int, int], float] = {}
        for unit in sorted(units, key=costs.__getitem__):
            if len(gone) < number and left[unit[0]] > 1:
                left[unit[0]] -= 1
                gone[unit] = costs[unit]
        if len(gone) < number:
            raise DlrunError(
                f"drop_heads: {_layers.kind(model)} has {len(units)} heads, and no more than {len(gone)} may go",
                f"compression.drop_heads.share={len(gone) / len(units):.2f}",
            )
        return gone


@contextmanager
def _silent(model: nn.Module, group: Sequence[Attention], head: int) -> Iterator[None]:
    """Nothing of a head is heard: the columns that read it are zero meanwhile."""
    outs = [model.get_parameter(f"{attention.out}.weight") for attention in group]
    before = [weight.detach().clone() for weight in outs]
    try:
        with torch.no_grad():
            for attention, weight in zip(group, outs, strict=True):
                weight[:, head * attention.width : (head + 1) * attention.width] = 0.0
        yield
    finally:
        with torch.no_grad():
            for weight, own in zip(outs, before, strict=True):
                weight.copy_(own)
