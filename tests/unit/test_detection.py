"""The detection task: losses added up, boxes in pixels of the given picture, rows, pictures and files."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dlrun.commands import _prediction_files
from dlrun.contracts import DataSpec, Goal, Outputs, WithFiles, WithPictures
from dlrun.errors import DlrunError
from dlrun.tasks import detection

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

LABELS = ("ant", "bee", "cat")
SPEC = DataSpec(("image",), "boxes", {"box_classes": 3, "boxes": 4, "channels": 3, "height": 20, "width": 40},
                {"image": (3, 20, 40)}, LABELS)  # fmt: skip


class Stub(nn.Module):
    """Gives these losses while it trains, else what it was told to find."""

    def __init__(self, losses: object = None, found: object = None) -> None:
        super().__init__()
        self.losses, self.found = losses, found
        self.seen: dict[str, Tensor] = {}

    def forward(self, image: Tensor, boxes: Tensor | None = None, box_labels: Tensor | None = None) -> object:
        if self.training:
            self.seen = {"image": image, "boxes": boxes, "box_labels": box_labels}
            return self.losses
        return self.found


def batch(size: int = 2, places: int = 3) -> dict[str, Tensor]:
    """Pictures of 40 x 20 pixels, given as 80 x 60, with a box of class 1 each and in the last a crowd of class 2."""
    boxes, labels = torch.zeros(size, places, 4), torch.full((size, places), -1)
    boxes[:, 0], labels[:, 0] = torch.tensor([10.0, 5.0, 30.0, 15.0]), 1
    boxes[-1, 1], labels[-1, 1] = torch.tensor([0.0, 0.0, 8.0, 8.0]), 2
    return {
        "id": torch.arange(size) + 7,
        "image": torch.full((size, 3, 20, 40), 99, dtype=torch.uint8),
        "boxes": boxes,
        "box_labels": labels,
        "box_crowd": labels == 2,
        "size": torch.tensor([[60, 80]] * size),
    }


def found(size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """The box of class 1 at score 0.9, one of class 0 at 0.2, and an empty place."""
    boxes = torch.tensor([[[10.0, 5.0, 30.0, 15.0], [0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 0.0, 0.0]]]).repeat(size, 1, 1)
    scores = torch.tensor([[0.9, 0.2, 0.0]]).repeat(size, 1)
    return boxes, scores, torch.tensor([[1, 0, -1]]).repeat(size, 1)


def said(size: int = 2, **settings) -> tuple[detection.DetectionTask, Outputs]:
    task = detection.build(SPEC, **settings)
    return task, task.outputs(Stub(found=found(size)).eval(), batch(size))


# ---------------------------------------------------------------- the loss


def test_the_loss_is_the_weighted_sum_of_the_models_losses_times_the_pictures():
    model = Stub(
        {"heat": torch.tensor(2.0, requires_grad=True), "size": torch.tensor(3.0), "offset": torch.tensor(5.0)}
    )
    task = detection.build(SPEC, loss_weights={"size": 0.1, "offset": 0})
    loss = task.loss(model, batch())
    assert loss.count == 2 == task.count(batch())
    assert loss.sum.item() == pytest.approx((2.0 + 0.3) * 2)
    assert loss.sum.requires_grad and task.additive is False


def test_a_model_is_not_trained_on_crowds():
    model = Stub({"heat": torch.tensor(1.0)})
    data = batch()
    detection.build(SPEC).loss(model, data)
    assert model.seen["box_labels"].tolist() == [[1, -1, -1], [1, -1, -1]]
    assert model.seen["boxes"] is data["boxes"] and data["box_labels"][1, 1] == 2
    without = {name: field for name, field in data.items() if name != "box_crowd"}
    detection.build(SPEC).loss(model, without)
    assert model.seen["box_labels"] is data["box_labels"]


def test_a_weight_of_an_unknown_loss_is_refused_with_the_nearest_one():
    task = detection.build(SPEC, loss_weights={"ofset": 2.0})
    with pytest.raises(DlrunError, match=r"task\.loss_weights: the model has no loss 'ofset'") as raised:
        task.loss(Stub({"heatmap": torch.tensor(1.0), "offset": torch.tensor(1.0)}), batch())
    assert raised.value.hint == "did you mean offset?"


def test_a_model_of_another_task_is_refused():
    task = detection.build(SPEC)
    with pytest.raises(DlrunError, match="the model gives a Tensor while it trains; detection needs losses by name"):
        task.loss(Stub(torch.zeros(2, 3)), batch())
    with pytest.raises(DlrunError, match=r"gives Tensor for 2 examples; detection needs boxes \[2, D, 4\]"):
        task.outputs(Stub(found=torch.zeros(2, 3)).eval(), batch())
    boxes, scores, labels = found()
    with pytest.raises(DlrunError, match=r"gives \[\[2, 3, 4\], \[2, 3\], \[2, 2\]\] for 2 examples"):
        task.outputs(Stub(found=(boxes, scores, labels[:, :2])).eval(), batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_threshold": 1.5}, r"task\.score_threshold: 1\.5 is not in \[0, 1\]"),
        ({"loss_weights": {"size": -1}}, r"task\.loss_weights\.size: -1 is not a number of at least 0"),
        ({"loss_weights": {"size": "big"}}, r"task\.loss_weights\.size: big is not a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DlrunError, match=message):
        detection.build(SPEC, **settings)


def test_data_without_boxes_is_refused_with_what_it_has():
    with pytest.raises(DlrunError, match="needs data with 'box_classes'; this data set has classes=3"):
        detection.build(DataSpec(("image",), "label", {"classes": 3}, {"image": (3, 8, 8)}))


# ---------------------------------------------------------------- outputs and metrics


def test_boxes_come_back_in_pixels_of_the_picture_as_it_was_given():
    task, outputs = said()
    assert outputs.ids.tolist() == [7, 8]
    assert outputs.fields["boxes"][0].tolist() == [[20.0, 15.0, 60.0, 45.0], [0.0, 0.0, 8.0, 6.0], [0.0] * 4]
    assert outputs.fields["true_boxes"][0, 0].tolist() == [20.0, 15.0, 60.0, 45.0]
    assert outputs.fields["size"].tolist() == [[60, 80], [60, 80]]
    assert isinstance(task, WithPictures) and isinstance(task, WithFiles)


def test_without_sizes_boxes_are_in_pixels_of_the_image_and_without_truth_there_is_none():
    data = {name: batch()[name] for name in ("id", "image")}
    outputs = detection.build(SPEC).outputs(Stub(found=found()).eval(), data)
    assert set(outputs.fields) == {"boxes", "scores", "labels"}
    assert outputs.fields["boxes"][1, 0].tolist() == [10.0, 5.0, 30.0, 15.0]


def test_outputs_of_batches_with_fewer_true_boxes_can_be_joined():
    task = detection.build(SPEC)
    parts = [task.outputs(Stub(found=found()).eval(), batch(places=places)) for places in (2, 4)]
    joined = Outputs.concatenate(parts)
    assert joined.fields["true_labels"].tolist() == [[1, -1, -1, -1], [1, 2, -1, -1]] * 2
    assert joined.fields["true_crowd"][1].tolist() == [False, True, False, False]


def test_what_is_found_where_it_is_scores_one():
    task, outputs = said()
    (metric,) = task.metrics()
    metric.update(outputs)
    assert metric.compute()["ap50"] == metric.compute()["ap"] == 1.0
    assert task.goal == Goal("ap50", "max") and detection.build(SPEC, goal="ap").goal == Goal("ap", "max")


# ---------------------------------------------------------------- what a person sees


def test_rows_list_objects_above_the_threshold_and_the_truth():
    task, outputs = said()
    first, second = task.rows(outputs)
    assert first["id"] == 7
    assert first["objects"] == [
        {"label": "bee", "score": pytest.approx(0.9), "box": [20.0, 15.0, 40.0, 30.0]},
    ]
    assert second["truth"] == [
        {"label": "bee", "box": [20.0, 15.0, 40.0, 30.0]},
        {"label": "cat", "box": [0.0, 0.0, 16.0, 24.0], "crowd": True},
    ]
    generous = detection.build(SPEC, score_threshold=0.1)
    assert [row["label"] for row in generous.rows(outputs)[0]["objects"]] == ["bee", "ant"]


def test_rows_of_unknown_truth_and_unnamed_classes_have_numbers():
    unnamed = DataSpec(("image",), "boxes", {"box_classes": 3}, {"image": (3, 20, 40)})
    data = {name: batch()[name] for name in ("id", "image")}
    task = detection.build(unnamed)
    (row, _) = task.rows(task.outputs(Stub(found=found()).eval(), data))
    assert row["objects"][0]["label"] == "1" and "truth" not in row


def test_the_index_lists_every_detection_as_coco_does():
    task, outputs = said()
    name, listed = task.index(["a", "b"], ["a.jpg", "b.jpg"], outputs)
    assert name == "predictions.json" and len(listed["annotations"]) == 4
    assert listed["images"][0] == {"id": 7, "file_name": "a.jpg", "height": 60, "width": 80}
    assert listed["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}, {"id": 3, "name": "cat"}]
    assert listed["annotations"][1] == {"id": 23, "image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 8.0, 6.0],
                                        "area": 48.0, "iscrowd": 0, "score": pytest.approx(0.2)}  # fmt: skip


def test_the_index_of_several_chunks_is_one_file_that_pycocotools_reads(tmp_path):
    coco_module = pytest.importorskip("pycocotools.coco")
    task, outputs = said()
    first, second = (
        task.index(names, names, Outputs(outputs.ids - first, outputs.fields))[1]
        for names, first in ((["a.jpg", "b.jpg"], 7), (["c.jpg", "d.jpg"], 5))
    )
    (tmp_path / "predictions.json").write_text(_prediction_files._json(_prediction_files._joined(first, second)))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO(str(tmp_path / "predictions.json"))
        found = coco.loadRes(coco.dataset["annotations"])
    assert [coco.imgs[number]["file_name"] for number in sorted(coco.imgs)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [category["name"] for category in coco.dataset["categories"]] == list(LABELS)
    assert len(coco.anns) == len(found.anns) == 8 and min(coco.anns) > 0  # 0 means none to its evaluation


def test_pictures_show_the_truth_beside_what_was_found():
    task, outputs = said()
    both = task.pictures(batch(), outputs)
    known = {name: outputs.fields[name] for name in ("boxes", "scores", "labels", "size")}
    alone = task.pictures(batch(), Outputs(outputs.ids, known))
    assert len(both) == 2 and both[0].width > 2 * alone[0].width - 1 and both[0].height == alone[0].height
    bare = task.pictures(batch(), Outputs(outputs.ids, known | {"labels": torch.full((2, 3), -1)}))
    assert alone[0].tobytes() != bare[0].tobytes()


def test_files_are_pictures_as_large_as_they_were_given_with_boxes_where_they_were_found():
    spec = DataSpec(("image",), "boxes", {"box_classes": 3, "boxes": 4}, {"image": (3, 100, 200)}, ("", "", ""))
    task = detection.build(spec)
    data = {"id": torch.arange(1), "image": torch.full((1, 3, 100, 200), 99, dtype=torch.uint8)}
    data["size"] = torch.tensor([[200, 400]])
    boxes = torch.tensor([[[50.0, 20.0, 150.0, 80.0]]])
    model = Stub(found=(boxes, torch.tensor([[0.9]]), torch.tensor([[1]]))).eval()
    ((name, content),) = task.files(["cells"], data, task.outputs(model, data))
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    assert name == "cells.png" and picture.size == (400, 200)
    assert picture.getpixel((200, 100)) == (99, 99, 99)  # inside
    assert picture.getpixel((100, 100)) != (99, 99, 99) != picture.getpixel((299, 100))  # its left and right edges
    assert picture.getpixel((96, 100)) == (99, 99, 99) == picture.getpixel((304, 100))
