"""Fine-tuning: everything trains on from the given weights, gently where wanted."""

from __future__ import annotations

from torch import nn

from dlrun.contracts import DataSpec, Tools, Transferred
from dlrun.errors import DlrunError
from dlrun.transfer import _fit, _layout


def build(
    model: nn.Module,
    spec: DataSpec,
    tools: Tools,
    source: str,
    *,
    replace_head: bool | None = None,
    layer_decay: float = 1.0,
    head_lr_scale: float = 1.0,
    gradual_unfreezing: float = 0.0,
) -> Transferred:
    """Load the weights, and set how fast and from when each part of the model trains.

    Discriminative rates and gradual unfreezing are those of Howard and Ruder 2018, "Universal Language Model
    Fine-tuning for Text Classification", sections 3.2 and 3.3 (their layer_decay is 1/2.6, with four parts).

    Settings:
    replace_head: whether the head starts anew; null: where the classes differ in number or (as far as known) in name
    layer_decay: factor on the learning rate for every part further from the head, in (0, 1]; 1: the same for all
    head_lr_scale: factor on the head's learning rate, above 0
    gradual_unfreezing: fraction of the run, in [0, 1], by which the first part has begun to train; the head trains
      from the start, and the parts between join one by one from the head down; 0: all train from the start
    """
    _require(0 < layer_decay <= 1, "layer_decay", layer_decay, "a number in (0, 1]")
    _require(head_lr_scale > 0, "head_lr_scale", head_lr_scale, "a number above 0")
    _require(0 <= gradual_unfreezing <= 1, "gradual_unfreezing", gradual_unfreezing, "a fraction of the run in [0, 1]")
    result = _fit.fit(model, tools.weights(source), spec.labels, replace_head)
    head = _layout.find_head(model)
    if head_lr_scale != 1:
        result.lr_scales[head] = head_lr_scale
    parts = _layout.body_parts(model, head)
    for distance, names in enumerate(reversed(parts), start=1):
        if layer_decay != 1:
            result.lr_scales |= dict.fromkeys(names, layer_decay**distance)
        if gradual_unfreezing:
            result.unfreeze_at |= dict.fromkeys(names, gradual_unfreezing * distance / len(parts))
    return result


def _require(condition: bool, setting: str, given: object, expected: str) -> None:
    if not condition:
        raise DlrunError(f"transfer.{setting}: expected {expected}, got {given}")
