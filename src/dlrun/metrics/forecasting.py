"""Metrics of forecasts: mae, rmse and mase, of the model and of the baselines beside it."""

# N windows, H rows ahead, T columns foretold

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.metrics.reduce import Sums

_OF = {"prediction": "", "naive": "_naive", "linear": "_linear"}


class Forecasting:
    """loss, and mae, rmse and mase (also mae_naive …, mae_linear … where the outputs hold those forecasts).

    mae and rmse are in units of the columns; mase is the mae as a share of scale, the mean absolute change of the
    training rows over a season: below 1 a forecast is better than repeating the last season was there. Each is a mean
    over columns.
    Reads prediction, target and perhaps naive and linear, [N, H, T]; outputs without target count for nothing.
    elementwise: the loss of each number, (prediction, target) -> same shape.
    Source: Hyndman and Koehler 2006, "Another Look at Measures of Forecast Accuracy", section 3.
    """

    def __init__(self, scale: Sequence[float], elementwise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._scale_T = torch.tensor(scale, dtype=torch.float64)
        self._elementwise = elementwise
        # Windows times rows ahead, loss; then of each forecast whether it is there, absolute and squared errors.
        self._sums = Sums(2 + 3 * len(_OF), len(scale))

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        fields = outputs.fields
        if "target" not in fields:
            return
        target = fields["target"].double()
        ones = torch.ones_like(target)
        rows = [ones, self._elementwise(fields["prediction"].double(), target)]
        for name in _OF:
            error = fields[name].double() - target if name in fields else None
            rows += [ones, error.abs(), error.square()] if error is not None else [0 * ones] * 3
        self._sums.add(torch.stack([row.sum((0, 1)) for row in rows]))

    def state(self) -> list[Tensor]:
        """The sums by column, [11, T]."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        count_T, loss_T, *rest = self._sums.on_cpu()
        if not count_T.sum():
            return dict.fromkeys(("loss", "mae", "rmse", "mase"), math.nan)
        values = {"loss": (loss_T / count_T).mean().item()}
        for index, ending in enumerate(_OF.values()):
            seen_T, absolute_T, squared_T = rest[3 * index : 3 * index + 3]
            if seen_T.sum():
                mae_T = absolute_T / seen_T
                values[f"mae{ending}"] = mae_T.mean().item()
                values[f"rmse{ending}"] = (squared_T / seen_T).sqrt().mean().item()
                values[f"mase{ending}"] = (mae_T / self._scale_T).mean().item()
        return values
