"""Stochastic gradient descent, with momentum (Nesterov's where asked)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from dlrun.errors import DlrunError
from dlrun.optimizers import _torch


def build(
    groups: list[dict[str, Any]],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
) -> Optimizer:
    """SGD as in He et al. 2016, section 4.2, from which the defaults are.

    Settings:
    lr: learning rate, before the schedule's factor, at least 0
    momentum: share of the previous update that is kept, in [0, 1)
    nesterov: look ahead along the momentum (Sutskever et al. 2013)
    weight_decay: L2 penalty, added to the gradient; norms and biases are spared
    """
    if not 0 <= momentum < 1:
        raise DlrunError(f"optimizer.momentum: expected a number in [0, 1), got {momentum}")
    if nesterov and momentum == 0:
        raise DlrunError("optimizer.nesterov: needs a momentum above 0", "optimizer.momentum=0.9")
    return _torch.make(torch.optim.SGD, groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
