"""Training speed on a table, as ratios in one run: dlrun against the usual loops over a DataLoader.

DLRUN_TEST_DATA=FOLDER python benchmarks/tabular_speed.py [--rounds 3] [--steps 300] [--batch 256] [--models …]

The same model, the same AdamW, the same 32,561 rows of UCI Adult. What differs is how rows become batches: gathered at
once by index; one by one from tensors that were scaled and coded before (skorch reads those too); or one by one from a
DataFrame, scaled and coded as they are asked for. Two models: the linear one, whose arithmetic is next to nothing,
shows what feeding it costs; of the perceptron's steps most is arithmetic that all contenders share.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _measure import data_folder, dlrun_rate, in_turn, median, ratio
from torch.nn.functional import cross_entropy

from dlrun.contracts import Dataset
from dlrun.data import table
from dlrun.data._mixed_columns import FILE, MixedColumns
from dlrun.models import tabular_linear, tabular_mlp

SETTINGS = {"target": "income", "missing": ["?"], "scaling": "quantile"}
MODELS = {"tabular_linear": tabular_linear.build, "tabular_mlp": tabular_mlp.build}
_SKIPPED = 10  # steps before the clock starts


def adult() -> Dataset:
    return table.build(SimpleNamespace(seed=0, spec=None), path=str(data_folder() / "adult"), **SETTINGS)  # type: ignore[arg-type]


class Rows(torch.utils.data.Dataset):
    """One row at a time, as a Dataset over a table is usually written."""

    def __init__(self, data: Dataset) -> None:
        split = data.split("train")
        whole = split.gather(torch.arange(len(split)))
        self.numbers, self.categories, self.labels = whole["numbers"], whole["categories"], whole["label"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.numbers[index], self.categories[index], self.labels[index]


class FrameRows(torch.utils.data.Dataset):
    """One row of a DataFrame at a time: its numbers standardised, its words looked up."""

    def __init__(self, data: Dataset) -> None:
        import pandas

        frame = pandas.read_csv(data_folder() / "adult" / "train.csv.gz", keep_default_na=False)
        self.labels = torch.from_numpy((frame["income"] == ">50K").to_numpy().astype("int64"))
        columns = MixedColumns.from_bytes(data.spec.files[FILE])
        self.numbers = [(column.name, column.mean, column.std) for column in columns.numbers]
        self.categories = [
            (column.name, {value: code for code, value in enumerate(column.values, start=2)})
            for column in columns.categories
        ]
        self.frame = frame

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        row = self.frame.iloc[index]
        numbers = [(float(row[name]) - mean) / std for name, mean, std in self.numbers]
        codes = [places.get(row[name], 1) for name, places in self.categories]
        return torch.tensor(numbers), torch.tensor(codes), self.labels[index]


def loader_rate(
    data: Dataset, rows: torch.utils.data.Dataset, model_name: str, batch_size: int, steps: int, workers: int
) -> float:
    """Rows a second of the loop over a DataLoader."""
    torch.manual_seed(0)
    model = MODELS[model_name](data.spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    loader = torch.utils.data.DataLoader(
        rows, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    started, seen = 0.0, 0
    for step, (numbers, categories, labels) in enumerate(itertools.islice(epochs, steps + _SKIPPED)):
        if step == _SKIPPED:
            started, seen = time.perf_counter(), 0
        optimizer.zero_grad()
        loss = cross_entropy(model(numbers, categories), labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
    return seen / (time.perf_counter() - started)


class Named(torch.nn.Module):
    """A model whose inputs are called as skorch passes them on."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        return self.model(numbers, categories)


def skorch_rate(data: Dataset, rows: Rows, model_name: str, batch_size: int, steps: int) -> float:
    """Rows a second of skorch's fit on ready tensors, in whole epochs, with what it does by itself (it scores none)."""
    import skorch

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "criterion": torch.nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": 1e-3, "train_split": None,
        "optimizer__weight_decay": 0.01, "batch_size": batch_size, "iterator_train__shuffle": True, "max_epochs": 1,
        "verbose": 0,
    }  # fmt: skip
    net = skorch.NeuralNetClassifier(Named(MODELS[model_name](data.spec)), **settings)
    given, labels = {"numbers": rows.numbers.float(), "categories": rows.categories}, rows.labels
    net.fit(given, labels)
    epochs = max(1, steps * batch_size // len(labels))
    start = time.perf_counter()
    net.partial_fit(given, labels, epochs=epochs)
    return epochs * len(labels) / (time.perf_counter() - start)


def dlrun_rows(model_name: str, batch_size: int, steps: int) -> float:
    """Rows a second of a real run."""
    path = data_folder() / "adult"
    return dlrun_rate(
        "data=table", f"data.path={path}", "data.target=income", "data.missing=['?']", "data.scaling=quantile",
        f"data.batch_size={batch_size}", f"model={model_name}", "optimizer=adamw", "optimizer.lr=0.001",
        f"train.duration={steps + _SKIPPED} steps", "hardware.device=cpu", "tracking.system_metrics=false",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    given = parser.parse_args()
    data = adult()
    for model in given.models:
        compare(data, model, given)


def compare(data: Dataset, model: str, given: argparse.Namespace) -> None:
    """Print the rates of all contenders on one model."""
    tensors, frame = Rows(data), FrameRows(data)
    contenders: dict[str, Callable[[], float]] = {
        "dlrun": lambda: dlrun_rows(model, given.batch, given.steps),
        "tensors": lambda: loader_rate(data, tensors, model, given.batch, given.steps, 0),
        "tensors, two workers": lambda: loader_rate(data, tensors, model, given.batch, given.steps, 2),
        "DataFrame": lambda: loader_rate(data, frame, model, given.batch, given.steps, 0),
        "DataFrame, two workers": lambda: loader_rate(data, frame, model, given.batch, given.steps, 2),
    }
    if importlib.util.find_spec("skorch"):
        contenders["skorch"] = lambda: skorch_rate(data, tensors, model, given.batch, given.steps)
    else:
        print("skorch is not installed and left out: pip install -e '.[bench]'", file=sys.stderr)
    found = in_turn(contenders, given.rounds)
    print(f"{model}, batches of {given.batch}")
    for name, rates in found.items():
        print(f"  {name:<26} {median(rates):12.0f} rows/s   {ratio(found['dlrun'], rates):6.2f} x")


if __name__ == "__main__":
    main()
