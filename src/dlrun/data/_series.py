"""Windows over the rows of a table in time: which there are, how they are standardised, and a linear forecast."""

# N rows of the table, C columns, B windows of a batch, W rows of a window, H rows ahead, T columns foretold, K classes

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch, Dataset, DataSpec, Row, Split, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._labels import check_classes
from dlrun.errors import DlrunError, Exit

BASELINE_FILE = "linear_baseline.safetensors"
_LEAST_DEVIATION = 1e-8
_MOST_FITTED = 20_000  # windows that the linear forecast is fitted on; more are thinned out evenly
_MOST_COEFFICIENTS = 4_000_000  # of a linear forecast; a larger one is left out


@dataclass(frozen=True)
class Table:
    """Rows in time. values_NC: float64.   targets: places among the columns of those foretold.
    is_bad_N: rows that no window may hold.   labels_N: int64 classes, where a window has one: that of its last row."""

    name: str
    columns: tuple[str, ...]
    values_NC: np.ndarray
    targets: tuple[int, ...]
    is_bad_N: np.ndarray
    labels_N: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def digest(self) -> bytes:
        """A hash of all that is held."""
        total = hashlib.blake2b(digest_size=16)
        for array in (self.values_NC, self.is_bad_N, self.labels_N):
            total.update(b"-" if array is None else array.tobytes())
        return total.digest()


@dataclass(frozen=True)
class Windows:
    """What a user may set of windows; see `series.build`. Fractions are of the rows, at their end."""

    window: int
    horizon: int
    stride: int
    season: int
    valid_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for name in ("window", "horizon", "stride", "season"):
            if getattr(self, name) < 1:
                raise DlrunError(f"data.{name}: {getattr(self, name)} is not at least 1")
        if self.season > self.window:
            raise DlrunError(
                f"data.season: {self.season} rows are more than data.window={self.window}",
                f"data.window={self.season} holds one",
            )
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise DlrunError(f"data.{name}: {getattr(self, name)} is not in [0, 1)")
        if self.valid_fraction + self.test_fraction >= 1:
            raise DlrunError("data.valid_fraction and data.test_fraction leave nothing to train on")


class SeriesSplit:
    """Windows that share one table. ends_M: the row after each window's last. `series` float32 [B, W, C] and `future`
    [B, H, T] have the table's units."""

    in_memory = True

    def __init__(self, table: Table, ends_M: Tensor, window: int, horizon: int) -> None:
        self.ends_M, self.window, self.horizon = ends_M, window, horizon
        self.values_NC = torch.from_numpy(table.values_NC.astype(np.float32))
        self.targets = torch.tensor(table.targets)
        self.labels_N = None if table.labels_N is None else torch.from_numpy(table.labels_N)

    def __len__(self) -> int:
        return len(self.ends_M)

    def gather(self, rows_B: Tensor) -> Batch:
        """The windows of these rows; "id" is the row that comes after each."""
        ends_B1 = self.ends_M[rows_B, None]
        batch = {"id": ends_B1[:, 0], "series": self.values_NC[ends_B1 + torch.arange(-self.window, 0)]}
        if self.labels_N is not None:
            return batch | {"label": self.labels_N[ends_B1[:, 0] - 1]}
        return batch | {"future": self.values_NC[ends_B1 + torch.arange(self.horizon)][..., self.targets]}


