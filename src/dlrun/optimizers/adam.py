"""Adam: steps scaled by running moments of the gradient, with L2 penalty."""

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
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam (Kingma and Ba 2015), with the paper's defaults. For decay that is no L2 penalty: optimizer=adamw.

    Settings:
    lr: learning rate, before the schedule's factor, at least 0
    betas: decay of the running mean and of the running square, each in [0, 1)
    eps: added to the denominator, at least 0
    weight_decay: L2 penalty, added to the gradient; norms and biases are spared
    amsgrad: divide by the largest running square so far (Reddi et al. 2018)
    """
    settings = {"eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    return _torch.make(torch.optim.Adam, groups, lr=lr, betas=_torch.pair("betas", betas), **settings)
