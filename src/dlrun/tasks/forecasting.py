"""The next rows of a series, beside what repeating the last season and a linear forecast would say."""

# B windows, W rows looked back on, C columns, H rows ahead, T columns foretold

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.forecasting import Forecasting

_BASELINE_FILE = "linear_baseline.safetensors"


def build(spec: DataSpec, *, loss: Literal["mae", "mse", "huber"] = "mae", huber_delta: float = 1.0) -> ForecastingTask:
    """Absolute, squared or Huber error of each number foretold, in standard deviations of the training rows.

    Settings:
        loss: mae (absolute errors), mse (squared errors) or huber (squared near zero, absolute beyond)
        huber_delta: where huber turns from squared to absolute, in standard deviations, above 0
    """
    if not huber_delta > 0:
        raise DlrunError(f"task.huber_delta: {huber_delta} is not above 0", "try task.huber_delta=1")
    return ForecastingTask(spec, spec.size("horizon"), spec.size("forecasts"), loss, huber_delta)


@dataclass(eq=False)
class ForecastingTask:
    """See `build`. Models map standardised windows [B, W, C] to standardised forecasts [B, H, T]."""

    spec: DataSpec
    horizon: int
    num_columns: int
    kind: Literal["mae", "mse", "huber"]
    huber_delta: float

    goal = Goal("mase", "min")
    additive = True

    @cached_property
    def _weights(self) -> Tensor | None:
        """[W C + 1, H T] of the linear forecast, where the data has one."""
        if _BASELINE_FILE not in self.spec.files:
            return None
        from safetensors.torch import load

        return load(self.spec.files[_BASELINE_FILE])["weights"]

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the columns foretold."""
        places = self.spec.assets["targets"]
        mean, std = (torch.tensor([self.spec.assets[name][place] for place in places]) for name in ("mean", "std"))
        return mean.to(like), std.to(like)

    def count(self, batch: Batch) -> int:
        """Numbers to be foretold in this batch."""
        return len(batch["id"]) * self.horizon * self.num_columns

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The error summed over windows, rows ahead and columns, in float32 (float64 for a float64 model)."""
        prediction_BHT = self._prediction(model, batch)
        mean_T, std_T = self._moments(prediction_BHT)
        target_BHT = (batch["future"].to(prediction_BHT) - mean_T) / std_T
        return Loss(self._elementwise(prediction_BHT, target_BHT).sum(), self.count(batch))

    def _elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        losses: dict[str, Callable[..., Tensor]] = {"mae": l1_loss, "mse": mse_loss}
        if self.kind == "huber":
            return huber_loss(prediction, target, reduction="none", delta=self.huber_delta)
        return losses[self.kind](prediction, target, reduction="none")

    def _prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        said = model(*[batch[name] for name in self.spec.inputs])
        expected = (len(batch["id"]), self.horizon, self.num_columns)
        if said.shape != expected:
            raise DlrunError(
                f"task: the model gives {list(said.shape)}; forecasting needs {list(expected)}",
                "choose a model for forecasting: tcn, series_lstm, series_transformer, linear_forecast",
            )
        return said.to(torch.promote_types(said.dtype, torch.float32))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields prediction, naive (the last season again), linear where the data has one and target where it is known,
        each float32 [B, H, T] in units of the columns."""
        prediction_BHT = self._prediction(model, batch).float()
        mean_T, std_T = self._moments(prediction_BHT)
        found = {"prediction": prediction_BHT, "naive": self._naive(batch["series"].float())}
        if self._weights is not None:
            flat = batch["series"].float().flatten(1)
            weights = self._weights.to(flat.device)
            found["linear"] = (flat @ weights[:-1] + weights[-1]).reshape(prediction_BHT.shape)
        found = {name: field * std_T + mean_T for name, field in found.items()}
        return Outputs(batch["id"], found | ({"target": batch["future"].float()} if "future" in batch else {}))

    def _naive(self, series_BWC: Tensor) -> Tensor:
        """[B, H, T]: each row ahead is as the latest known row at its place in the season."""
        season, window = self.spec.assets["season"], series_BWC.shape[1]
        rows_H = window - season + torch.arange(self.horizon, device=series_BWC.device) % season
        return series_BWC[:, rows_H][..., self.spec.assets["targets"]]

    def metrics(self) -> list[Metric]:
        """loss (in units of the columns), mae, rmse and mase, also of the naive and the linear forecast."""
        return [Forecasting(self.spec.assets["scale"], self._elementwise)]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "forecast", "truth" where known}: a number, a list of one a row ahead, or such by column."""
        rows: list[Row] = [
            {"id": example, "forecast": self._named(values)}
            for example, values in zip(outputs.ids.tolist(), outputs.fields["prediction"], strict=True)
        ]
        if "target" in outputs.fields:
            for row, values in zip(rows, outputs.fields["target"], strict=True):
                row["truth"] = self._named(values)
        return rows

    def _named(self, values_HT: Tensor) -> object:
        by_column = {
            name: column if self.horizon > 1 else column[0]
            for name, column in zip(self.spec.labels, values_HT.T.tolist(), strict=True)
        }
        return by_column if self.num_columns > 1 else next(iter(by_column.values()))
