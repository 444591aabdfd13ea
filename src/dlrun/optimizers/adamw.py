"""AdamW: Adam with decoupled weight decay, the default."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from dlrun.optimizers import _torch


def build(
    groups: list[dict[str, Any]],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019).

    Settings:
    lr: learning rate, before the schedule's factor, at least 0
    betas: decay of the running mean and of the running square, each in [0, 1)
    eps: added to the denominator, at least 0
    weight_decay: share of a weight, times the learning rate, taken off at every step; norms and biases are spared
    amsgrad: divide by the largest running square so far (Reddi et al. 2018)
    """
    settings = {"eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    return _torch.make(torch.optim.AdamW, groups, lr=lr, betas=_torch.pair("betas", betas), **settings)
