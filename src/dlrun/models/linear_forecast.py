"""One linear layer from a window of a series to what comes after it."""

from __future__ import annotations

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _series

# B windows, W rows, C columns


class LinearForecast(nn.Module):
    """All numbers of a window, less its last row, to the head."""

    def __init__(self, head: _series.Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, series_BWC: Tensor) -> Tensor:
        """Forecasts [B, H, T], or logits [B, K]."""
        changes_BWC = series_BWC - series_BWC[:, -1:] if self.head.is_forecast else series_BWC
        return self.head(changes_BWC.flatten(1), series_BWC)


def build(spec: DataSpec, *, dropout: float = 0.0) -> nn.Module:
    """NLinear of Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?", section 4.

    Settings:
    dropout: share of the numbers set to zero while training, in [0, 1)
    """
    columns = _series.num_columns(spec, "linear_forecast")
    return LinearForecast(_series.Head(spec, spec.size("window") * columns, dropout))
