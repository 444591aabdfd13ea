"""Drawing: every pixel where it should be, whatever size and however many classes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import nn

from dlrun import pictures
from dlrun._pictures_palette import _distances
from dlrun.contracts import IGNORED, DataSpec, WithPictures
from dlrun.tasks import classification, regression
from dlrun.training.validation_pictures import page


def noise(height: int = 200, width: int = 240, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def plain(colour=(200, 200, 200), width: int = 240, height: int = 200):
    return Image.new("RGB", (width, height), colour)


def is_same(one, other) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


# ---------------------------------------------------------------- pixels and sizes


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_a_tensor_is_shown_pixel_by_pixel(channels, shown):
    image = noise(channels=channels)
    assert np.array_equal(pixels(pictures.to_pil(image)), image[shown].permute(1, 2, 0).numpy())


def test_floats_are_rounded_and_cut_off():
    image = torch.tensor([-3.0, 0.6, 254.4, 300.0]).reshape(1, 2, 2)
    assert pixels(pictures.to_pil(image))[..., 0].tolist() == [[0, 1], [254, 255]]


@pytest.mark.parametrize(("size", "expected"), [((8, 8), 144), ((28, 28), 140), ((100, 60), 200), ((140, 9), 140)])
def test_small_pictures_are_enlarged_by_a_whole_factor(size, expected):
    small = pictures.to_pil(noise(size[1], size[0]))
    large = pictures.enlarged(small)
    factor = expected // size[0]
    assert large.size == (size[0] * factor, size[1] * factor)
    assert np.array_equal(pixels(large)[::factor, ::factor], pixels(small))
    assert is_same(pictures.enlarged(large), large)


def test_wide_pictures_are_made_to_fit_in_proportion():
    assert pictures.fitted(plain(width=1000, height=300), 400).size == (400, 120)
    assert pictures.fitted(plain(), 240).size == (240, 200)


def test_png_bytes_are_read_back_as_they_were():
    image = pictures.to_pil(noise())
    assert is_same(Image.open(io.BytesIO(pictures.png_bytes(image))), image)


# ---------------------------------------------------------------- colours


def test_colours_are_distinct_and_do_not_depend_on_how_many_there_are():
    many = pictures.palette(256)
    assert len(set(many)) == 256 and pictures.palette(11) == many[:11]
    assert pictures.palette(300)[256:] == many[:44]
    assert all(0 <= channel <= 255 for colour in many for channel in colour)


def test_twenty_colours_are_told_apart_with_and_without_green_cones():
    colours = pictures.palette(20)
    nearest = [np.sort(_distances(np.array(colours, dtype=float), colour))[1] for colour in colours]
    assert min(nearest) > 0.15  # of about 2 from black to white, both kinds of sight together


# ---------------------------------------------------------------- masks


def test_an_overlay_blends_each_class_and_leaves_ignored_pixels_bare():
    image = pictures.to_pil(noise())
    mask = torch.zeros(200, 240, dtype=torch.uint8)
    mask[:, 100:] = 1
    mask[50:60] = IGNORED
    drawn = pixels(pictures.overlay(image, mask, 2, strength=0.25)).astype(float)
    for is_class, colour in ((mask == 0, pictures.palette(2)[0]), (mask == 1, pictures.palette(2)[1])):
        expected = 0.75 * pixels(image)[is_class] + 0.25 * np.array(colour)
        assert np.abs(drawn[is_class] - expected).max() <= 1.5  # a quarter of 255 is no whole number
    assert np.array_equal(drawn[50:60], pixels(image)[50:60])


def test_a_mask_of_another_size_is_laid_over_the_whole_picture():
    image = plain(width=30, height=20)
    mask = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    drawn = pixels(pictures.overlay(image, mask, 3, strength=1.0))
    assert drawn.shape == (100, 150, 3)  # small, so enlarged by five
    expected = np.array(pictures.palette(3), dtype=np.uint8)[mask].repeat(50, 0).repeat(50, 1)
    assert np.array_equal(drawn, expected)


def test_an_indexed_mask_keeps_its_classes_and_shows_their_colours():
    mask = torch.tensor([[0, 1, 2], [IGNORED, 7, 2]], dtype=torch.uint8)
    made = Image.open(io.BytesIO(pictures.png_bytes(pictures.indexed(mask, 8))))
    assert made.mode == "P" and np.array_equal(np.asarray(made), mask.numpy())
    colours = [*pictures.palette(8), *[(255, 255, 255)] * 248]
    assert pixels(made).tolist() == [[list(colours[index]) for index in row] for row in mask.tolist()]


# ---------------------------------------------------------------- boxes


def test_a_box_is_drawn_around_its_pixels_and_nowhere_else():
    drawn = pixels(pictures.draw_boxes(plain(), [[40, 30, 100, 90]], (), [(255, 0, 0)]))
    rows, columns = np.nonzero((drawn == (255, 0, 0)).all(2))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (30, 90, 40, 100)
    assert (drawn[32:88, 42:98] == 200).all()
    assert ((drawn == 200).all(2) | (drawn == (255, 0, 0)).all(2)).all()


def test_boxes_of_a_small_picture_are_enlarged_with_it():
    small = pictures.draw_boxes(plain(width=28, height=28), torch.tensor([[5.0, 5.0, 20.0, 25.0]]), (), [(255, 0, 0)])
    rows, columns = np.nonzero((pixels(small) == (255, 0, 0)).all(2))
    assert small.size == (140, 140)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (25, 125, 25, 100)


def test_the_first_box_lies_on_top_and_its_text_above_it():
    boxes, colours = [[40, 60, 120, 120], [60, 60, 140, 120]], [(255, 0, 0), (0, 0, 255)]
    bare = pixels(pictures.draw_boxes(plain(), boxes, (), colours))
    assert tuple(bare[60, 80]) == (255, 0, 0)
    texted = pixels(pictures.draw_boxes(plain(), boxes, ["cat", ""], colours))
    assert (texted[60:] == bare[60:]).all()
    above = (texted[:60] == (255, 0, 0)).all(2)
    assert above.any() and not (texted[:60] == (0, 0, 255)).all(2).any()
    assert above[:, :40].sum() == 0


@pytest.mark.parametrize("box", [[0, 0, 30, 30], [230, 0, 240, 10], [-20, -20, 500, 500], [50, 50, 50, 50],
                                 [239, 199, 260, 260]])  # fmt: skip
def test_texts_stay_inside_the_picture_wherever_the_box_is(box):
    drawn = pictures.draw_boxes(plain(), [box], ["a word"], [(0, 158, 115)])
    assert drawn.size == (240, 200)
    assert ((pixels(drawn) == (0, 158, 115)).all(2)).sum() > 300  # the plate


def test_no_boxes_leave_the_picture_as_it_is():
    assert is_same(pictures.draw_boxes(plain(), torch.zeros(0, 4)), plain())


# ---------------------------------------------------------------- pages


def test_a_caption_stands_below_the_picture_and_a_wrong_one_frames_it():
    image = pictures.to_pil(noise())
    right, wrong = pictures.captioned(image, "cat → cat (0.98)"), pictures.captioned(image, "cat → dog (0.98)", True)
    assert np.array_equal(pixels(right)[:200], pixels(image))
    assert np.array_equal(pixels(wrong)[3:197, 3:237], pixels(image)[3:197, 3:237])
    assert not np.array_equal(pixels(wrong)[:3], pixels(image)[:3])
    for page_ in (right, wrong):
        ink = pixels(page_)[200:].min()
        assert page_.width == 240 and 210 < page_.height < 225 and ink < 100


@pytest.mark.parametrize("text", ["", "a" * 300, "many words " * 60, "日本語 → العربية (0.5)"])
def test_captions_of_any_length_keep_to_the_width_and_four_lines(text):
    made = pictures.captioned(plain(), text)
    assert made.width == 240 and made.height < 200 + 5 * 15 + 3
    assert is_same(made.crop((0, 0, 240, 200)), plain())


def test_a_grid_holds_every_picture_in_its_cell():
    colours = [(10 * index, 0, 200 - 10 * index) for index in range(5)]
    images = [plain(colour, 150, 140 + 5 * index) for index, colour in enumerate(colours)]
    made = pixels(pictures.grid(images, 3))
    assert made.shape == (12 + 150 + 12 + 160 + 12, 4 * 12 + 3 * 150, 3)
    for index, colour in enumerate(colours):
        top, left = (12, 12 + index * 162) if index < 3 else (174, 12 + (index - 3) * 162)
        assert (made[top : top + 140, left : left + 150] == colour).all()
    assert (made[:12] == 255).all() and (made[174:, 336:] == 255).all()


def test_pictures_side_by_side_keep_their_pixels():
    left, right = pictures.to_pil(noise()), plain()
    made = pixels(pictures.side_by_side([left, right]))
    assert made.shape == (200, 484, 3)
    assert np.array_equal(made[:, :240], pixels(left)) and (made[:, 244:] == 200).all()


@pytest.mark.parametrize(
    ("size", "count", "columns"),
    [((144, 160), 16, 4), ((724, 180), 16, 2), ((2000, 700), 16, 2), ((144, 160), 1, 1), ((484, 200), 5, 2)],
)
def test_a_page_is_about_square_and_no_wider_than_a_screen(size, count, columns):
    made = page([plain(width=size[0], height=size[1])] * count)
    width = min(size[0], 800)
    assert made.width == columns * width + (columns + 1) * 12


# ---------------------------------------------------------------- what tasks draw


def batch_of_two(**fields):
    return {"id": torch.arange(2), "image": noise()[None].repeat(2, 1, 1, 1)} | fields


class Says(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, image):
        return self.values


def test_a_classified_picture_shows_truth_prediction_and_probability():
    spec = DataSpec(("image",), "label", {"classes": 2}, {"image": (3, 200, 240)}, ("cat", "dog"))
    task = classification.build(spec)
    model = Says([[2.0, 0.0], [2.0, 0.0]])
    batch = batch_of_two(label=torch.tensor([0, 1]))
    image = pictures.to_pil(batch["image"][0])
    assert isinstance(task, WithPictures)
    right, wrong = task.pictures(batch, task.outputs(model, batch))
    assert is_same(right, pictures.captioned(image, "cat → cat (0.88)"))
    assert is_same(wrong, pictures.captioned(image, "dog → cat (0.88)", is_wrong=True))
    batch.pop("label")
    assert is_same(task.pictures(batch, task.outputs(model, batch))[0], pictures.captioned(image, "cat (0.88)"))


def test_a_picture_with_numbers_shows_truth_and_prediction_of_each():
    spec = DataSpec(("image",), "target", {"targets": 2}, {"image": (3, 200, 240)}, ("angle", "speed"))
    task, model = regression.build(spec), Says([[0.123456, 30.0], [-1.0, 2.0]])
    batch = batch_of_two(target=torch.tensor([[0.1, 31.0], [0.0, 2.0]]))
    image = pictures.to_pil(batch["image"][0])
    first, _ = task.pictures(batch, task.outputs(model, batch))
    assert is_same(first, pictures.captioned(image, "angle: 0.1 → 0.123, speed: 31 → 30"))
    batch.pop("target")
    first, _ = task.pictures(batch, task.outputs(model, batch))
    assert is_same(first, pictures.captioned(image, "angle: 0.123, speed: 30"))
    single = regression.build(DataSpec(("image",), "target", {"targets": 1}, {"image": (3, 200, 240)}))
    batch = batch_of_two(target=torch.tensor([0.5, 0.0]))
    first, _ = single.pictures(batch, single.outputs(Says([0.25, 1.0]), batch))
    assert is_same(first, pictures.captioned(image, "0.5 → 0.25"))


def test_rows_of_a_table_have_no_pictures():
    spec = DataSpec(("features",), "label", {"classes": 2}, {"features": (2,)})
    task = classification.build(spec)
    batch = {"id": torch.arange(2), "features": torch.zeros(2, 2), "label": torch.tensor([0, 1])}
    assert task.pictures(batch, task.outputs(Says([[1.0, 0.0], [0.0, 1.0]]), batch)) == []
