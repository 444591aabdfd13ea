"""The detectors: targets against a loop, maps that decode to the boxes they came from, torchvision as reference."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from dlrun._exporting_agreement import Loaded
from dlrun.contracts import DataSpec
from dlrun.data._inputs import make_inputs
from dlrun.errors import DlrunError
from dlrun.models import _peaks, center, torchvision_detection
from dlrun.models._torchvision_detector import Detector
from dlrun.transfer import _layout

# B batch, K boxes, D detections, C classes


def spec(channels: int = 3, height: int = 64, width: int = 96, classes: int = 3) -> DataSpec:
    sizes = {"box_classes": classes, "boxes": 4, "channels": channels, "height": height, "width": width}
    return DataSpec(("image",), "boxes", sizes, {"image": (channels, height, width)})


def truth(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Three boxes in the first picture, none in the others."""
    boxes, labels = torch.zeros(batch, 4, 4), torch.full((batch, 4), -1)
    boxes[0, :3] = torch.tensor([[5.0, 5.0, 33.0, 45.0], [50.0, 10.0, 62.0, 22.0], [60.0, 30.0, 90.0, 60.0]])
    labels[0, :3] = torch.tensor([0, 2, 2])
    return boxes, labels


def small(**settings) -> center.Center:
    torch.manual_seed(0)
    model = center.build(spec(), width=8, depth=1, **settings)
    assert isinstance(model, center.Center)
    return model


# ---------------------------------------------------------------- heatmaps


def test_the_heatmap_equals_one_drawn_box_by_box():
    boxes, labels = truth()
    found = _peaks.centers(boxes, labels, 4, 16, 24)
    expected = torch.zeros(2, 3, 16, 24)
    for (left, top, right, bottom), label in zip(boxes[0].tolist(), labels[0].tolist(), strict=True):
        if label < 0:
            continue
        x, y = int((left + right) / 8), int((top + bottom) / 8)
        size = torch.tensor([(right - left) / 4, (bottom - top) / 4])
        deviation = (2 * float(_peaks.radius(size)) + 1) / 6
        for row in range(16):
            for column in range(24):
                bell = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * deviation**2))
                expected[0, label, row, column] = max(expected[0, label, row, column], bell)
    torch.testing.assert_close(_peaks.heatmap(found, 3, 16, 24), expected)
    assert int((expected == 1).sum()) == 3


def test_a_box_whose_corners_move_by_the_radius_keeps_seven_tenths_overlap():
    sizes = torch.tensor([[10.0, 10.0], [30.0, 4.0], [7.0, 80.0]])
    for (width, height), reach in zip(sizes.tolist(), _peaks.radius(sizes).tolist(), strict=True):
        area, overlaps = width * height, []
        overlaps.append((width - 2 * reach) * (height - 2 * reach) / area)
        overlaps.append(area / ((width + 2 * reach) * (height + 2 * reach)))
        shared = (width - reach) * (height - reach)
        overlaps.append(shared / (2 * area - shared))
        assert min(overlaps) == pytest.approx(0.7, abs=1e-5)


def test_focal_loss_by_hand():
    logits = torch.tensor([0.0, math.log(3)]).reshape(1, 1, 1, 2)  # probabilities a half and three quarters
    target = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
    hit = 0.5**2 * math.log(0.5)
    miss = 0.5**4 * 0.75**2 * math.log(0.25)
    loss = _peaks.focal_loss(logits, target, torch.tensor(2))
    assert float(loss) == pytest.approx(-(hit + miss) / 2)


def test_peaks_are_the_largest_of_their_neighbours_from_the_highest_down():
    logits = torch.full((1, 2, 4, 5), -9.0)
    logits[0, 1, 2, 3], logits[0, 1, 2, 2], logits[0, 0, 0, 0] = 2.0, 1.0, 0.5
    found = _peaks.peaks(logits, 3)
    assert found.label[0, :2].tolist() == [1, 0]
    assert found.cell[0, :2].tolist() == [2 * 5 + 3, 0]
    assert found.score[0, 0] == pytest.approx(1 / (1 + math.exp(-2)))


# ---------------------------------------------------------------- center


def maps_of(boxes: Tensor, labels: Tensor, height: int, width: int, stride: int = 4) -> center.Maps:
    """Maps that say exactly these boxes."""
    found = _peaks.centers(boxes, labels, stride, height, width)
    logits = torch.full((len(boxes), 3, height, width), -9.0)
    sizes, offsets = torch.zeros(len(boxes), 2, height, width), torch.zeros(len(boxes), 2, height, width)
    for example, place in found.there.nonzero().tolist():
        row, column = divmod(int(found.cell[example, place]), width)
        logits[example, labels[example, place], row, column] = 3.0 - place
        sizes[example, :, row, column] = found.size[example, place].log()
        offsets[example, :, row, column] = found.middle[example, place] - torch.tensor([column, row])
    return center.Maps(logits, sizes, offsets)


