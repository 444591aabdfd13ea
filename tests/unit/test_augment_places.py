"""Augmentations that move pixels move what lies in the picture with them: masks, boxes, and the side of a target."""

import math

import pytest
import torch

from dlrun.augment import (
    color_jitter,
    cutmix,
    flip,
    mixup,
    rand_augment,
    random_affine,
    random_crop,
    random_erasing,
    trivial_augment,
)  # fmt: skip
from dlrun.augment.random_affine import Change
from dlrun.contracts import IGNORED, DataSpec
from dlrun.errors import DlrunError
from dlrun.randomness import Draws

HEIGHT, WIDTH = 40, 60
MASKS = DataSpec(("image",), "mask", {"pixel_classes": 4}, {"image": (3, HEIGHT, WIDTH)})
BOXES = DataSpec(("image",), "boxes", {"box_classes": 4}, {"image": (3, HEIGHT, WIDTH)})
STILL = {"scale": (1.0, 1.0), "aspect": (1.0, 1.0), "translate": 0.0}
MOVING = [
    (flip, {"vertical": 0.5}),
    (random_crop, {"padding": 9}),
    (random_affine, {}),
    (random_affine, {"degrees": 20.0}),
]
moving = pytest.mark.parametrize(("module", "settings"), MOVING, ids=["flip", "crop", "affine", "turn"])


def batch_of(count: int = 24, seed: int = 0):
    """Pictures, masks of their size, and one to three boxes each (a picture without any among them)."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 3, 2, generator=generator) * torch.tensor([WIDTH * 0.6, HEIGHT * 0.6])
    sides = 6 + torch.rand(count, 3, 2, generator=generator) * torch.tensor([WIDTH * 0.3, HEIGHT * 0.3])
    is_box = torch.arange(3) < (torch.arange(count) % 4).unsqueeze(1)
    labels = torch.randint(0, 4, (count, 3), generator=generator)
    return {
        "id": torch.arange(count) * 3 + 5,
        "image": torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "mask": torch.randint(0, 4, (count, HEIGHT, WIDTH), generator=generator).to(torch.uint8),
        "boxes": torch.cat([corners, corners + sides], 2) * is_box.unsqueeze(2),
        "box_labels": labels.masked_fill(~is_box, -1),
        "box_crowd": (labels == 0) & is_box,
    }


def draws_for(batch) -> Draws:
    return Draws(batch["id"], seed=0, epoch=0)


def built(module, settings, spec=MASKS):
    return module.build(spec, **settings)


# What all have in common


@moving
def test_places_change_the_same_way_whoever_the_neighbours_are(module, settings):
    batch, rows = batch_of(), torch.tensor([20, 3, 11])
    whole = built(module, settings)(batch, draws_for(batch))
    part = {name: field[rows] for name, field in batch.items()}
    alone = built(module, settings)(part, draws_for(part))
    assert {name for name in whole if not torch.equal(alone[name], whole[name][rows])} == set()


@moving
def test_fields_keep_their_types_shapes_and_the_batch_it_came_from(module, settings):
    batch = batch_of()
    before = {name: field.clone() for name, field in batch.items()}
    after = built(module, settings)(batch, draws_for(batch))
    assert {name: (field.dtype, field.shape) for name, field in after.items()} == {
        name: (field.dtype, field.shape) for name, field in before.items()
    }
    assert all(torch.equal(batch[name], before[name]) for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in ("image", "mask", "boxes"))


@moving
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single_batches_pass_through(module, settings, count):
    batch = {name: field[:count] for name, field in batch_of().items()}
    after = built(module, settings)(batch, draws_for(batch))
    assert after["mask"].shape == (count, HEIGHT, WIDTH)
    assert after["boxes"].shape == (count, 3, 4)


@moving
def test_a_picture_without_any_box_in_the_batch_is_no_trouble(module, settings):
    batch = batch_of() | {"boxes": torch.zeros(24, 0, 4), "box_labels": torch.zeros(24, 0, dtype=torch.int64)}
    batch.pop("box_crowd")
    assert built(module, settings)(batch, draws_for(batch))["boxes"].shape == (24, 0, 4)


@moving
def test_masks_move_exactly_as_the_pictures_do(module, settings):
    """A picture of one value in each tile of 8 pixels, and a mask of the same values: they agree away from edges."""
    tiles = torch.arange(5 * 8).reshape(5, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)[:HEIGHT, :WIDTH]
    batch = batch_of()
    batch["mask"] = tiles.to(torch.uint8).expand(24, -1, -1).clone()
    batch["image"] = batch["mask"].unsqueeze(1).expand(-1, 3, -1, -1).clone()
    fill = {} if module is flip else {"fill": IGNORED}
    after = built(module, settings | fill)(batch, draws_for(batch))
    mask, image = after["mask"], after["image"][:, 0]
    if module is flip or module is random_crop:
        assert torch.equal(image, mask)
        return
    window = mask.float().unfold(1, 3, 1).unfold(2, 3, 1)
    is_inner = window.amin((3, 4)) == window.amax((3, 4))  # a bilinear pixel has its neighbours in it
    assert is_inner.float().mean() > 0.4
    assert torch.equal(image[:, 1:-1, 1:-1][is_inner], mask[:, 1:-1, 1:-1][is_inner])


@moving
def test_boxes_move_as_the_pixels_inside_them_do(module, settings):
    """A box drawn as a mask, both augmented: the mask's own bounding box is the box, to a pixel."""
    batch = batch_of(40)
    batch["boxes"] = batch["boxes"][:, :1].round()
    batch["boxes"][:, 0] = torch.where((batch["boxes"][:, 0].sum(1) == 0)[:, None],
                                       torch.tensor([10.0, 8.0, 40.0, 30.0]), batch["boxes"][:, 0])  # fmt: skip
    batch["box_labels"], batch["box_crowd"] = torch.zeros(40, 1, dtype=torch.int64), torch.zeros(40, 1).bool()
    batch["mask"] = drawn(batch["boxes"][:, 0])
    after = built(module, settings | ({} if module is flip else {"min_visible": 0.0}))(batch, draws_for(batch))
    compared = 0
    for mask, box, label in zip(after["mask"], after["boxes"][:, 0], after["box_labels"][:, 0], strict=True):
        rows, columns = (mask == 1).any(1).nonzero(), (mask == 1).any(0).nonzero()
        if label < 0 or not len(rows):
            continue
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        # Corners of a turned box that reach out of the picture widen its upright box, not the pixels that are seen.
        is_inside = (box > 0.01).all() and box[2] < WIDTH - 0.01 and box[3] < HEIGHT - 0.01
        if is_inside or "degrees" not in settings:
            assert (box - found).abs().max() <= (1.5 if module is random_affine else 0), (box, found)
            compared += 1
    assert compared > 20


