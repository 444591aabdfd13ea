"""Leave out the blocks of a transformer that validation misses least, and train what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dlrun.compression import _layers, _transformers
from dlrun.contracts import CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError

Kept = dict[str, list[int]]  # of each stack of blocks, those that stay


def build(
    spec: DataSpec,
    *,
    share: float = 0.25,
    search: Literal["greedy", "once"] = "greedy",
    finetune: str | None = "1 epoch",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """A block adds to what runs through the network, so that the network works without it, if worse. The goal on
    validation says how much worse: the block whose absence costs least goes, then the next.

    Source: Sajjad et al. 2023, "On the Effect of Dropping Layers of Pre-trained Transformer Models", section 3.2
    (contribution-based), with the model's own goal in place of a similarity.

    Settings:
    share: of all blocks, to leave out, in [0, 1), at least one if above 0; each stack (an encoder, a decoder) keeps one
    search: greedy asks anew after each block that went; once asks in the beginning only, which is quicker
    finetune: how long to train afterwards, e.g. "3 epochs"; null for not at all
    lr_scale: factor on the run's learning rate
    ignore: blocks that stay, by name or pattern, e.g. [blocks.0]
    """
    _layers.require(0 <= share < 1, "drop_layers.share", share, "a number in [0, 1)")
    _layers.require_training("drop_layers", "finetune", finetune, lr_scale)
    return DropLayers(share, search, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class DropLayers:
    """See `build`."""

    share: float
    search: str
    finetune: str | None
    lr_scale: float
    ignore: list | None

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The model with fewer blocks, and which are left."""
        stacks = _transformers.stacks(model)
        if not stacks:
            raise DlrunError(
                f"drop_layers: {_layers.kind(model)} has no stack of transformer blocks",
                "convolutions, linear layers: low_rank or prune_channels; recurrent ones: prune_magnitude or cluster",
            )
        before = _layers.numbers(model)
        kept: Kept = {name: list(range(len(blocks))) for name, blocks in stacks.items()}
        gone = self._choose(model, tools, stacks, kept)
        for name, blocks in stacks.items():
            _transformers.keep_blocks(model, name, blocks, kept[name])
            _transformers.count_blocks(model, name, kept[name], len(blocks))
        if gone and _layers.trains(self.finetune):
            assert self.finetune is not None
            model = tools.finetune(model, self.finetune, lr_scale=self.lr_scale)
        report = _layers.change(before, model) | {"layers": list(gone), "cost": gone}
        return model, {"kept": kept, "report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same blocks."""
        stacks = _transformers.stacks(model)
        for name, kept in plan["kept"].items():
            _transformers.keep_blocks(model, name, stacks[name], kept)
            _transformers.count_blocks(model, name, kept, len(stacks[name]))
        return model

    def _choose(
        self, model: nn.Module, tools: CompressionTools, stacks: Mapping[str, list[nn.Module]], kept: Kept
    ) -> dict[str, float]:
        """Take indices out of `kept`. Returns by name of each block that went what it cost the goal, then."""
        names = [f"{name}.{index}" for name, indices in kept.items() for index in indices]
        free, number = _layers.without(names, self.ignore, "drop_layers"), _layers.at_least_one(self.share, len(names))
        gone: dict[str, float] = {}
        costs: dict[str, float] = {}
        for _ in range(number):
            candidates = [name for name in free if name not in gone and len(kept[name.rpartition(".")[0]]) > 1]
            if not candidates:
                raise DlrunError(
                    f"drop_layers: {_layers.kind(model)} has {len(names)} blocks, and no more than {len(gone)} may go",
                    f"compression.drop_layers.share={len(gone) / len(names):.2f}",
                )
            if self.search == "greedy" or not costs:
                costs = _costs(model, tools, stacks, kept, candidates)
            least = min(candidates, key=costs.__getitem__)
            gone[least] = costs[least]
            stack, _, index = least.rpartition(".")
            kept[stack].remove(int(index))
        return gone


def _costs(
    model: nn.Module,
    tools: CompressionTools,
    stacks: Mapping[str, list[nn.Module]],
    kept: Kept,
    candidates: list[str],
) -> dict[str, float]:
    """What the goal loses without each candidate, those that went before being away. The model ends as `kept` says."""
    for stack, indices in kept.items():
        _transformers.keep_blocks(model, stack, stacks[stack], indices)
    whole, costs = _transformers.value(model, tools), {}
    for name in candidates:
        stack, _, index = name.rpartition(".")
        rest = [other for other in kept[stack] if other != int(index)]
        _transformers.keep_blocks(model, stack, stacks[stack], rest)
        costs[name] = whole - _transformers.value(model, tools)
        _transformers.keep_blocks(model, stack, stacks[stack], kept[stack])
    return costs
