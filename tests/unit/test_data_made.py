"""Made pictures: scenes of digits and roads are what they say, the same for the same seed, and split as asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.contracts import DataSpec
from dlrun.data import roads, scenes
from dlrun.errors import DlrunError

FEW = {"num_train": 12, "num_valid": 3, "num_test": 4}


def build(component, spec: DataSpec | None = None, seed: int = 0, **settings):
    return component.build(SimpleNamespace(seed=seed, assets=None, spec=spec), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


@pytest.mark.parametrize(
    ("component", "settings"),
    [(scenes, FEW), (scenes, {**FEW, "target": "mask"}), (roads, {}), (roads, {"target": "mask"})],
)
def test_made_data_is_a_function_of_its_own_seed_alone(component, settings):
    first, again = (build(component, seed=seed, **settings) for seed in (0, 5))
    other = build(component, **settings, **{"scene_seed" if component is scenes else "drive_seed": 1})
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert DataSpec.from_json(first.spec.to_json()) == first.spec
    assert build(component, spec=other.spec, **settings).spec == other.spec
    batch = whole(first.split("train"))
    image = first.inputs.prepare(batch)["image"]
    assert image.mean().abs() < 1e-3
    assert (image.std() - 1).abs() < 0.01


def test_scenes_have_the_asked_numbers_and_boxes_inside_their_pictures():
    dataset = build(scenes, image_size=[64, 80], most_digits=3, **FEW)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "valid": 3, "test": 4}
    assert dataset.spec.sizes == {"channels": 3, "height": 64, "width": 80, "box_classes": 10, "boxes": 3}
    assert dataset.spec.labels == tuple("0123456789")
    batch = whole(dataset.split("train"))
    assert batch["image"].dtype == torch.uint8
    assert batch["size"].tolist() == [[64, 80]] * 12
    is_box = batch["box_labels"] >= 0
    assert is_box[:, 0].all()
    boxes = batch["boxes"][is_box]
    assert (boxes[:, 2:] - boxes[:, :2] >= 3).all()
    assert (boxes >= 0).all() and (boxes[:, 2] <= 80).all() and (boxes[:, 3] <= 64).all()
    assert (batch["boxes"][~is_box] == 0).all()


def test_digits_of_a_scene_do_not_overlap():
    from torchvision.ops import box_iou

    batch = whole(build(scenes, **FEW).split("train"))
    for boxes, labels in zip(batch["boxes"], batch["box_labels"], strict=True):
        mine = boxes[labels >= 0]
        assert (box_iou(mine, mine) - torch.eye(len(mine))).abs().max() == 0


def test_a_size_that_another_target_has_is_refused_with_the_setting_for_it():
    for component, target, wanted, setting in (
        (scenes, "boxes", "pixel_classes", "data.target=mask"), (scenes, "mask", "box_classes", "data.target=boxes"),
        (roads, "steering", "pixel_classes", "data.target=mask"), (roads, "mask", "targets", "data.target=steering"),
    ):  # fmt: skip
        settings = FEW if component is scenes else {"num_pictures": 10}
        spec = build(component, target=target, **settings).spec
        with pytest.raises(DlrunError, match=f"needs data with '{wanted}'; this data set has ") as error:
            spec.size(wanted)
        assert error.value.hint == f"it has that too: {setting}"
        with pytest.raises(DlrunError) as error:
            spec.size("pixel_clases")
        assert error.value.hint == "choose another task, model or data set: dlrun list"


def test_the_mask_of_a_scene_lies_in_its_boxes_and_is_of_their_classes():
    boxes = whole(build(scenes, **FEW).split("train"))
    dataset = build(scenes, target="mask", **FEW)
    assert dataset.spec.labels == ("ground", *"0123456789")
    assert dataset.spec.size("pixel_classes") == 11
    masks = whole(dataset.split("train"))
    assert torch.equal(boxes["image"], masks["image"])
    for mask, places, labels in zip(masks["mask"], boxes["boxes"].long(), boxes["box_labels"], strict=True):
        outside = mask.clone()
        for (left, top, right, bottom), label in zip(places.tolist(), labels.tolist(), strict=True):
            inside = mask[top:bottom, left:right]
            assert label < 0 or set(inside.unique().tolist()) == {0, 1 + label}
            outside[top:bottom, left:right] = 0
        assert not outside.any()


def test_ink_stands_out_from_the_ground():
    dataset = build(scenes, target="mask", channels=1, **FEW)
    batch = whole(dataset.split("train"))
    for image, mask in zip(batch["image"][:, 0].float(), batch["mask"], strict=True):
        assert (image[mask > 0] - image[mask == 0].mean()).abs().mean() > 30


def test_the_steering_is_the_stated_function_and_the_road_shows_it():
    dataset = build(roads)
    assert dataset.spec.sizes == {"channels": 3, "height": 48, "width": 96, "targets": 1}
    assert dataset.spec.labels == ("steering",)
    batch = whole(dataset.split("train"))
    steering = batch["target"]
    assert steering.shape == (700, 1)
    assert steering.abs().max() <= 1
    assert steering.std() > 0.1
    # Of pixels, a straight line through them already explains most of it.
    pixels = batch["image"][:, :, ::4, ::4].float().flatten(1)
    features = np.c_[pixels.numpy(), np.ones(len(pixels))]
    found, *_ = np.linalg.lstsq(features[::2], steering[::2].numpy(), rcond=None)
    error = ((features[1::2] @ found - steering[1::2].numpy()) ** 2).mean()
    assert error < 0.25 * steering.var()


def test_a_drive_is_in_order_and_split_by_stretches():
    dataset = build(roads, num_pictures=100)
    assert whole(dataset.split("valid"))["id"].tolist() == list(range(60, 70))
    assert whole(dataset.split("test"))["id"].tolist() == [*range(40, 50), *range(80, 90)]
    steps = whole(build(roads, num_pictures=100, valid_blocks=[0], test_blocks=[]).split("train"))["target"].diff(dim=0)
    assert steps.abs().max() < 0.1


def test_roads_have_sky_above_and_road_between_grass():
    dataset = build(roads, target="mask", image_size=32, num_pictures=50)
    assert dataset.spec.labels == ("sky", "grass", "road", "mark")
    batch = whole(dataset.split("train"))
    assert (batch["mask"][:, 0] == 0).all()
    assert (batch["mask"][:, -1] > 0).all()
    assert batch["mask"].unique().tolist() == [0, 1, 2, 3]
    assert (batch["mask"] == 2).float().mean((1, 2)).min() > 0.1


@pytest.mark.parametrize(
    ("component", "settings", "message"),
    [
        (scenes, {"image_size": 39}, "data.image_size: 39 is under 40 pixels"),
        (scenes, {"channels": 2}, "data.channels: 2 is neither 1 (grey) nor 3 (colour)"),
        (scenes, {"num_train": 0}, "data.num_train: 0 is not a number of pictures"),
        (scenes, {"most_digits": 0}, "data.most_digits: 0 is not above 0"),
        (roads, {"image_size": [8, 64]}, "data.image_size: [8, 64] is under 16 pixels"),
        (roads, {"num_pictures": 0}, "data.num_pictures: 0 is not above 0"),
        (roads, {"test_blocks": [6]}, "data.valid_blocks: block 6 is held out already, for test"),
    ],
)
def test_settings_that_do_not_fit_are_named(component, settings, message):
    with pytest.raises(DlrunError) as error:
        build(component, **settings)
    assert message in error.value.message
