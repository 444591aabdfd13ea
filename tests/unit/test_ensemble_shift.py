"""Inputs that were changed, and whether they are told from the others, against hand-computed numbers."""

import math

import pytest
import torch

from dlrun.commands._ensemble_shift import compared, entropy, mutual_information
from dlrun.contracts import Outputs
from dlrun.ensembles._shift import shifted
from dlrun.errors import DlrunError


def said(*rows: list[float]) -> Outputs:
    """Outputs of a classifier with these probabilities."""
    return Outputs(torch.arange(len(rows)), {"log_probabilities": torch.tensor(rows, dtype=torch.float64).log()})


def test_a_picture_gets_blur_and_noise_that_belongs_to_its_id():
    grey = torch.full((40, 3, 8, 8), 128, dtype=torch.uint8)
    batch = {"id": torch.arange(40), "image": grey}
    noisy = shifted(batch, 0)["image"]
    assert noisy.dtype == torch.uint8 and noisy.shape == grey.shape
    assert noisy.double().mean().item() == pytest.approx(128, abs=1)
    assert noisy.double().std().item() == pytest.approx(25.5, rel=0.05)
    some = torch.tensor([31, 7])
    alone = shifted({"id": some, "image": grey[some]}, 0)["image"]
    assert torch.equal(alone, noisy[some])
    assert not torch.equal(shifted(batch, 1)["image"], noisy)


def test_a_pixel_is_spread_by_the_binomial_kernel():
    dots = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    dots[:, 0, 1, 1] = 255
    mean = shifted({"id": torch.arange(2000), "image": dots}, 0)["image"].double().mean(0)[0]
    assert mean[1, 1].item() == pytest.approx(255 / 4, abs=3)
    assert mean[0, 1].item() == pytest.approx(255 / 8, abs=3)


def test_numbers_and_series_get_noise_of_their_own_deviation():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(4000, 2, generator=generator) * torch.tensor([3.0, 0.0])
    found = shifted({"id": torch.arange(4000), "numbers": numbers}, 0)["numbers"]
    assert (found - numbers).std(0).tolist() == [pytest.approx(3, rel=0.05), 0]
    series = torch.randn(500, 8, 2, generator=generator) * torch.tensor([0.5, 2.0])
    found = shifted({"id": torch.arange(500), "series": series}, 0)["series"]
    assert (found - series).std((0, 1)).tolist() == pytest.approx([0.5, 2.0], rel=0.05)


def test_tokens_and_categories_are_exchanged_for_those_of_others_and_padding_stays():
    tokens = torch.arange(1, 2001).reshape(100, 20)
    tokens[:, 15:] = 0
    found = shifted({"id": torch.arange(100), "tokens": tokens}, 0)["tokens"]
    assert torch.equal(found == 0, tokens == 0)
    assert (found != tokens)[:, :15].double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(found.flatten().tolist()) <= set(tokens.flatten().tolist())
    codes = torch.arange(1000)[:, None].expand(1000, 3)
    found = shifted({"id": torch.arange(1000), "categories": codes}, 0)["categories"]
    assert (found != codes).double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_sound_gets_noise_as_loud_as_itself_up_to_its_end():
    audio = torch.full((3, 5000), 1000, dtype=torch.int16)
    audio[1, 4000:] = 0
    lengths = torch.tensor([5000, 4000, 5000])
    found = shifted({"id": torch.arange(3), "audio": audio, "audio_lengths": lengths}, 0)["audio"]
    assert found.dtype == torch.int16 and bool((found[1, 4000:] == 0).all())
    assert (found - audio)[0].double().std().item() == pytest.approx(1000, rel=0.05)


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(DlrunError, match="nothing is known of changing user"):
        shifted({"id": torch.arange(2), "user": torch.arange(2)}, 0)


def test_members_that_are_sure_of_different_classes_have_one_bit_of_information():
    sure, other, unsure = said([1.0, 1e-30]), said([1e-30, 1.0]), said([0.5, 0.5])
    assert mutual_information([sure, other]).item() == pytest.approx(math.log(2))
    assert mutual_information([unsure, unsure]).item() == pytest.approx(0, abs=1e-12)
    assert entropy(unsure).item() == pytest.approx(math.log(2))
    assert entropy(said([0.8, 0.2])).item() == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))


def test_examples_of_which_all_are_less_sure_are_told_apart_and_equal_ones_are_not():
    clean, changed = said([0.9, 0.1], [0.8, 0.2]), said([0.6, 0.4], [0.5, 0.5])
    found = compared(clean, changed, [clean, clean], [changed, clean])
    assert found["entropy"] == 1 and found["members"] == [1, 0.5]
    assert found["mutual_information"] > 0.5
    assert sum(found["histogram"]["clean"]) == sum(found["histogram"]["shifted"]) == found["examples"] == 2
    assert compared(clean, changed, [clean], [changed])["mutual_information"] is None
