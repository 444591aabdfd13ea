"""Real recordings and a real log, found through DLRUN_TEST_DATA: they have the rows, splits and lengths published."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.data import series, speech
from dlrun.tokens import to_texts

pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("DLRUN_TEST_DATA" not in os.environ, reason="DLRUN_TEST_DATA does not name the real data sets"),
]


def build(name: str, component=speech, **settings):
    place = Path(os.environ["DLRUN_TEST_DATA"]) / name
    if not place.exists():
        pytest.skip(f"DLRUN_TEST_DATA has no {name}")
    return component.build(SimpleNamespace(seed=0, assets=None), path=str(place), **settings)


def test_spoken_digits_have_the_published_split_and_lengths():
    dataset = build("fsdd", sample_rate=8000, valid_fraction=0.0)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 2700, "test": 300}
    assert dataset.spec.labels == tuple("0123456789")
    whole = {name: split.gather(torch.arange(len(split))) for name, split in dataset.splits.items()}
    assert torch.bincount(whole["test"]["label"]).tolist() == [30] * 10
    lengths = torch.cat([batch["audio_lengths"] for batch in whole.values()]) / 8000
    assert float(lengths.sum()) / 60 == pytest.approx(21.9, abs=0.05)
    assert float(lengths.min()) == pytest.approx(0.14, abs=0.005)
    assert float(lengths.max()) == pytest.approx(2.28, abs=0.005)


def test_the_published_split_is_found_by_a_column_too():
    given = build("fsdd", splits={"train": "test"}, sample_rate=8000, split_column="take", test_values=[0], bands=20)
    assert len(given.splits["test"]) == 60 and len(given.splits["train"]) + len(given.splits["valid"]) == 240


def test_digits_are_joined_within_their_split():
    dataset = build("fsdd", sample_rate=8000, valid_fraction=0.0, transcript="label", join=[3, 6])
    assert dataset.spec.sizes["characters"] == 12
    for name, count in (("train", 2700), ("test", 300)):
        split = dataset.splits[name]
        texts = [text.split() for text in to_texts(split.gather(torch.arange(len(split)))["reference"])]
        assert sum(map(len, texts)) == count and {len(text) for text in texts} <= {3, 4, 5, 6}


def test_transcribed_samples_are_read_from_their_archive():
    dataset = build("speech_samples/speech_samples.zip", valid_fraction=0.0, test_fraction=0.0, lower=True)
    batch = dataset.splits["train"].gather(torch.arange(11))
    seconds = batch["audio_lengths"] / 16000
    assert float(seconds.min()) == pytest.approx(1.5, abs=0.06) and float(seconds.max()) == pytest.approx(
        11.7, abs=0.06
    )
    assert all(to_texts(batch["reference"])) and batch["audio"].abs().max() > 3000


def test_the_last_fifth_of_the_drive_is_the_test():
    dataset = build(
        "steering_angle/driving_log_all.csv",
        series,
        columns=["speed", "steering"],
        target_columns=["speed"],
        window=28,
        horizon=14,
        test_fraction=0.2,
    )
    batch = dataset.splits["test"].gather(torch.arange(len(dataset.splits["test"])))
    assert batch["id"][0] == 3242 and batch["id"][-1] == 4053 - 14 and batch["future"].shape == (798, 14, 1)
