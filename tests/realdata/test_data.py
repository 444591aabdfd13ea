"""Real data sets, found through DLRUN_TEST_DATA: what the rooms say of them agrees with what is published."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.data import files
from dlrun.errors import DlrunError

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("DLRUN_TEST_DATA" not in os.environ, reason="DLRUN_TEST_DATA does not name the real data sets"),
]


def build(name: str, **settings):
    folder = Path(os.environ["DLRUN_TEST_DATA"]) / name
    if not folder.is_dir():
        pytest.skip(f"DLRUN_TEST_DATA has no {name}")
    return files.build(SimpleNamespace(seed=0, assets=None), path=str(folder), **settings)


def test_fashion_mnist_has_the_published_rows_labels_and_pixels():
    dataset = build("fashion_mnist", valid_size=5000)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 55000,
        "valid": 5000,
        "test": 10000,
    }
    assert dataset.spec.sizes == {"classes": 10, "channels": 1, "height": 28, "width": 28}
    assert dataset.spec.labels[0] == "T-shirt/top"
    assert dataset.spec.labels[9] == "Ankle boot"
    assert dataset.spec.assets["mean"] == pytest.approx([0.2860], abs=5e-4)
    assert dataset.spec.assets["std"] == pytest.approx([0.3530], abs=5e-4)
    for name, count in (("train", 5500), ("valid", 500), ("test", 1000)):
        split = dataset.split(name)
        batch = split.gather(torch.arange(len(split)))
        assert torch.bincount(batch["label"]).tolist() == [count] * 10
    assert dataset.split("test").gather(torch.tensor([0]))["label"].tolist() == [9]


def test_cifar10_can_be_scored_on_its_validation_rows():
    dataset = build("cifar10_jpeg", splits={"train": "train", "test": "validation"}, valid_size=5000)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 40000, "valid": 5000, "test": 5000}
    assert dataset.spec.labels[:3] == ("airplane", "automobile", "bird")
    assert dataset.spec.assets["mean"] == pytest.approx([0.491, 0.482, 0.447], abs=2e-3)
    assert dataset.spec.assets["std"] == pytest.approx([0.245, 0.243, 0.261], abs=2e-3)


def test_streamed_fashion_mnist_gives_the_batches_of_the_held_one():
    settings = {"mean": [0.5], "std": [0.5], "train_size": 1000, "valid_size": 100, "splits": {"train": "train"}}
    held, streamed = (
        build("fashion_mnist", memory=memory, test_size=100, **settings) for memory in ("always", "never")
    )
    rows = torch.arange(0, 1000, 7)
    one, other = held.split("train").gather(rows), streamed.split("train").gather(rows)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert held.fingerprint == streamed.fingerprint


def test_tables_of_numbers_are_learned_from_the_columns_named():
    dataset = build("adult", target="income", columns=["age", "education-num", "hours-per-week"])
    assert dataset.spec.labels == ("<=50K", ">50K")
    assert len(dataset.split("test")) == 16281
    with pytest.raises(DlrunError, match="not numbers: workclass, education"):
        build("adult", target="income")
