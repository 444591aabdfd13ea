"""Augmentations: equal to references, keyed by example, and right in what they do to labels."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

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
from dlrun.augment._mixing import beta
from dlrun.augment._pixel_ops import GEOMETRIC, PHOTOMETRIC, warp
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.randomness import Draws

OWN = [flip, random_crop, random_affine, color_jitter, random_erasing, rand_augment, trivial_augment]
MIXING = [mixup, cutmix]


def spec_for(*shape: int, **sizes: int) -> DataSpec:
    return DataSpec(("image",), "label", sizes or {"classes": 10}, {"image": shape})


def batch_of(count: int = 32, channels: int = 3, size: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return {"id": torch.arange(count) * 3 + 5, "image": image, "label": torch.arange(count) % 10}


def draws_for(batch, epoch: int = 0, step: int = 0, seed: int = 0) -> Draws:
    return Draws(batch["id"], seed=seed, epoch=epoch, step=step)


def pick(batch, rows):
    return {name: field[rows] for name, field in batch.items()}


def name_of(module) -> str:
    return module.__name__.rpartition(".")[2]


# What all have in common


@pytest.mark.parametrize("module", OWN, ids=name_of)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_changed_the_same_way_whoever_its_neighbours_are(module, channels):
    batch = batch_of(channels=channels)
    augment = module.build(spec_for(channels, 16, 16))
    whole = augment(batch, draws_for(batch))["image"]
    rows = torch.tensor([30, 3, 11])
    part = pick(batch, rows)
    assert torch.equal(augment(part, draws_for(part, step=9))["image"], whole[rows])


@pytest.mark.parametrize("module", OWN + MIXING, ids=name_of)
def test_the_same_key_gives_the_same_pixels_and_another_epoch_others(module):
    batch = batch_of()
    augment = module.build(spec_for(3, 16, 16))
    before = batch["image"].clone()
    torch.manual_seed(1)
    first = augment(batch, draws_for(batch))["image"]
    torch.manual_seed(2)
    assert torch.equal(augment(batch, draws_for(batch))["image"], first)
    assert not torch.equal(augment(batch, draws_for(batch, epoch=1, step=1))["image"], first)
    assert not torch.equal(augment(batch, draws_for(batch, seed=1))["image"], first)
    assert torch.equal(batch["image"], before)


@pytest.mark.parametrize("module", OWN + MIXING, ids=name_of)
def test_memory_format_changes_nothing_but_speed(module):
    batch = batch_of()
    augment = module.build(spec_for(3, 16, 16))
    expected = augment(batch, draws_for(batch))["image"]
    turned = batch | {"image": batch["image"].contiguous(memory_format=torch.channels_last)}
    result = augment(turned, draws_for(batch))["image"]
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("module", OWN + MIXING, ids=name_of)
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single_batches_pass_through(module, count):
    batch = pick(batch_of(), torch.arange(count))
    assert module.build(spec_for(3, 16, 16))(batch, draws_for(batch))["image"].shape == (count, 3, 16, 16)


@pytest.mark.parametrize("module", OWN, ids=name_of)
def test_pixels_stay_in_range_after_mixing_made_floats_of_them(module):
    batch = batch_of()
    mixed = mixup.build(spec_for(3, 16, 16), alpha=1.0)(batch, draws_for(batch))
    image = module.build(spec_for(3, 16, 16))(mixed, draws_for(batch).for_stream(1))["image"]
    assert image.min() >= 0
    assert image.max() <= 255


@pytest.mark.parametrize("module", OWN + MIXING, ids=name_of)
def test_data_without_pictures_is_refused(module):
    table = DataSpec(("features",), "label", {"classes": 2}, {"features": (4,)})
    with pytest.raises(DlrunError, match=rf"data.augment.{name_of(module)} changes pictures; this data has features"):
        module.build(table)


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (flip, {"probability": 1.5}, "data.augment.flip.probability: 1.5 is not between 0 and 1"),
        (flip, {"vertical": -0.1}, "data.augment.flip.vertical: -0.1 is not between 0 and 1"),
        (random_affine, {"scale": [0, 1]}, "data.augment.random_affine.scale: [0, 1] is not a low and a high"),
        (random_affine, {"degrees": 200.0}, "data.augment.random_affine.degrees: 200.0 is not between 0 and 180"),
        (color_jitter, {"hue": 0.6}, "data.augment.color_jitter.hue: 0.6 is not between 0 and 0.5"),
        (random_crop, {"padding": 0}, "data.augment.random_crop.padding: 0 is not between 1 and 16"),
        (random_crop, {"fill": 256}, "data.augment.random_crop.fill: 256 is not between 0 and 255"),
        (
            random_erasing,
            {"scale": [0.5, 0.1]},
            "data.augment.random_erasing.scale: [0.5, 0.1] is not a low and a high",
        ),
        (rand_augment, {"magnitude": 31}, "data.augment.rand_augment.magnitude: 31 is not between 0 and 30"),
        (mixup, {"alpha": 0.0}, "data.augment.mixup.alpha: 0.0 is not above 0"),
    ],
)
def test_settings_out_of_range_are_named(module, settings, message):
    with pytest.raises(DlrunError) as error:
        module.build(spec_for(3, 16, 16), **settings)
    assert message in error.value.message


# Crop, flip, erase


def test_flip_mirrors_a_picture_or_leaves_it():
    batch = batch_of(400, size=4)
    image = flip.build(spec_for(3, 4, 4), probability=0.25)(batch, draws_for(batch))["image"]
    is_flipped = (image == batch["image"].flip(-1)).flatten(1).all(1)
    is_same = (image == batch["image"]).flatten(1).all(1)
    assert (is_flipped ^ is_same).all()
    assert 60 < is_flipped.sum() < 140


@pytest.mark.parametrize("fill", [0, 128])
def test_random_crop_is_a_window_of_the_padded_picture(fill):
    batch = batch_of(200, size=5)
    result = random_crop.build(spec_for(3, 5, 5), padding=2, fill=fill)(batch, draws_for(batch))["image"]
    padded = torch.nn.functional.pad(batch["image"], [2] * 4, value=fill)
    places = set()
    for before, after in zip(padded, result, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(before[:, y : y + 5, x : x + 5], after)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 25


def test_erased_rectangles_have_the_asked_area_and_ratio():
    batch = batch_of(300, channels=1, size=32)
    batch["image"][:] = 200
    augment = random_erasing.build(spec_for(1, 32, 32), probability=0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0), fill=7)
    is_erased = augment(batch, draws_for(batch))["image"][:, 0] == 7
    touched = is_erased.flatten(1).any(1)
    assert 120 < touched.sum() < 180
    for mask in is_erased[touched]:
        rows, columns = mask.any(1).nonzero().squeeze(1), mask.any(0).nonzero().squeeze(1)
        height, width = len(rows), len(columns)
        assert mask.sum() == height * width == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.08 < height * width / 1024 < 0.23
        assert 0.4 < height / width < 2.4


def test_erased_pixels_are_drawn_evenly():
    batch = batch_of(64, channels=3, size=32)
    augment = random_erasing.build(spec_for(3, 32, 32), probability=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    noise = augment(batch, draws_for(batch))["image"]
    counts = torch.bincount(noise.flatten().long(), minlength=256)
    expected = noise.numel() / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 170 < chi_squared < 350  # 255 degrees of freedom: four deviations
    assert len(noise.flatten(1).unique(dim=0)) == 64


# Colour


def factors(batch) -> torch.Tensor:
    """What color_jitter draws, from -1 to 1: brightness, contrast, saturation, hue."""
    return 2 * draws_for(batch).uniform(4) - 1


@pytest.mark.parametrize(
    ("setting", "adjust"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ],
)
def test_each_kind_of_jitter_alone_is_that_of_torchvision(setting, adjust):
    batch = batch_of(8)
    alone = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, setting: 0.6}
    image = color_jitter.build(spec_for(3, 16, 16), **alone)(batch, draws_for(batch))["image"]
    change = factors(batch)[:, list(alone).index(setting)]
    shares = batch["image"] / 255  # of bytes torchvision takes whole greys
    expected = [adjust(one, 1 + 0.6 * float(by)) for one, by in zip(shares, change, strict=True)]
    assert (image - 255 * torch.stack(expected)).abs().max() <= 0.55


def test_no_jitter_is_the_identity():
    batch = batch_of()
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    assert torch.equal(color_jitter.build(spec_for(3, 16, 16), **nothing)(batch, draws_for(batch))["image"],
                       batch["image"])  # fmt: skip


def test_hue_keeps_grey_and_brightness_and_a_third_of_a_turn_makes_red_green():
    batch = batch_of(64)
    batch["image"] = batch["image"] // 4 + 96  # so that nothing is cut off
    batch["image"][:, :, :4] = batch["image"][:, :1, :4]
    turned = color_jitter.build(spec_for(3, 16, 16), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)(
        batch, draws_for(batch))["image"].float()  # fmt: skip
    assert torch.equal(turned[:, :, :4], batch["image"][:, :, :4].float())
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (batch["image"] * luma).sum(1), rtol=0, atol=0.51)
    matrix = color_jitter._colours(torch.ones(1), torch.tensor([-2 * math.pi / 3]))[0]
    assert (matrix @ torch.tensor([100.0, 0.0, 0.0])).argmax() == 1


def test_jitter_of_a_grey_picture_ignores_saturation_and_hue():
    batch = batch_of(channels=1)
    settings = {"brightness": 0.3, "contrast": 0.4}
    plain = color_jitter.build(spec_for(1, 16, 16), **settings)(batch, draws_for(batch))["image"]
    coloured = color_jitter.build(spec_for(1, 16, 16), **settings, saturation=1.0, hue=0.5)
    assert torch.equal(coloured(batch, draws_for(batch))["image"], plain)


# Mixing


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    draws = Draws(torch.arange(40_000), seed=3, epoch=0)
    shares = beta(draws, alpha).double()
    assert shares.min() >= 0
    assert shares.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 * variance * (2 * alpha + 1) / (2 * alpha + 3)  # kurtosis of Beta(a, a), times variance
    assert shares.mean() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 40_000))
    assert shares.var() == pytest.approx(variance, rel=0.03)
    assert ((shares - 0.5) ** 4).mean() == pytest.approx(fourth * variance, rel=0.06)


def test_shares_of_alpha_one_are_uniform():
    shares = beta(Draws(torch.arange(20_000), seed=1, epoch=0), 1.0).sort().values
    assert (shares - torch.linspace(0, 1, 20_000)).abs().max() < 1.63 / math.sqrt(20_000) * 1.2


def test_mixup_blends_pixels_and_labels_in_the_same_proportion():
    batch = batch_of()
    mixed = mixup.build(spec_for(3, 16, 16), alpha=1.0)(batch, draws_for(batch))
    partners = draws_for(batch)
    partners.one(), beta(partners, 1.0)
    rows = partners.partners()
    own = mixed["mix"].reshape(-1, 1, 1, 1)
    assert torch.equal(mixed["mix_label"], batch["label"][rows])
    assert torch.equal(mixed["label"], batch["label"])
    expected = own * batch["image"] + (1 - own) * batch["image"][rows]
    torch.testing.assert_close(mixed["image"], expected, rtol=0, atol=1e-3)
    assert mixed["mix"].dtype == torch.float32
    assert mixed["mix_label"].dtype == torch.int64


def test_cutmix_weighs_labels_by_the_area_that_is_left():
    batch = batch_of()
    batch["image"] = (torch.arange(32) * 8).to(torch.uint8).reshape(-1, 1, 1, 1).expand(32, 3, 16, 16).clone()
    batch["label"] = torch.arange(32)
    mixed = cutmix.build(spec_for(3, 16, 16))(batch, draws_for(batch))
    own = (mixed["image"] == batch["image"]).float().mean((1, 2, 3))
    others = (mixed["image"] == (mixed["mix_label"] * 8).reshape(-1, 1, 1, 1)).float().mean((1, 2, 3))
    is_moved = mixed["mix_label"] != mixed["label"]
    torch.testing.assert_close(mixed["mix"][is_moved], own[is_moved])
    torch.testing.assert_close(1 - mixed["mix"][is_moved], others[is_moved])
    assert mixed["image"].dtype == torch.uint8
    assert len(mixed["mix"].unique()) > 10


def test_a_batch_is_mixed_once_and_both_ways_take_turns():
    first, then = mixup.build(spec_for(3, 16, 16), probability=0.5), cutmix.build(spec_for(3, 16, 16))
    batch = batch_of()
    kinds = set()
    for step in range(12):
        after = first(batch, draws_for(batch, step=step))
        both = then(after, draws_for(batch, step=step).for_stream(1))
        kinds.add("mixup" if "mix" in after else "cutmix")
        assert "mix" in both
        if "mix" in after:
            assert torch.equal(both["image"], after["image"])
    assert kinds == {"mixup", "cutmix"}


def test_mixing_needs_classes():
    with pytest.raises(DlrunError, match="needs data with 'classes'"):
        mixup.build(spec_for(3, 16, 16, targets=1))


# The operations of RandAugment and TrivialAugment, each against torchvision's


def turned(name: str, image, magnitude: float):
    return warp(image, GEOMETRIC[name](image, torch.full((len(image),), magnitude)), 0)


def changed(name: str, image, magnitude: float = 0.0):
    return PHOTOMETRIC[name](image, torch.full((len(image),), magnitude))


def affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    return reference.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=[0, 0])


def test_geometric_operations_are_those_of_torchvision():
    image = batch_of(8, size=33)["image"]
    for slope in (0.13, -0.71):
        degrees = math.degrees(math.atan(slope))
        assert torch.equal(turned("shear_x", image, slope), affine(image, shear=(degrees, 0.0)))
        assert torch.equal(turned("shear_y", image, slope), affine(image, shear=(0.0, degrees)))
    for pixels in (3.0, -7.9):
        assert torch.equal(turned("translate_x", image, -pixels), affine(image, translate=(int(pixels), 0)))
        assert torch.equal(turned("translate_y", image, -pixels), affine(image, translate=(0, int(pixels))))
    for degrees in (17.0, -93.0):
        assert torch.equal(turned("rotate", image, degrees), reference.rotate(image, degrees))


def test_pixels_from_outside_are_filled():
    image = batch_of(2)["image"]
    moved = warp(image, GEOMETRIC["translate_x"](image, torch.tensor([-5.0, 0.0])), 77)
    assert (moved[0, :, :, :5] == 77).all()
    assert torch.equal(moved[0, :, :, 5:], image[0, :, :, :-5])
    assert torch.equal(moved[1], image[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", [-0.9, -0.31, 0.0, 0.27, 0.99])
def test_enhancements_are_those_of_torchvision_to_a_rounding(channels, change):
    image = batch_of(6, channels)["image"]
    for name, adjust in (
        ("brightness", reference.adjust_brightness),
        ("color", reference.adjust_saturation),
        ("contrast", reference.adjust_contrast),
        ("sharpness", reference.adjust_sharpness),
    ):
        expected = torch.stack([adjust(picture, 1 + change) for picture in image])
        gap = (changed(name, image, change).int() - expected.int()).abs()
        assert gap.max() <= 1, name
        if change == 0.0:
            assert torch.equal(changed(name, image), image), name


@pytest.mark.parametrize("channels", [1, 3])
def test_table_operations_are_those_of_torchvision(channels):
    image = batch_of(6, channels)["image"]
    image[0] //= 3
    image[1] = 9
    image[2, :, :8] = 40
    assert torch.equal(changed("equalize", image), reference.equalize(image))
    assert (changed("autocontrast", image).int() - reference.autocontrast(image).int()).abs().max() <= 1
    for bits in (8, 5, 2):
        assert torch.equal(changed("posterize", image, bits), reference.posterize(image, bits))
    for threshold in (255.0, 119.0, 0.0):
        assert torch.equal(changed("solarize", image, threshold), reference.solarize(image, threshold))


def test_every_operation_has_a_magnitude_of_its_own_for_each_picture():
    image = batch_of(2)["image"]
    for name in GEOMETRIC:
        both = warp(image, GEOMETRIC[name](image, torch.tensor([2.0, -3.0])), 0)
        assert torch.equal(both[1], turned(name, image[1:], -3.0)[0]), name
    for name, magnitudes in (("contrast", (0.5, -0.5)), ("posterize", (3.0, 6.0)), ("solarize", (10.0, 200.0))):
        both = PHOTOMETRIC[name](image, torch.tensor(magnitudes))
        assert torch.equal(both[1], changed(name, image[1:], magnitudes[1])[0]), name


def test_rand_augment_at_strength_zero_only_inverts_white_and_levels_histograms():
    batch = batch_of(200, channels=1)
    batch["image"].clamp_(max=254)
    image = rand_augment.build(spec_for(1, 16, 16), num_ops=1, magnitude=0)(batch, draws_for(batch))["image"]
    is_same = (image == batch["image"]).flatten(1).all(1)
    assert 140 < is_same.sum() < 200  # all but autocontrast and equalize, 2 of 14


def test_trivial_augment_uses_every_operation_and_strength():
    batch = batch_of(600, size=8)
    image = trivial_augment.build(spec_for(3, 8, 8))(batch, draws_for(batch))["image"]
    is_same = (image == batch["image"]).flatten(1).all(1)
    assert 0.05 < is_same.float().mean() < 0.2  # identity, and strength 0 of the others
    assert (image == 0).flatten(1).float().mean(1).gt(0.3).sum() > 30  # moved far away
