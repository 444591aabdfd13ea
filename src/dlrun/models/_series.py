"""What the models of series share: sizes of the data, and the head that foretells or classifies."""

# B windows, W rows, C columns, D features, H rows ahead, T columns foretold, K classes

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers


def num_columns(spec: DataSpec, model: str) -> int:
    """Columns of a window. Raises: DlrunError for data that is no series."""
    if spec.inputs != ("series",):
        raise DlrunError(
            f"model: {model} needs windows of a series; this data has {', '.join(spec.inputs)}",
            "data=series data.path=FILE.csv, or data=waves",
        )
    return spec.size("features")


class Head(nn.Module):
    """Features of a window to forecasts [B, H, T], or where the data has classes to logits [B, K].

    A forecast is what changes from the last row of the window on (as in NLinear; Zeng et al. 2023, "Are Transformers
    Effective for Time Series Forecasting?", section 4). The first weights are zero, so it begins as "no change".
    """

    targets: Tensor

    def __init__(self, spec: DataSpec, width: int, dropout: float) -> None:
        super().__init__()
        _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
        self.is_forecast = "horizon" in spec.sizes
        size = spec.size("horizon") * spec.size("forecasts") if self.is_forecast else spec.num_outputs
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(width, size)
        self.shape = (spec.sizes["horizon"], spec.sizes["forecasts"]) if self.is_forecast else (size,)
        self.register_buffer("targets", torch.tensor(spec.assets["targets"], dtype=torch.int64), persistent=False)
        if self.is_forecast:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, features_BD: Tensor, series_BWC: Tensor) -> Tensor:
        said = self.linear(self.dropout(features_BD)).reshape(-1, *self.shape)
        return said + series_BWC[:, -1:, self.targets] if self.is_forecast else said