def drawn(boxes_B4):
    """uint8 [B, H, W]: 1 inside the box (whole numbers), 0 outside."""
    rows, columns = torch.arange(HEIGHT)[None, :, None], torch.arange(WIDTH)[None, None]
    left, top, right, bottom = (side.reshape(-1, 1, 1) for side in boxes_B4.unbind(1))
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)).to(torch.uint8)


# Flip


def test_flipping_twice_is_the_identity():
    batch = batch_of()
    augment = built(flip, {"probability": 1.0, "vertical": 1.0})
    once = augment(batch, draws_for(batch))
    assert torch.equal(once["image"], batch["image"].flip(-1, -2))
    assert torch.equal(once["mask"], batch["mask"].flip(-1, -2))
    twice = augment(once, draws_for(batch))
    for name in batch:
        torch.testing.assert_close(twice[name], batch[name], rtol=0, atol=1e-5)


def test_flipped_boxes_are_where_a_person_would_draw_them():
    batch = {name: field[1:2] for name, field in batch_of().items()}
    batch["boxes"][0, 0] = torch.tensor([10.0, 5.0, 30.0, 15.0])
    sideways = built(flip, {"probability": 1.0})(batch, draws_for(batch))
    assert sideways["boxes"][0].tolist() == [[30.0, 5.0, 50.0, 15.0], [0.0] * 4, [0.0] * 4]
    upside_down = built(flip, {"probability": 0.0, "vertical": 1.0})(batch, draws_for(batch))
    assert upside_down["boxes"][0, 0].tolist() == [10.0, 25.0, 30.0, 35.0]


