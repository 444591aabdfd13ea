"""Metrics of predicted numbers: loss, mse, mae and r2."""

# N examples, T targets of an example

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.metrics.reduce import Sums


class Regression:
    """loss (mean over targets), mse, rmse (mean over targets of the root of each's), mae, and r2 (mean over targets of
    the share of variance explained). Of several targets also each but the loss by itself, as mse_NAME.

    Reads the fields prediction [N, T] and target [N, T]; outputs without targets count for nothing.
    names: of the targets.   elementwise: the loss of each target, (prediction, target) -> same shape.
    r2 of a target that never varies is 1 if it is always hit and else 0, as in scikit-learn.
    """

    def __init__(self, names: Sequence[str], elementwise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._names, self._elementwise = names, elementwise
        self._sums = Sums(6, len(names))  # examples, loss, squared errors, absolute errors, targets, squared targets

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if "target" not in outputs.fields:
            return
        prediction_NT, target_NT = outputs.fields["prediction"].double(), outputs.fields["target"].double()
        error_NT = prediction_NT - target_NT
        rows = [torch.ones_like(error_NT), self._elementwise(prediction_NT, target_NT), error_NT**2, error_NT.abs()]
        self._sums.add(torch.stack([row.sum(0) for row in [*rows, target_NT, target_NT**2]]))

    def state(self) -> list[Tensor]:
        """The sums by target, [6, T]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        count_T, loss_T, squared_T, absolute_T, target_T, target_squared_T = self._sums.on_cpu()
        variation_T = (target_squared_T - target_T**2 / count_T).clamp(min=0)
        # Sums of squares cancel to about 1e-16 of themselves: below that a target does not vary.
        varies_T = variation_T > 1e-12 * target_squared_T
        r2_T = torch.where(varies_T, 1 - squared_T / variation_T, (squared_T == 0).double())
        if not count_T.sum():
            r2_T = torch.full_like(r2_T, torch.nan)
        by_target = {
            "mse": squared_T / count_T,
            "rmse": (squared_T / count_T).sqrt(),
            "mae": absolute_T / count_T,
            "r2": r2_T,
        }
        values = {name: value_T.mean().item() for name, value_T in {"loss": loss_T / count_T, **by_target}.items()}
        for target, label in enumerate(self._names if len(self._names) > 1 else ()):
            values |= {f"{name}_{label}": value_T[target].item() for name, value_T in by_target.items()}
        return values