def test_maps_of_boxes_decode_to_the_boxes_and_have_no_error_of_size_and_place():
    boxes, labels = truth()
    model, maps = small(max_detections=5), maps_of(*truth(), 16, 24)
    found, scores, found_labels = model.detections(maps, 64, 96)
    torch.testing.assert_close(found[0, :3], boxes[0, :3])
    assert found_labels[0, :3].tolist() == labels[0, :3].tolist()
    assert bool((scores[0, :3] > 0.7).all()) and bool((scores[0, 3:] < 0.01).all())
    losses = model.losses(maps, boxes, labels)
    assert float(losses["size"]) == pytest.approx(0, abs=1e-5) and float(losses["offset"]) == pytest.approx(0, abs=1e-5)


def test_boxes_are_cut_off_at_the_border_of_the_image():
    maps = maps_of(torch.tensor([[[-20.0, 40.0, 30.0, 90.0]]]), torch.tensor([[1]]), 16, 24)
    found, _, labels = small(max_detections=1).detections(maps, 64, 96)
    assert labels.tolist() == [[1]]
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 40.0, 30.0, 64.0]))


def test_places_beyond_the_peaks_are_empty():
    torch.manual_seed(0)
    model = center.build(spec(height=8, width=8), width=8, depth=1, max_detections=50).eval()
    with torch.no_grad():
        boxes, scores, labels = model(torch.randn(2, 3, 8, 8))
    assert boxes.shape == (2, 50, 4) and scores.shape == labels.shape == (2, 50)
    empty = labels < 0
    assert bool(empty.any()) and float(scores[empty].abs().sum()) == 0 == float(boxes[empty].abs().sum())


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_parameter_is_trained_and_the_map_has_a_cell_for_each_stride(stride, norm):
    model = small(stride=stride, norm=norm)
    maps = model.maps(torch.randn(2, 3, 50, 70))
    assert maps.logits.shape == (2, 3, math.ceil(50 / stride), math.ceil(70 / stride))
    losses = model(torch.randn(2, 3, 64, 96), *truth())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_pictures_without_boxes_train_the_heatmap_alone():
    model = small()
    boxes, labels = torch.zeros(2, 4, 4), torch.full((2, 4), -1)
    losses = model(torch.randn(2, 3, 64, 96), boxes, labels)
    assert float(losses["size"].detach()) == float(losses["offset"].detach()) == 0 < float(losses["heatmap"].detach())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "DDP waits for all of them"


def test_a_crowd_a_box_of_no_area_and_no_box_are_the_same_to_training():
    model, image, (boxes, labels) = small().train(), torch.randn(2, 3, 64, 96), truth()
    with torch.no_grad():
        without = model(image, boxes, labels)
        labels[1, 0], boxes[1, 0] = 1, torch.tensor([5.0, 5.0, 5.0, 30.0])
        boxes[1, 1] = torch.tensor([5.0, 5.0, 25.0, 30.0])  # its label says that it is none
        again = model(image, boxes, labels)
    assert {name: float(value) for name, value in again.items()} == {
        name: float(value) for name, value in without.items()
    }


def test_it_starts_from_rare_objects():
    maps = small().eval().maps(torch.randn(1, 3, 64, 96))
    assert float(maps.logits.detach().sigmoid().mean()) == pytest.approx(0.1, abs=0.03)