def test_the_sign_of_a_named_target_turns_with_left_and_right_alone():
    spec = DataSpec(("image",), "target", {"targets": 2}, {"image": (3, HEIGHT, WIDTH)}, ("angle", "speed"))
    batch = batch_of(200) | {"target": torch.rand(200, 2) + 1}
    augment = flip.build(spec, negate=["angle"], vertical=0.5)
    after = augment(batch, draws_for(batch))
    sign = torch.where(draws_for(batch).flags(0.5), -1.0, 1.0)
    assert torch.equal(after["target"], batch["target"] * torch.stack([sign, torch.ones(200)], 1))
    assert 60 < (sign < 0).sum() < 140
    single = DataSpec(("image",), "target", {"targets": 1}, {"image": (3, HEIGHT, WIDTH)}, ("angle",))
    flat = batch | {"target": batch["target"][:, 0]}
    assert torch.equal(flip.build(single, negate=["angle"])(flat, draws_for(flat))["target"], flat["target"] * sign)


def test_a_target_that_is_none_is_named():
    spec = DataSpec(("image",), "target", {"targets": 2}, {"image": (3, HEIGHT, WIDTH)}, ("angle", "speed"))
    with pytest.raises(DlrunError) as error:
        flip.build(spec, negate=["angel"])
    assert error.value.message == "data.augment.flip.negate: no target 'angel'"
    assert error.value.hint == "did you mean angle?"
    with pytest.raises(DlrunError, match=r"negate: \['angle'\] are no targets; this data predicts 'mask'"):
        flip.build(MASKS, negate=["angle"])


# Crop


def test_what_comes_from_outside_is_the_fill_or_the_pixel_at_the_edge():
    spec = DataSpec(("image",), "label", {"classes": 2}, {"image": (1, 4, 8)}, ("a", "b"))
    batch = {"id": torch.arange(8), "image": torch.arange(8.0).mul(10).expand(8, 1, 4, 8).clone()}
    settings = {"scale": (1, 1), "aspect": (1, 1), "translate": 1.0}
    filled = random_affine.build(spec, fill=200, **settings)(batch, draws_for(batch))["image"]
    repeated = random_affine.build(spec, edges="repeat", **settings)(batch, draws_for(batch))["image"]
    assert filled.max() == 200
    assert repeated.min() >= 0 and repeated.max() <= 70
    inside = (filled < 70) & (filled > 0)
    close = (filled - repeated).abs() < 1e-3
    assert inside.any() and close[inside].float().mean() > 0.5  # but where the edge itself is blended


def test_a_shift_to_the_side_moves_the_targets_that_follow_it():
    spec = DataSpec(("image",), "target", {"targets": 2}, {"image": (1, 8, 16)}, ("angle", "speed"))
    batch = {"id": torch.arange(6), "image": torch.zeros(6, 1, 8, 16), "target": torch.randn(6, 2)}
    batch["image"][:, :, :, 8] = 100.0
    augment = random_affine.build(
        spec, scale=(1, 1), aspect=(1, 1), translate=0.4, fill=0, shift_targets={"angle": 2.0}
    )
    moved = augment(batch, draws_for(batch))
    columns = torch.arange(16.0) + 0.5
    line = moved["image"].sum(2)[:, 0]
    right = (line * columns).sum(1) / line.sum(1) - 8.5
    assert right.abs().max() > 1
    torch.testing.assert_close(moved["target"][:, 0], batch["target"][:, 0] + 2 * right / 16)
    assert torch.equal(moved["target"][:, 1], batch["target"][:, 1])
    with pytest.raises(DlrunError, match=r"data.augment.random_affine.shift_targets: no target 'angel'"):
        random_affine.build(spec, shift_targets={"angel": 1.0})
    with pytest.raises(DlrunError, match=r"shift_targets.angle: 'much' is not a number"):
        random_affine.build(spec, shift_targets={"angle": "much"})


