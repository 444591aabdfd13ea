"""Average precision: pycocotools as the oracle, numbers worked out by hand, and what ranks must not change."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math

import pytest
import torch
from torch import Tensor

from dlrun.contracts import DataSpec, Gathered, Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.detection import AveragePrecision
from dlrun.tasks import detection

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

SQUARE = (10.0, 10.0, 50.0, 50.0)
ELSEWHERE = (100.0, 100.0, 150.0, 150.0)


def outputs(examples: list[dict], first_id: int = 0) -> Outputs:
    """Outputs of examples given as {"said": [(label, score, box)], "truth": [(label, box) or (label, box, True)]}."""

    def padded(name: str, column: int, empty: object) -> list[list]:
        most = max(1, *(len(example[name]) for example in examples))
        rows = [[entry[column] if column < len(entry) else False for entry in example[name]] for example in examples]
        return [row + [empty] * (most - len(row)) for row in rows]

    nothing = (0.0, 0.0, 0.0, 0.0)
    fields = {
        "labels": torch.tensor(padded("said", 0, -1)),
        "scores": torch.tensor(padded("said", 1, 0.0)),
        "boxes": torch.tensor(padded("said", 2, nothing)),
        "true_labels": torch.tensor(padded("truth", 0, -1)),
        "true_boxes": torch.tensor(padded("truth", 1, nothing)),
        "true_crowd": torch.tensor(padded("truth", 2, False)),
    }
    return Outputs(torch.arange(first_id, first_id + len(examples)), fields)


def measured(examples: list[dict], num_classes: int = 1) -> dict[str, float]:
    metric = AveragePrecision(num_classes)
    metric.update(outputs(examples))
    return metric.compute()


def drawn(num_images: int = 25, num_classes: int = 4, places: int = 8, seed: int = 0) -> Outputs:
    """Random truth of all sizes, some of it crowds, and detections that are shifted truth or nonsense."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    low = uniform(num_images, places, 2) * 400
    size = torch.exp(uniform(num_images, places, 2) * 4 + 1.5)
    true_boxes = torch.cat([low, low + size], -1)
    true_labels = (uniform(num_images, places) * (num_classes + 2)).long() - 2
    shifted = true_boxes + (uniform(num_images, places, 4) - 0.5) * size.repeat(1, 1, 2) * 0.4
    nonsense = true_boxes.roll(1, 0)
    labels = torch.cat([true_labels, true_labels.roll(1, 1)], 1).clamp(max=num_classes - 1)
    fields = {
        "boxes": torch.cat([shifted, nonsense], 1),
        "scores": uniform(num_images, 2 * places),
        "labels": labels,
        "true_boxes": true_boxes,
        "true_labels": true_labels,
        "true_crowd": uniform(num_images, places) < 0.1,
    }
    return Outputs(torch.arange(num_images) + 3, fields)