def test_it_learns_to_find_a_square():
    torch.manual_seed(0)
    model = small(max_detections=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    left = torch.randint(0, 40, (8, 1, 1)).float()
    boxes = torch.cat([left, left, left + 20, left + 20], -1)
    image = torch.zeros(8, 3, 64, 96)
    for index, place in enumerate(left.flatten().int().tolist()):
        image[index, :, place : place + 20, place : place + 20] = 2.0
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(model(image, boxes, torch.ones(8, 1, dtype=torch.int64)).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        found, scores, labels = model.eval()(image)
    assert labels.flatten().tolist() == [1] * 8 and float(scores.min()) > 0.3
    assert float((found - boxes).abs().max()) < 4


def test_losses_are_float32_under_autocast():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.randn(2, 3, 64, 96), *truth())
        found = model.eval()(torch.randn(2, 3, 64, 96))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert [part.dtype for part in found] == [torch.float32, torch.float32, torch.int64]


def test_what_is_exported_decodes_to_what_is_detected_in_one_graph():
    model = small().eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(model.exportable(), (torch.randn(2, 3, 64, 96),), dynamic_shapes=(batch,))
    image = torch.randn(3, 3, 64, 96)
    maps = center.Maps(*exported.module()(image))
    for mine, theirs in zip(model.detections(maps, 64, 96), model(image), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_its_head_is_what_transfer_replaces():
    assert _layout.find_head(small()) == "head.1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"model\.width: expected an integer of at least 1, got 0"),
        ({"max_detections": 0}, r"model\.max_detections: expected an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DlrunError, match=message):
        center.build(spec(), **settings)


# ---------------------------------------------------------------- torchvision


class Parts(nn.Module):
    """The parts of a detector, and a forward that remembers its targets and finds what it was told."""

    def __init__(self, found: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.backbone, self.head = nn.Identity(), nn.Identity()
        self.found, self.targets = found, []

    def forward(self, image: Tensor, targets: list | None = None) -> object:
        self.targets = targets
        return {"loss": image.sum()} if self.training else self.found


def test_labels_are_counted_behind_the_background_and_empty_places_are_filled():
    boxes, labels = truth()
    boxes[0, 3], labels[0, 3] = torch.tensor([4.0, 4.0, 4.0, 9.0]), 1  # no width: torchvision would raise
    two = {"boxes": boxes[0, :2], "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 3])}
    inner = Parts([two, {name: value[:0] for name, value in two.items()}])
    model = Detector(inner, backgrounds=1, max_detections=3)
    model.train()(torch.zeros(2, 3, 64, 96), boxes, labels)
    assert [target["labels"].tolist() for target in inner.targets] == [[1, 3, 3], []]
    torch.testing.assert_close(inner.targets[0]["boxes"], boxes[0, :3])
    found, scores, found_labels = model.eval()(torch.zeros(2, 3, 64, 96))
    assert found_labels.tolist() == [[0, 2, -1], [-1, -1, -1]]
    torch.testing.assert_close(scores[0], torch.tensor([0.9, 0.8, 0.0]))
    torch.testing.assert_close(found[0, :2], boxes[0, :2])


LIGHT = {
    "retinanet": {"detector": "retinanet", "backbone": "resnet18"},
    "fcos": {"detector": "fcos", "backbone": "mobilenet_v3_small", "norm": "group"},
    "faster_rcnn": {"detector": "faster_rcnn", "backbone": "resnet18", "anchor_sizes": (16, 32, 64, 128, 256),
                    "options": {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50}},
    "faster_rcnn over mobilenet": {"detector": "faster_rcnn", "backbone": "mobilenet_v3_large", "norm": "frozen"},
    "ssdlite320": {"detector": "ssdlite320"},
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_a_detector_of_torchvision_trains_on_grey_images_of_any_size_and_finds_boxes(name):
    torch.manual_seed(0)
    model = torchvision_detection.build(spec(1), max_detections=7, **LIGHT[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model(torch.randn(2, 1, 64, 96), *truth())
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    boxes, scores, labels = model.eval()(torch.randn(2, 1, 64, 96))
    assert boxes.shape == (2, 7, 4) and scores.shape == labels.shape == (2, 7)
    assert set(labels.flatten().tolist()) <= {-1, 0, 1, 2} and labels.dtype == torch.int64


@pytest.mark.parametrize("name", LIGHT)
def test_a_batch_without_any_box_reaches_every_parameter(name):
    model = torchvision_detection.build(spec(), **LIGHT[name])
    losses = model(torch.randn(2, 3, 64, 96), torch.zeros(2, 4, 4), torch.full((2, 4), -1))
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == [], "DDP waits for them"


def test_a_detector_is_torchvisions_own_without_its_scaling():
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    model = torchvision_detection.build(spec(), detector="fcos", backbone="resnet18", score_threshold=0.05)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5,
        returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    theirs = FCOS(backbone, 3, min_size=64, max_size=96, image_mean=[0.0] * 3, image_std=[1.0] * 3, score_thresh=0.05)
    theirs.load_state_dict(model.state_dict())  # the same names
    image, (boxes, labels) = torch.randn(2, 3, 64, 96), truth()
    targets = [{"boxes": boxes[0, :3], "labels": labels[0, :3]}, {"boxes": boxes[1, :0], "labels": labels[1, :0]}]
    # Theirs pads to a multiple of 32, which 64 x 96 is.
    mine_losses, their_losses = model(image, boxes, labels), theirs(list(image), targets)
    assert mine_losses.keys() == their_losses.keys()
    for name, value in mine_losses.items():
        torch.testing.assert_close(value, their_losses[name])
    theirs.load_state_dict(model.state_dict())
    found, scores, found_labels = model.eval()(image)
    for index, expected in enumerate(theirs.eval()(list(image))):
        count = len(expected["labels"])
        assert count > 0 and found_labels[index, :count].tolist() == expected["labels"].tolist()
        torch.testing.assert_close(found[index, :count], expected["boxes"])
        torch.testing.assert_close(scores[index, :count], expected["scores"])


PUBLISHED = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn",
             "fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large")  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_weights_fit_by_name_and_shape(published):
    from torchvision.models import detection

    with torch.device("meta"):
        theirs = getattr(detection, published)(weights=None, weights_backbone=None, num_classes=4)
    name = published.split("_")[0].replace("fasterrcnn", "faster_rcnn")
    backbone = "mobilenet_v3_large" if "mobilenet" in published else None
    classes = 4 if name in ("retinanet", "fcos") else 3  # their numbers count a background, ours do where it is one
    model = torchvision_detection.build(spec(classes=classes), detector=name, backbone=backbone)
    shapes = [{key: value.shape for key, value in made.state_dict().items()} for made in (model, theirs)]
    assert shapes[0] == shapes[1]


def test_a_copy_of_a_detector_has_parts_of_its_own():
    model = torchvision_detection.build(spec(), **LIGHT["retinanet"]).eval()
    twin = copy.deepcopy(model).train()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert isinstance(model(image), tuple) and isinstance(twin(image, *truth(1)), dict)
        assert not torch.equal(twin.eval()(image)[1], model(image)[1])


def test_losses_and_anchors_of_torchvision_are_float32_under_autocast():
    model = torchvision_detection.build(spec(), **LIGHT["ssdlite320"])
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.randn(2, 3, 64, 96), *truth())
        found = model.eval()(torch.randn(2, 3, 64, 96))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found[0].dtype == found[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"detector": "fcos", "options": {"nms_tresh": 0.5}}, "fcos has no 'nms_tresh'", "did you mean nms_thresh?"),
        ({"detector": "fcos", "options": {"min_size": 5}}, r"model\.options\.min_size: this is set elsewhere", None),
        ({"detector": "fcos", "options": {"nms_thresh": "x"}}, r"options\.nms_thresh: expected a number, got x", None),
        ({"detector": "fcos", "options": {"head": 1}}, "fcos has no 'head'", None),
        ({"detector": "fcos", "anchor_sizes": (8,)}, r"model\.anchor_sizes: fcos has none", None),
        ({"detector": "retinanet", "anchor_sizes": (8, 16)}, "expected 5 numbers, one for each level", None),
        ({"detector": "ssdlite320", "backbone": "resnet18"}, "ssdlite320 is made of mobilenet_v3_large", None),
        ({"detector": "ssd300", "norm": "group"}, "ssd300 is made of vgg16", "leave out model.norm"),
        ({"detector": "fcos", "score_threshold": 1}, r"model\.score_threshold: expected a number in \[0, 1\)", None),
    ],
)
def test_settings_that_do_not_apply_are_refused(settings, message, hint):
    with pytest.raises(DlrunError, match=message) as raised:
        torchvision_detection.build(spec(), **{"backbone": None} | settings)
    assert hint is None or raised.value.hint == hint


def test_ssd300_says_that_small_images_are_too_small_for_it():
    with pytest.raises(DlrunError, match="ssd300 does not work on images of 64x96") as raised:
        torchvision_detection.build(spec(), detector="ssd300")
    assert raised.value.hint == "data.image_size=320"


@pytest.mark.parametrize("name", ["ssdlite320", "faster_rcnn over mobilenet"])
def test_a_graph_that_prepares_its_pixels_is_finished_on_prepared_ones(name):
    torch.manual_seed(0)
    model = torchvision_detection.build(spec(), **LIGHT[name]).eval()
    form = model.exportable()
    described = replace(spec(), assets={"kind": "image", "image_column": "image", "mean": [0.5] * 3, "std": [0.2] * 3})
    inputs = make_inputs(described)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    image = inputs.prepare({"image": pixels})["image"]
    with torch.no_grad():
        said = form(image)
        source = SimpleNamespace(spec=described, inputs=inputs)
        traced = SimpleNamespace(source=source, form=form, prepares=True, nesting=trees.tree_structure(said))
        loaded = Loaded(traced, lambda given: trees.tree_leaves(form(inputs.prepare(given)["image"])))  # type: ignore[arg-type]
        for mine, theirs in zip(loaded(pixels), model(image), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_ssd300_trains_at_its_own_size():
    model = torchvision_detection.build(spec(3, 300, 300), detector="ssd300", max_detections=5)
    losses = model(torch.randn(2, 3, 300, 300), *truth())
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.eval()(torch.randn(1, 3, 300, 300))[0].shape == (1, 5, 4)