def test_a_mask_of_half_the_size_moves_by_half_the_pixels():
    batch = batch_of()
    batch["mask"] = torch.arange(20 * 30).reshape(20, 30).remainder(200).to(torch.uint8).expand(24, -1, -1).clone()
    batch["image"] = batch["mask"].repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).expand(-1, 3, -1, -1)
    after = built(random_crop, {"padding": 6, "fill": IGNORED})(batch, draws_for(batch))
    offsets = draws_for(batch).integers(0, 13, 2) - 6
    is_even = (offsets % 2 == 0).all(1)
    assert 0 < is_even.sum() < 24
    assert torch.equal(after["image"][is_even][:, 0, ::2, ::2], after["mask"][is_even])
    halves = (offsets[:, 0].float() / 2 + 0.5).floor().long()
    for index in range(24):
        rows = torch.arange(20) + halves[index]
        is_outside = (rows < 0) | (rows > 19)
        assert ((after["mask"][index] == IGNORED).all(1) == is_outside).all()


# Affine


def test_an_affine_change_by_nothing_is_the_identity():
    batch = batch_of()
    after = built(random_affine, STILL)(batch, draws_for(batch))
    for name in batch:
        torch.testing.assert_close(after[name], batch[name], rtol=0, atol=1e-4 if name == "boxes" else 0)


def test_half_a_turn_is_both_flips():
    batch = batch_of()
    change = Change(torch.ones(24), torch.ones(24), torch.full((24,), math.pi), *torch.zeros(2, 24))
    grid = change.sources(HEIGHT, WIDTH, HEIGHT, WIDTH)
    assert torch.equal(random_affine._sampled(batch["image"], grid, "bilinear", 0), batch["image"].flip(-1, -2))
    mask = random_affine._sampled(batch["mask"].unsqueeze(1), grid, "nearest", IGNORED).squeeze(1)
    assert torch.equal(mask, batch["mask"].flip(-1, -2))
    turned = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) - batch["boxes"][..., [2, 3, 0, 1]]
    torch.testing.assert_close(change.boxes(batch["boxes"], HEIGHT, WIDTH), turned, rtol=0, atol=1e-3)


def test_a_shift_by_whole_pixels_moves_them_and_fills_the_rest():
    batch = batch_of()
    change = Change(torch.ones(24), torch.ones(24), torch.zeros(24), torch.full((24,), 7.0), torch.full((24,), -4.0))
    grid = change.sources(HEIGHT, WIDTH, HEIGHT, WIDTH)
    moved = random_affine._sampled(batch["image"], grid, "bilinear", 9)
    assert torch.equal(moved[:, :, :-4, 7:], batch["image"][:, :, 4:, :-7])
    assert (moved[:, :, :, :7] == 9).all() and (moved[:, :, -4:] == 9).all()
    mask = random_affine._sampled(batch["mask"].unsqueeze(1), grid, "nearest", IGNORED).squeeze(1)
    assert torch.equal(mask[:, :-4, 7:], batch["mask"][:, 4:, :-7])
    assert (mask[:, :, :7] == IGNORED).all() and (mask[:, -4:] == IGNORED).all()


def test_twice_the_size_shows_the_middle_half():
    batch = batch_of()
    doubled = built(random_affine, STILL | {"scale": (2.0, 2.0)})(batch, draws_for(batch))
    middle = batch["mask"][:, 10:30, 15:45].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(doubled["mask"], middle)
    half = torch.nn.functional.interpolate(batch["image"][:, :, 10:30, 15:45].float(), scale_factor=2, mode="bilinear")
    inner = doubled["image"][:, :, 2:-2, 2:-2].float() - half[:, :, 2:-2, 2:-2]  # interpolate repeats its border
    assert inner.abs().max() <= 0.5


def test_a_mask_of_another_size_moves_by_the_same_share():
    batch = batch_of()
    small = batch | {"mask": batch["mask"][:, ::2, ::2]}
    large = batch | {"mask": small["mask"].repeat_interleave(4, 1).repeat_interleave(4, 2)}
    augment = built(random_affine, {"degrees": 15.0})
    low, high = augment(small, draws_for(small))["mask"], augment(large, draws_for(large))["mask"]
    assert (low == high[:, 2::4, 2::4]).float().mean() > 0.8
    assert torch.equal(augment(small, draws_for(small))["image"], augment(large, draws_for(large))["image"])