def by_pycocotools(given: Outputs, num_classes: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The same values, and ap, ap50 and ap75 of each class, counted by pycocotools from the same boxes."""
    coco_module = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth, said = [], []
    for index, example in enumerate(given.ids.tolist()):
        rows = {name: field[index].tolist() for name, field in given.fields.items()}
        for label, box, crowd in zip(rows["true_labels"], rows["true_boxes"], rows["true_crowd"], strict=True):
            if label >= 0:
                left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                common = {"id": len(truth) + 1, "image_id": example, "category_id": label + 7, "iscrowd": int(crowd)}
                truth.append(common | {"bbox": [left, top, width, height], "area": width * height})
        for label, score, box in zip(rows["labels"], rows["scores"], rows["boxes"], strict=True):
            if label >= 0:
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                said.append({"image_id": example, "category_id": label + 7, "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = {
            "images": [{"id": example} for example in given.ids.tolist()],
            "categories": [{"id": index + 7} for index in range(num_classes)],
            "annotations": truth,
        }
        coco.createIndex()
        run = evaluation.COCOeval(coco, coco.loadRes(said), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "", "", "ar100")
    values = {name: float(value) for name, value in zip(names, run.stats, strict=False) if name}
    precision = run.eval["precision"][..., 0, 2]
    each = {"ap": precision.mean((0, 1)), "ap50": precision[0].mean(0), "ap75": precision[5].mean(0)}
    return values, {name: value.tolist() for name, value in each.items()}


@pytest.mark.parametrize("seed", range(3))
def test_every_value_is_that_of_pycocotools(seed):
    given = drawn(seed=seed)
    metric = AveragePrecision(4)
    metric.update(given)
    values, by_class = by_pycocotools(given, 4)
    assert metric.compute() == pytest.approx(values, abs=1e-6)
    for name, expected in by_class.items():
        assert metric.tables()[f"{name}_by_class"] == pytest.approx(expected, abs=1e-6)
    assert len(set(by_class["ap50"])) == 4, "classes that score alike could be swapped unseen"


def test_a_hit_a_miss_and_a_hit_by_hand():
    said = [(0, 0.9, SQUARE), (0, 0.8, (200.0, 0.0, 240.0, 40.0)), (0, 0.7, ELSEWHERE)]
    values = measured([{"said": said, "truth": [(0, SQUARE), (0, ELSEWHERE)]}])
    # Precision is 1 up to a recall of a half (51 of the 101 points), and two thirds beyond.
    assert values["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert values["ap"] == pytest.approx(values["ap50"]) and values["ap75"] == pytest.approx(values["ap50"])
    assert values["ar100"] == 1.0
    assert values["ap_medium"] == pytest.approx(values["ap50"]) and "ap_small" not in values


def test_a_box_counts_at_as_many_overlaps_as_it_reaches():
    narrower = (10.0, 10.0, 43.0, 50.0)  # 33 of 40 columns: an overlap of 0.825
    values = measured([{"said": [(0, 0.9, narrower)], "truth": [(0, SQUARE)]}])
    assert values["ap"] == pytest.approx(0.7)  # seven of ten: 0.5, 0.55 … 0.8
    assert values["ap50"] == values["ap75"] == 1.0


def test_nothing_found_scores_zero():
    values = measured([{"said": [], "truth": [(0, SQUARE)]}])
    assert (values["ap"], values["ap50"], values["ar100"]) == (0.0, 0.0, 0.0)


def test_a_detection_in_an_example_without_truth_is_a_false_one():
    right = {"said": [(0, 0.5, SQUARE)], "truth": [(0, SQUARE)]}
    empty = {"said": [(0, 0.9, SQUARE)], "truth": []}
    assert measured([right])["ap50"] == 1.0
    assert measured([right, empty])["ap50"] == pytest.approx(0.5)


def test_a_crowd_is_neither_to_be_found_nor_a_mistake_to_find():
    found = [(0, 0.9, ELSEWHERE), (0, 0.8, SQUARE)]
    in_crowd = {"said": found, "truth": [(0, SQUARE), (0, (90.0, 90.0, 300.0, 300.0), True)]}
    assert measured([in_crowd])["ap50"] == 1.0
    assert measured([in_crowd | {"said": found[1:]}])["ap50"] == 1.0
    assert measured([in_crowd | {"truth": [(0, SQUARE)]}])["ap50"] == pytest.approx(0.5)


def test_classes_keep_their_index():
    said = [(2, 0.9, SQUARE), (0, 0.8, ELSEWHERE)]
    spec = DataSpec(("image",), "boxes", {"box_classes": 4}, {}, ("cat", "dog", "cow", "hen"))
    (metric,) = detection.build(spec).metrics()
    metric.update(outputs([{"said": said, "truth": [(2, SQUARE), (1, ELSEWHERE)]}]))
    tables = metric.tables()
    first, *lines = tables.pop("signatures")
    assert tables == {f"{name}_by_class": [None, 0.0, 1.0, None] for name in ("ap", "ap50", "ap75")}
    assert first.startswith("AP over 2 of 4 classes (COCO's: at overlaps 0.5 to 0.95, at most 100 detections")
    assert lines == [f"{name}: cat none, dog 0.000, cow 1.000, hen none" for name in ("ap", "ap50", "ap75")]
    assert metric.compute()["ap50"] == pytest.approx(0.5)


def test_boxes_of_unknown_truth_count_for_nothing():
    metric = AveragePrecision(2)
    given = outputs([{"said": [(0, 0.9, SQUARE)], "truth": []}])
    metric.update(Outputs(given.ids, {name: given.fields[name] for name in ("boxes", "scores", "labels")}))
    assert metric.rows().shape == (0, 9) and metric.rows().dtype == torch.float64
    assert all(math.isnan(value) for value in metric.compute().values())
    assert set(metric.compute()) == {"ap", "ap50", "ap75", "ar100"}
    assert "signatures" not in metric.tables()


def test_ranks_may_be_gathered_in_any_order():
    given = drawn(seed=4)
    given.fields["scores"] = (given.fields["scores"] * 5).round() / 5  # many are equal
    parts = [Outputs(given.ids[rows], {name: field[rows] for name, field in given.fields.items()})
             for rows in (slice(0, 10), slice(10, 11), slice(11, 25))]  # fmt: skip
    ranks = [AveragePrecision(4) for _ in parts]
    for rank, part in zip(ranks, parts, strict=True):
        rank.update(part)
        assert isinstance(rank, Gathered) and rank.state() == []
    whole = AveragePrecision(4)
    whole.update(given)
    expected = whole.compute()
    for order in ([0, 1, 2], [2, 0, 1]):
        together = torch.cat([ranks[index].rows() for index in order])
        gathered = AveragePrecision(4)
        gathered.receive(together)
        assert gathered.compute() == expected


def test_a_rank_without_examples_receives_those_of_the_others():
    other = AveragePrecision(1)
    other.update(outputs([{"said": [(0, 0.9, SQUARE)], "truth": [(0, SQUARE)]}]))
    idle = AveragePrecision(1)
    assert math.isnan(idle.compute()["ap50"])
    idle.receive(torch.cat([idle.rows(), other.rows()]))
    assert idle.compute()["ap50"] == 1.0


def test_nothing_is_printed(capfd):
    measured([{"said": [(0, 0.9, SQUARE)], "truth": [(0, SQUARE)]}])
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_said_when_the_task_is_built(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    spec = DataSpec(("image",), "boxes", {"box_classes": 1}, {"image": (3, 8, 8)})
    with pytest.raises(DlrunError, match="need faster-coco-eval") as raised:
        detection.build(spec)
    assert raised.value.hint == 'pip install "dlrun[detection]"'
