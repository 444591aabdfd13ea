"""A run that learns a class a pixel, from made pictures: trained, scored, evaluated, asked about new ones."""

import json

import numpy as np
import pytest
from PIL import Image

from dlrun import predictor
from dlrun import runs as run_folders

ROADS = ("task=segmentation", "data=roads", "data.target=mask", "data.num_pictures=120", "data.batch_size=8",
         "model=unet", "model.width=8", "model.depth=2", "model.stem_stride=2", "optimizer.lr=0.02")  # fmt: skip


@pytest.fixture
def road(train):
    return train(*ROADS, "train.duration=25 steps", "train.evaluate_every=25 steps", "name=road")


def test_a_segmentation_run_learns_shows_its_pictures_and_its_predictor_scores_the_same(road):
    result = run_folders.read_json(road.folder / "result.json")
    assert result["goal"]["name"] == "mean_iou"
    assert result["metrics"]["test/mean_iou"] > 0.4  # the commonest class alone: 0.1
    assert set(result["metrics"]) == {f"{split}/{name}" for split in ("valid", "test") for name in
                                      ("mean_iou", "pixel_accuracy", "mean_class_accuracy", "loss")}  # fmt: skip
    counts = run_folders.read_json(road.folder / "confusion.json")
    assert counts["labels"] == ["sky", "grass", "road", "mark"]
    assert np.sum(counts["counts"]) == 24 * 48 * 96  # every pixel of the 24 test pictures
    assert (road.folder / "figures" / "validation-00000025.png").is_file()
    trained = predictor.load(road.folder)
    (metric,) = trained.task.metrics()
    metric.update(trained.predict_split("test"))
    assert metric.compute() == pytest.approx(
        {name: result["metrics"][f"test/{name}"] for name in metric.compute()}, rel=1e-4
    )


def test_classes_sizes_and_the_values_by_class_are_said_by_training_and_evaluation(road, dlrun):
    size, by_class = run_folders.read_json(road.folder / "result.json")["signatures"]
    assert size == "mean IoU over 4 classes at 96 x 48"
    assert by_class.startswith("iou: sky 0.") and by_class.count(",") == 3
    code, out, err = dlrun("evaluate", "road")
    assert code == 0 and size in out and by_class in out, err
    code, out, err = dlrun("evaluate", "road", "data.drive_seed=1", "--json")
    assert code == 0, err
    other = run_folders.find(road.folder.parents[1], json.loads(out)["run_id"])
    table = run_folders.read_json(other.folder / "report" / "iou.json")
    assert table["labels"] == ["sky", "grass", "road", "mark"] and len(table["values"]) == 4
    assert (other.folder / "confusion.json").is_file()


def test_predictions_of_new_pictures_are_masks_of_their_own_size(road, dlrun, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (60, 140, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "street.png")
    code, out, err = dlrun("predict", "road", str(tmp_path / "street.png"), "--out", str(tmp_path / "said"), "--json")
    assert code == 0, err
    (said,) = json.loads(out)["predictions"]
    mask = Image.open(tmp_path / "said" / "street.mask.png")
    assert mask.size == (140, 60)
    assert sum(said["classes"].values()) == pytest.approx(1)
    assert set(np.unique(np.asarray(mask))) <= set(range(4))
    index = json.loads((tmp_path / "said" / "predictions.json").read_text())
    assert index["classes"] == ["sky", "grass", "road", "mark"]


@pytest.mark.parametrize("overrides", [
    ("task=segmentation", "model=unet"), ("task=segmentation", "data=roads", "model=unet"),
])  # fmt: skip
def test_data_without_masks_is_refused_in_one_line(dlrun, overrides):
    code, _, err = dlrun("train", *overrides)
    assert code == 2
    assert "this task or model needs data with 'pixel_classes'; this data set has" in err
    assert ("it has that too: data.target=mask" in err) == ("data=roads" in overrides)