def test_boxes_mostly_out_of_the_picture_are_dropped_and_the_rest_stays_in_front():
    spec = BOXES
    batch = {name: field[:1] for name, field in batch_of().items()}
    batch["boxes"] = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 10.0, 40.0, 30.0], [50.0, 0.0, 60.0, 40.0]]])
    batch["box_labels"], batch["box_crowd"] = torch.tensor([[2, 1, 3]]), torch.tensor([[True, False, True]])
    after = random_affine.build(spec, **STILL | {"scale": (2.0, 2.0)})(batch, draws_for(batch))
    assert after["boxes"].tolist() == [[[10.0, 0.0, 50.0, 40.0], [0.0] * 4, [0.0] * 4]]
    assert after["box_labels"].tolist() == [[1, -1, -1]]
    assert after["box_crowd"].tolist() == [[False, False, False]]


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, 2), (0.29, 2), (0.31, 1), (1.0, 1)])
def test_a_box_is_dropped_below_the_visible_share(min_visible, kept):
    batch = {name: field[:1] for name, field in batch_of().items()}
    batch["boxes"] = torch.tensor([[[8.0, 15.0, 18.0, 25.0], [25.0, 15.0, 35.0, 25.0], [0.0] * 4]])
    batch["box_labels"], batch["box_crowd"] = torch.tensor([[2, 1, -1]]), torch.zeros(1, 3).bool()
    augment = random_affine.build(BOXES, **STILL | {"scale": (2.0, 2.0), "min_visible": min_visible})
    after = augment(batch, draws_for(batch))  # of the first box 3 of 10 columns remain
    assert (after["box_labels"] >= 0).sum() == kept
    if kept == 2:
        assert after["boxes"][0, 0].tolist() == [0.0, 10.0, 6.0, 30.0]


def test_scale_aspect_and_shift_are_drawn_from_their_ranges():
    batch = batch_of(400)
    batch["boxes"] = torch.tensor([[[25.0, 15.0, 35.0, 25.0]]]).repeat(400, 1, 1)
    batch["box_labels"], batch["box_crowd"] = torch.zeros(400, 1, dtype=torch.int64), torch.zeros(400, 1).bool()
    settings = {"scale": (0.5, 2.0), "aspect": (0.8, 1.25), "translate": 0.1}
    left, top, right, bottom = built(random_affine, settings)(batch, draws_for(batch))["boxes"][:, 0].unbind(1)
    scale = ((right - left) * (bottom - top)).sqrt() / 10
    aspect = (right - left) / (bottom - top)
    across, down = (left + right) / 2 - 30, (top + bottom) / 2 - 20
    for values, low, high in ((scale, 0.5, 2.0), (aspect, 0.8, 1.25), (across, -6.0, 6.0), (down, -4.0, 4.0)):
        assert values.min() > low - 1e-4 and values.max() < high + 1e-4
        assert values.max() - values.min() > 0.95 * (high - low)
    assert scale.log().mean().abs() < 0.06


# What cannot move the truth along


@pytest.mark.parametrize("module", [mixup, cutmix, rand_augment, trivial_augment])
@pytest.mark.parametrize(("spec", "truth"), [(MASKS, "masks"), (BOXES, "boxes")])
def test_what_would_make_the_truth_untrue_is_refused(module, spec, truth):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(DlrunError) as error:
        module.build(spec)
    assert error.value.message == f"data.augment.{name} would leave the {truth} of this data untrue"
    assert error.value.hint == "use flip, random_crop, random_affine, color_jitter or random_erasing"


@pytest.mark.parametrize("module", [random_erasing, color_jitter])
def test_what_changes_pixels_alone_leaves_places_as_they_are(module):
    batch = batch_of()
    after = module.build(MASKS)(batch, draws_for(batch))
    assert not torch.equal(after["image"], batch["image"])
    assert all(after[name] is batch[name] for name in ("mask", "boxes", "box_labels", "box_crowd"))
