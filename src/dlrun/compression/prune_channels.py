"""Take out whole channels with all that hangs on them, so that a network computes less (through torch-pruning)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from dlrun.compression import _layers, _reshaping
from dlrun.contracts import Batch, CompressionTools, Compressor, DataSpec
from dlrun.errors import DlrunError

_RATIOS = (0.25, 0.5, 0.75, 0.9)  # tried first to find one that meets a number of MACs
_HALVINGS = 5  # of the interval between such two


def build(
    spec: DataSpec,
    *,
    macs: float = 0.5,
    ratio: float | None = None,
    importance: Literal["group", "l1", "l2"] = "group",
    scope: Literal["layer", "global"] = "layer",
    round_to: int = 1,
    finetune: str | None = "3 epochs",
    lr_scale: float = 0.1,
    ignore: list | None = None,
) -> Compressor:
    """Channels of convolutions and units of hidden layers go, the least important first, together with everything that
    reads or norms them or is added to them (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). What is
    left is a plain, smaller network. The outputs of heads, embeddings and attention stay: of a transformer the units
    of its feed-forward layers go.

    Settings:
    macs: share of the multiplications and additions to keep, in (0, 1]; 1 changes nothing
    ratio: share of each layer's channels to take out, in [0, 1), in place of macs
    importance: a channel's: group, the L2 norms of all weights that would go with it (Fang et al. 2023, eq. 4), or the
      l1 (Li et al. 2017, "Pruning Filters for Efficient ConvNets") or l2 norm of its own filter
    scope: layer takes as much from each, global from where it matters least
    round_to: channels left are a multiple of it; some processors are fastest at 8 or 16
    finetune: how long to train afterwards, e.g. "3 epochs"; null for not at all
    lr_scale: factor on the run's learning rate
    ignore: layers whose outputs stay, by name or pattern, e.g. [stem.0, "stages.0.*"]
    """
    _layers.require(0 < macs <= 1, "prune_channels.macs", macs, "a number in (0, 1]")
    _layers.require(ratio is None or 0 <= ratio < 1, "prune_channels.ratio", ratio, "a number in [0, 1), or null")
    _layers.require(round_to >= 1, "prune_channels.round_to", round_to, "an integer of at least 1")
    _layers.require_training("prune_channels", "finetune", finetune, lr_scale)
    return PruneChannels(macs, ratio, importance, scope, round_to, finetune, lr_scale, ignore)


@dataclass(frozen=True)
class PruneChannels:
    """See `build`."""

    macs: float
    ratio: float | None
    importance: str
    scope: str
    round_to: int
    finetune: str | None
    lr_scale: float
    ignore: list | None

    def require_ready(self) -> None:
        """See contracts.WithRequirements."""
        _torch_pruning()

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The smaller model; the plan says which tensors and modules have other sizes."""
        self._require(model)
        batch = _layers.one_batch(tools)
        before = _layers.numbers(model), _reshaping.sizes(model), macs_of(model, tools, batch)
        if self.macs < 1 if self.ratio is None else self.ratio > 0:
            model = self._pruned(model, tools, batch)
        change = _reshaping.difference(before[1], _reshaping.sizes(model))
        if change["tensors"] and _layers.trains(self.finetune):
            assert self.finetune is not None
            model = tools.finetune(model, self.finetune, lr_scale=self.lr_scale)
        report = _layers.change(before[0], model) | {
            "macs": [before[2], macs_of(model, tools, batch)],
            "layers": _channels(before[1].tensors, change["tensors"]),
        }
        return model, change | {"report": report}

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same sizes, and empty tensors where they changed; nothing is traced."""
        return _reshaping.reshape(model, plan)

    # ---------------------------------------------------------------- pruning

    def _pruned(self, model: nn.Module, tools: CompressionTools, batch: Batch) -> nn.Module:
        """A pruned copy: by the ratio, or by the smallest one that meets the MACs."""
        self._ignored(model)
        if self.ratio is not None:
            return self._without(model, tools, batch, self.ratio)
        whole = macs_of(model, tools, batch)
        tried = {ratio: self._without(model, tools, batch, ratio) for ratio in _RATIOS}
        shares = {ratio: macs_of(smaller, tools, batch) / whole for ratio, smaller in tried.items()}
        # A layer is left alone where no channel would stay, so that more is not always less.
        enough = next((ratio for ratio in _RATIOS if shares[ratio] <= self.macs), None)
        if enough is None:
            best = min(shares.values())
            raise DlrunError(
                f"prune_channels: {_layers.kind(model)} keeps {best:.2f} of its MACs when all is taken out that may be",
                f"compression.prune_channels.macs={min(1.0, best + 0.01):.2f}, or ignore fewer layers",
            )
        least, most, found = max([0.0, *(r for r in _RATIOS if r < enough)]), enough, tried[enough]
        for _ in range(_HALVINGS):
            ratio = (least + most) / 2
            smaller = self._without(model, tools, batch, ratio)
            if macs_of(smaller, tools, batch) <= self.macs * whole:
                most, found = ratio, smaller
            else:
                least = ratio
        return found

    def _without(self, model: nn.Module, tools: CompressionTools, batch: Batch, ratio: float) -> nn.Module:
        """A copy without this share of channels. Raises: DlrunError where torch-pruning cannot follow the model."""
        smaller = copy.deepcopy(model).eval()
        try:
            with warnings.catch_warnings(action="ignore"):  # that some parameters belong to no layer it knows
                pruner = self._pruner(smaller, tools, batch, ratio)
                if not pruner.initial_total_channels:
                    raise _nothing_to_prune(model)
                pruner.step()
        except DlrunError:
            raise
        except Exception as error:  # whatever it meets in a network of any kind
            raise DlrunError(
                f"prune_channels: torch-pruning cannot follow {_layers.kind(model)}: {type(error).__name__}: {error}",
                "leave the part out: compression.prune_channels.ignore=[NAME], or take prune_magnitude",
            ) from error
        self._check(smaller, model, tools, batch)
        return smaller.train(model.training)

    def _pruner(self, model: nn.Module, tools: CompressionTools, batch: Batch, ratio: float) -> Any:
        pruning = _torch_pruning()
        norm, over = {"group": (2, "mean"), "l1": (1, "first"), "l2": (2, "first")}[self.importance]
        return pruning.pruner.BasePruner(
            model,
            batch,
            forward_fn=lambda network, rows: network(*[rows[name] for name in tools.spec.inputs]),
            importance=pruning.importance.GroupMagnitudeImportance(p=norm, group_reduction=over),
            pruning_ratio=ratio,
            max_pruning_ratio=max(ratio, _RATIOS[-1]),
            global_pruning=self.scope == "global",
            round_to=None if self.round_to == 1 else self.round_to,
            ignored_layers=self._ignored(model),
            root_module_types=[nn.modules.conv._ConvNd, nn.Linear],
            # Its own defaults are dicts that live as long as the process and remember the last model's layers.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )

    def _require(self, model: nn.Module) -> None:
        """Raises: DlrunError for weights that torch-pruning cannot cut."""
        if any(parametrize.is_parametrized(layer) for layer in model.modules()):
            raise DlrunError(
                f"prune_channels: weights of {_layers.kind(model)} are kept in codebooks or in fewer bits, where no"
                " channel can be taken out",
                "let prune_channels come first: compression=[prune_channels,…]",
            )

    def _ignored(self, model: nn.Module) -> list[nn.Module]:
        """Layers whose outputs stay: heads, embeddings, attention, and what the user names."""
        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _layers.Convolution)]
        heads = _layers.in_heads(model)
        if not set(layers) - heads:
            raise _nothing_to_prune(model)
        chosen = set(layers) - set(_layers.without(layers, self.ignore, "prune_channels")) | heads
        found = [model.get_submodule(name) for name in sorted(chosen)]
        return found + [
            layer
            for layer in model.modules()
            if isinstance(layer, nn.Embedding) or "attention" in type(layer).__name__.lower()
        ]

    def _check(self, smaller: nn.Module, model: nn.Module, tools: CompressionTools, batch: Batch) -> None:
        """Raises: DlrunError unless the smaller model still gives an answer of the same shape."""
        before = _layers.shapes(_layers.answer(model, tools, batch))
        try:
            now = _layers.shapes(_layers.answer(smaller, tools, batch))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise DlrunError(
                f"prune_channels: {_layers.kind(model)} no longer runs without these channels: {error}",
                "leave the part out: compression.prune_channels.ignore=[NAME]",
            ) from error
        if [shape[1:] for shape in now] != [shape[1:] for shape in before]:  # how many boxes are found may change
            raise DlrunError(
                f"prune_channels: {_layers.kind(model)} would answer {now[0]} where it answered {before[0]}",
                "name the layers of its head: compression.prune_channels.ignore=[NAME]",
            )


def _nothing_to_prune(model: nn.Module) -> DlrunError:
    return DlrunError(
        f"prune_channels: {_layers.kind(model)} has no convolution or hidden layer whose channels could go",
        "recurrent layers, embeddings and heads keep theirs; prune_magnitude takes single weights",
    )


def macs_of(model: nn.Module, tools: CompressionTools, batch: Batch) -> int:
    """Multiply-accumulates of one example, as torch counts them: products of matrices, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _layers.answer(model, tools, batch)
    return counter.get_total_flops() // (2 * len(batch["id"]))


def _channels(before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Outputs before and after of the layers that have fewer."""
    return {
        name.removesuffix(".weight"): [before[name][0], shape[0]]
        for name, shape in after.items()
        if name.endswith("weight") and len(shape) > 1 and shape[0] != before[name][0]
    }


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise DlrunError("prune_channels needs torch-pruning", 'pip install "dlrun[compress]"') from error
    return torch_pruning
