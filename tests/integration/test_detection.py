"""A run that learns to find things in made pictures: trained, evaluated, asked about new pictures, exported."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from dlrun import predictor
from dlrun import runs as run_folders

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")
pytestmark = pytest.mark.slow

SCENES = ("task=detection", "data=scenes", "data.num_train=120", "data.num_valid=12", "data.num_test=12",
          "data.image_size=64", "data.most_digits=2", "data.batch_size=8", "optimizer.lr=0.004",
          "name=scene")  # fmt: skip
CENTER = ("model=center", "model.width=8", "model.max_detections=10")


def signatures(lines: list[str]) -> list[str]:
    """What each line is of."""
    return [line.partition(":")[0].partition(" over")[0] for line in lines]


def test_a_detector_is_trained_evaluated_and_asked_about_new_pictures(train, dlrun, tmp_path):
    run = train(*SCENES, *CENTER, "train.duration=60 steps", "train.evaluate_every=60 steps")
    result = run_folders.read_json(run.folder / "result.json")
    assert result["goal"]["name"] == "ap50" and result["metrics"]["test/ap50"] > 0
    assert signatures(result["signatures"]) == ["AP", "ap", "ap50", "ap75"]
    for name in ("ap", "ap50", "ap75"):
        table = run_folders.read_json(run.folder / "report" / f"{name}_by_class.json")
        assert table["labels"] == [*"0123456789"] and len(table["values"]) == 10
    assert (run.folder / "figures" / "validation-00000060.png").is_file()

    trained = predictor.load(run.folder)
    (metric,) = trained.task.metrics()
    metric.update(trained.predict_split("test"))
    assert metric.compute()["ap50"] == pytest.approx(result["metrics"]["test/ap50"], abs=1e-4)
    code, out, err = dlrun("evaluate", "scene")
    assert code == 0 and "ap75: 0 " in out, err
    code, out, err = dlrun("evaluate", "scene", "data.scene_seed=1", "--json")
    assert code == 0, err
    other = run_folders.find(run.folder.parents[1], json.loads(out)["run_id"])
    assert (other.folder / "report" / "ap75_by_class.json").is_file()
    assert signatures(run_folders.read_json(other.folder / "result.json")["signatures"]) == ["AP", "ap", "ap50", "ap75"]

    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(3)]
    code, out, err = dlrun("predict", "scene", *pictures, "--out", str(tmp_path / "said"), "--json")
    assert code == 0, err
    assert len(json.loads(out)["predictions"]) == 3
    with Image.open(tmp_path / "said" / "2.png") as drawn:
        assert drawn.size == (140, 60)
    coco_module = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO(str(tmp_path / "said" / "predictions.json"))
        coco.loadRes(coco.dataset["annotations"])
    assert [image["file_name"] for image in coco.dataset["images"]] == ["0.png", "1.png", "2.png"]
    assert [category["name"] for category in coco.dataset["categories"]] == [*"0123456789"]


@pytest.mark.parametrize("model", [CENTER, ("model=ssdlite320", "model.max_detections=10")])
def test_an_exported_detector_is_checked_against_the_run(train, dlrun, tmp_path, model):
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    train(*SCENES, *model, "train.duration=2 steps", "train.evaluate_every=2 steps")
    code, out, err = dlrun(
        "export", "scene", "--output", str(tmp_path / "out"), "--format", "onnx", "--check", "--json"
    )
    assert code == 0, err
    check = json.loads(out)["check"]
    assert check["metric"] == "ap50" and check["exported"] == pytest.approx(check["model"], abs=check["allowed"])
    assert "pipeline_tag: object-detection" in (tmp_path / "out" / "README.md").read_text()


def test_a_detector_is_not_distilled_and_no_run_is_left_behind(train, dlrun):
    run = train(*SCENES, *CENTER, "train.duration=2 steps", "train.evaluate_every=2 steps")
    code, _, err = dlrun("compress", "scene", "compression=distill")
    assert code == 2 and "distill: a detector says which boxes it chose" in err
    assert [found.id for found in run_folders.listing(run.folder.parents[1])] == [run.id]
