"""One or several numbers for each example."""

# B batch, T targets of an example, N examples of the outputs

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.regression import Regression


def build(spec: DataSpec, *, loss: Literal["mse", "mae", "huber"] = "mse", huber_delta: float = 1.0) -> RegressionTask:
    """Squared, absolute or Huber error over the targets of the data.

    An error is in units of the target; of several targets, in deviations of each over the training rows, so that none
    counts for nothing because its unit is large.

    Settings:
        loss: mse (squared errors), mae (absolute errors) or huber (squared near zero, absolute beyond)
        huber_delta: where huber turns from squared to absolute, in those units, above 0
    """
    if not huber_delta > 0:
        raise DlrunError(f"task.huber_delta: {huber_delta} is not above 0", "try task.huber_delta=1")
    goal = Goal("mse" if loss == "mse" else "mae", "min")
    return RegressionTask(spec, spec.size("targets"), loss, huber_delta, goal)


@dataclass(eq=False)
class RegressionTask:
    """See `build`. Models map the inputs to [B, T], or [B] for one target; a target's field has the same shapes."""

    spec: DataSpec
    num_targets: int
    kind: Literal["mse", "mae", "huber"]
    huber_delta: float
    goal: Goal

    additive = True
    hub_kind = "{}-regression"

    def count(self, batch: Batch) -> int:
        """Numbers to be predicted in this batch."""
        return len(batch["id"]) * self.num_targets

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The error summed over examples and targets, in float32 (float64 for a float64 model)."""
        prediction_BT = self._prediction(model, batch)
        target_BT = self._table(batch[self.spec.target], batch, "the data").to(prediction_BT.dtype)
        return Loss(self._elementwise()(prediction_BT, target_BT).sum(), self.count(batch))

    def _elementwise(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of each of [B, T] numbers."""
        loss = self._error()
        if self.num_targets == 1 or "target_std" not in self.spec.assets:
            return loss
        std_T = torch.tensor(self.spec.assets["target_std"])
        return lambda prediction, target: loss(prediction / std_T.to(prediction), target / std_T.to(target))

    def _error(self) -> Callable[[Tensor, Tensor], Tensor]:
        losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": lambda prediction, target: mse_loss(prediction, target, reduction="none"),
            "mae": lambda prediction, target: l1_loss(prediction, target, reduction="none"),
            "huber": lambda prediction, target: huber_loss(
                prediction, target, reduction="none", delta=self.huber_delta
            ),
        }
        return losses[self.kind]

    def _prediction(self, model: nn.Module, batch: Batch) -> Tensor:
        prediction_BT = self._table(model(*[batch[name] for name in self.spec.inputs]), batch, "the model")
        return prediction_BT.to(torch.promote_types(prediction_BT.dtype, torch.float32))

    def _table(self, values: Tensor, batch: Batch, giver: str) -> Tensor:
        """[B] or [B, T] as [B, T]. Raises: DlrunError for another shape, rather than let it broadcast."""
        size = len(batch["id"])
        if values.shape == (size, self.num_targets) or (self.num_targets == 1 and values.shape == (size,)):
            return values.reshape(size, self.num_targets)
        raise DlrunError(
            f"task: {giver} gives {list(values.shape)} for {size} examples;"
            f" regression needs [{size}, {self.num_targets}]",
            "choose a model for regression: dlrun list model",
        )

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields prediction [B, T] float32, and target [B, T] float32 where it is known."""
        fields = {"prediction": self._prediction(model, batch).float()}
        if self.spec.target in batch:
            fields["target"] = self._table(batch[self.spec.target], batch, "the data").float()
        return Outputs(batch["id"], fields)

    def metrics(self) -> list[Metric]:
        """loss, mse, rmse, mae and r2; of several targets also mse_NAME … of each."""
        return [Regression(self._names, self._elementwise())]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "prediction", "std" between the members of an ensemble, "truth" where known}; several targets are a
        dict by their names."""
        rows: list[Row] = [
            {"id": example, "prediction": self._named(values)}
            for example, values in zip(outputs.ids.tolist(), outputs.fields["prediction"].tolist(), strict=True)
        ]
        if "variance" in outputs.fields:
            for row, values in zip(rows, outputs.fields["variance"].sqrt().tolist(), strict=True):
                row["std"] = self._named(values)
        if "target" in outputs.fields:
            for row, values in zip(rows, outputs.fields["target"].tolist(), strict=True):
                row["truth"] = self._named(values)
        return rows

    def _named(self, values: list[float]) -> float | dict[str, float]:
        return values[0] if self.num_targets == 1 else dict(zip(self._names, values, strict=True))

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the targets; their numbers where the data does not name them."""
        named = len(self.spec.labels) == self.num_targets
        return self.spec.labels if named else tuple(str(index) for index in range(self.num_targets))

    def pictures(self, batch: Batch, outputs: Outputs) -> list[Any]:
        """An image an example, below it "truth → prediction" of each target; [] for what is no picture."""
        from dlrun import pictures

        if "image" not in batch:
            return []
        return [
            pictures.captioned(pictures.to_pil(image_CHW), _caption(row["prediction"], row.get("truth")))
            for image_CHW, row in zip(batch["image"], self.rows(outputs), strict=True)
        ]


def _caption(said: float | dict[str, float], truth: Any) -> str:
    if isinstance(said, dict):
        return ", ".join(f"{name}: {_caption(said[name], truth and truth[name])}" for name in said)
    return f"{said:.3g}" if truth is None else f"{truth:.3g} → {said:.3g}"
