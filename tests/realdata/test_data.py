"""Real data sets, found through DLRUN_TEST_DATA: what the rooms say of them agrees with what is published."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.contracts import IGNORED
from dlrun.data import coco, files, masks, voc
from dlrun.errors import DlrunError

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("DLRUN_TEST_DATA" not in os.environ, reason="DLRUN_TEST_DATA does not name the real data sets"),
]


def build(name: str, component=files, **settings):
    place = Path(os.environ["DLRUN_TEST_DATA"]) / name
    if not place.exists():
        pytest.skip(f"DLRUN_TEST_DATA has no {name}")
    return component.build(SimpleNamespace(seed=0, assets=None), path=str(place), **settings)


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


def bccd() -> str:
    file = Path(os.environ["DLRUN_TEST_DATA"]) / "bccd" / "BCCD.zip"
    if not file.is_file():
        pytest.skip("DLRUN_TEST_DATA has no bccd")
    return str(file)


def every_box(dataset, split: str) -> list[tuple]:
    """Size of the picture and all its named boxes, for each picture of a split."""
    batch = dataset.split(split).gather(torch.arange(len(dataset.split(split))))
    return [
        (tuple(size.tolist()), sorted((dataset.spec.labels[code], *box) for code, box in zip(codes, boxes, strict=True)
                                      if code >= 0))
        for size, codes, boxes in zip(batch["size"], batch["box_labels"].tolist(), batch["boxes"].tolist(), strict=True)
    ]  # fmt: skip


def test_blood_cells_have_the_published_boxes_and_coco_and_voc_agree():
    tools = SimpleNamespace(seed=0, assets=None)
    by_coco = coco.build(tools, path=bccd(), image_size=[240, 320])
    by_voc = voc.build(tools, path=bccd(), image_size=[240, 320], on_bad="skip")
    assert by_coco.spec.labels == ("RBC", "WBC", "Platelets")
    assert by_voc.spec.labels == ("Platelets", "RBC", "WBC")
    for split, counts in (("train", [2381, 214, 209]), ("valid", [967, 87, 83]), ("test", [805, 71, 69])):
        batch = by_coco.split(split).gather(torch.arange(len(by_coco.split(split))))
        codes = batch["box_labels"]
        assert torch.bincount(codes[codes >= 0]).tolist() == counts
        assert every_box(by_coco, split) == every_box(by_voc, split)
        widths = (batch["boxes"][..., 2] - batch["boxes"][..., 0])[codes >= 0]
        assert widths.min() > 0 and batch["boxes"][..., 2].max() <= 320 and batch["boxes"][..., 3].max() <= 240
    assert any("2 rows or boxes that cannot be read are left out" in note for note in by_voc.notes)


def test_blood_cells_of_zero_size_are_named():
    with pytest.raises(DlrunError, match=r"object 3 of BloodImage_00343.xml: the box from 181,329 .* has no area"):
        voc.build(SimpleNamespace(seed=0, assets=None), path=bccd(), image_size=64)


CAMVID = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
          "Bicyclist"]  # fmt: skip
SHARES = [0.158, 0.241, 0.010, 0.293, 0.067, 0.112, 0.011, 0.014, 0.046, 0.006, 0.005, 0.036]


def test_road_scenes_have_the_published_rows_and_shares_of_classes():
    dataset = build("camvid", masks, image_size=[45, 60], classes=CAMVID, ignored=[11])
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 367, "valid": 101, "test": 233}
    assert dataset.spec.sizes == {
        "channels": 3, "height": 45, "width": 60, "pixel_classes": 11, "mask_height": 360, "mask_width": 480,
    }  # fmt: skip
    counts = torch.zeros(256, dtype=torch.int64)
    for split in dataset.splits.values():
        batch = split.gather(torch.arange(len(split)))
        assert (batch["size"] == torch.tensor([360, 480])).all()
        counts += torch.bincount(batch["mask"].flatten(), minlength=256)
    shares = counts / counts.sum()
    assert torch.cat([shares[:11], shares[IGNORED:]]).tolist() == pytest.approx(SHARES, abs=6e-4)


def test_steering_is_a_number_to_predict_in_blocks_of_time():
    dataset = build("steering_angle/frames.parquet", target="steering", image_size=[20, 40], blocks=10,
                    valid_blocks=[6], test_blocks=[4, 8])  # fmt: skip
    assert dataset.spec.labels == ("steering",)
    assert dataset.spec.sizes["targets"] == 1
    parts = {name: split.gather(torch.arange(len(split))) for name, split in dataset.splits.items()}
    assert parts["valid"]["id"].tolist() == list(range(608, 709))
    assert parts["test"]["id"].tolist() == [*range(405, 507), *range(811, 912)]
    steering = torch.cat([part["target"] for part in parts.values()])
    assert len(steering) == 1014
    assert (steering == 0).float().mean() == pytest.approx(0.74, abs=0.005)
    assert steering.square().mean() == pytest.approx(0.035, abs=5e-4)