class SeriesInputs:
    """New windows by the field `series`; they are standardised where the batch is."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.mean_C, self.std_C = (torch.tensor(spec.assets[name], dtype=torch.float32) for name in ("mean", "std"))

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "series" float32 [B, W, C]; of a longer one its end. Raises DlrunError naming the row that does not fit."""
        size = (self.spec.sizes["window"], self.spec.sizes["features"])
        found = []
        for index, row in enumerate(rows):
            if "series" not in row:
                raise DlrunError(f"row {index} has no 'series'", f"{size[0]} rows of {size[1]} numbers each")
            try:
                values = np.asarray(row["series"], dtype=np.float32)
            except (ValueError, TypeError) as error:
                raise DlrunError(f"row {index}: 'series' is no table of numbers", code=Exit.DATA) from error
            if values.ndim != 2 or values.shape[1] != size[1] or len(values) < size[0]:
                raise DlrunError(
                    f"row {index}: 'series' has the shape {list(values.shape)}; {list(size)} is needed", code=Exit.DATA
                )
            if not np.isfinite(values[-size[0] :]).all():
                raise DlrunError(f"row {index}: 'series' holds a number that is not finite", code=Exit.DATA)
            found.append(torch.from_numpy(values[-size[0] :].copy()))
        return {"id": torch.arange(len(rows)), "series": torch.stack(found) if found else torch.empty(0, *size)}

    def prepare(self, batch: Batch) -> Batch:
        """series standardised by the training rows; future stays in the table's units."""
        series_BWC = batch["series"]
        mean_C, std_C = self.mean_C.to(series_BWC.device), self.std_C.to(series_BWC.device)
        return batch | {"series": (series_BWC - mean_C) / std_C}


def assemble(table: Table, windows: Windows, tools: Tools, notes: Sequence[str]) -> Dataset:
    """The Dataset of the windows of a table. notes: what was said so far.

    Raises: DlrunError if a split has no window.
    """
    known = spec_of(tools)
    cuts = _cuts(len(table.values_NC), windows)
    splits = {name: _split(table, name, *rows, windows) for name, rows in cuts.items()}
    spec, said = (known, []) if known is not None else _spec(table, cuts["train"][1], splits["train"], windows)
    if known is None and table.labels_N is not None:
        labels_M = table.labels_N[splits["train"].ends_M.numpy() - 1]
        said += check_classes(labels_M, table.classes, table.name, "target")
    shares = [f"{name}: {len(split):,} windows, rows {cuts[name][0]:,} to {cuts[name][1] - 1:,}"
              for name, split in splits.items()]  # fmt: skip
    total = hashlib.blake2b(table.digest(), digest_size=16)
    for name, split in splits.items():
        total.update(name.encode() + split.ends_M.numpy().tobytes())
    found: dict[str, Split] = dict(splits)
    return Dataset(spec, found, SeriesInputs(spec), (*notes, *shares, *said), total.hexdigest())


def _cuts(num_rows: int, windows: Windows) -> dict[str, tuple[int, int]]:
    """The first row of each split, and the row after its last, in time."""
    num_test, num_valid = round(windows.test_fraction * num_rows), round(windows.valid_fraction * num_rows)
    ends = [0, num_rows - num_test - num_valid, num_rows - num_test, num_rows]
    cuts = {name: (ends[index], ends[index + 1]) for index, name in enumerate(("train", "valid", "test"))}
    return {name: rows for name, rows in cuts.items() if rows[1] > rows[0]}


def _split(table: Table, name: str, first: int, last: int, windows: Windows) -> SeriesSplit:
    """Windows whose future lies in these rows; what they look back on may be earlier, as it is then known."""
    ahead = windows.horizon if table.labels_N is None else 0
    # A class is that of a window's last row, which is to lie in the split too.
    begin = max(first + (0 if ahead else 1), windows.window)
    ends_M = np.arange(begin, last - ahead + 1, windows.stride)
    bad_before = np.concatenate([[0], np.cumsum(table.is_bad_N)])
    ends_M = ends_M[bad_before[ends_M + ahead] == bad_before[ends_M - windows.window]]
    if not len(ends_M):
        raise DlrunError(
            f"{table.name}: the {last - first:,} rows of {name} hold no window of {windows.window} rows"
            + (f" with {ahead} after it" if ahead else ""),
            "a shorter data.window, or a larger share for it",
            Exit.DATA,
        )
    return SeriesSplit(table, torch.from_numpy(ends_M), windows.window, windows.horizon)


def _spec(table: Table, train_end: int, train: SeriesSplit, windows: Windows) -> tuple[DataSpec, list[str]]:
    good_NC = table.values_NC[:train_end][~table.is_bad_N[:train_end]]
    mean_C, std_C = good_NC.mean(0), good_NC.std(0)
    std_C = np.where(std_C > _LEAST_DEVIATION, std_C, 1.0)
    shape = (windows.window, len(table.columns))
    sizes = {"window": shape[0], "features": shape[1]}
    assets = {
        "kind": "series", "columns": list(table.columns), "targets": list(table.targets), "stride": windows.stride,
        "mean": mean_C.tolist(), "std": std_C.tolist(),
    }  # fmt: skip
    if table.labels_N is not None:
        return DataSpec(("series",), "label", sizes | {"classes": len(table.classes)}, {"series": shape}, table.classes,
                        assets), []  # fmt: skip
    sizes |= {"horizon": windows.horizon, "forecasts": len(table.targets)}
    assets |= {"season": windows.season, "scale": _scale(table, train_end, windows.season)}
    files, notes = _linear(train, mean_C, std_C)
    names = tuple(table.columns[place] for place in table.targets)
    return DataSpec(("series",), "future", sizes, {"series": shape}, names, assets, files), notes


def _scale(table: Table, train_end: int, season: int) -> list[float]:
    """For each column foretold, the mean absolute change over a season of the training rows.

    Source: Hyndman and Koehler 2006, "Another Look at Measures of Forecast Accuracy", section 3.
    """
    values_NT = table.values_NC[:train_end, list(table.targets)]
    is_good_N = ~table.is_bad_N[:train_end]
    pairs = is_good_N[season:] & is_good_N[:-season]
    changes_NT = np.abs(values_NT[season:] - values_NT[:-season])[pairs]
    scale_T = changes_NT.mean(0) if len(changes_NT) else np.ones(values_NT.shape[1])
    return np.where(scale_T > 0, scale_T, 1.0).tolist()


def _linear(train: SeriesSplit, mean_C: np.ndarray, std_C: np.ndarray) -> tuple[dict[str, bytes], list[str]]:
    """Weights [W C + 1, H T] of the linear forecast from a standardised window, as a file.

    It is fitted, by least squares, to the change from a window's last row on, from the rows less the last: a level that
    training never saw then shifts the forecast and nothing else.
    """
    from safetensors.torch import save

    rows = torch.arange(len(train))[:: -(-len(train) // _MOST_FITTED)]
    batch = train.gather(rows[:1])
    width, outputs = batch["series"][0].numel() + 1, batch["future"][0].numel()
    if width * outputs > _MOST_COEFFICIENTS:
        return {}, [f"no linear baseline: it would have {width * outputs:,} coefficients"]
    batch = train.gather(rows)
    targets = train.targets.numpy()
    series_BWC = (batch["series"].double().numpy() - mean_C) / std_C
    future_BHT = (batch["future"].double().numpy() - mean_C[targets]) / std_C[targets]
    inputs = (series_BWC - series_BWC[:, -1:]).reshape(len(rows), -1)
    changes = (future_BHT - series_BWC[:, -1:, targets]).reshape(len(rows), -1)
    fitted, *_ = np.linalg.lstsq(np.c_[inputs, np.ones(len(rows))], changes, rcond=None)
    weights = _from_levels(fitted, series_BWC.shape[2], targets)
    return {BASELINE_FILE: save({"weights": torch.from_numpy(weights).float().contiguous()})}, []


def _from_levels(weights: np.ndarray, columns: int, targets: np.ndarray) -> np.ndarray:
    """The weights of a forecast of changes as those of the same forecast from a whole window."""
    by_row = weights[:-1].reshape(-1, columns, weights.shape[1]).copy()
    by_row[-1] -= by_row.sum(0)
    by_row[-1] += np.tile(np.eye(columns)[:, targets], weights.shape[1] // len(targets))
    return np.r_[by_row.reshape(-1, weights.shape[1]), weights[-1:]]
