"""Sound: resampled without folding, mel spectra and cepstra as written out by hand, augmentations that know an end."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.augment import noise, spec_augment, speed, time_shift
from dlrun.contracts import DataSpec
from dlrun.data import tones
from dlrun.data._resample import resampled
from dlrun.data._sound_inputs import SoundInputs
from dlrun.data._spectrogram import Spectrogram
from dlrun.data._whisper_frames import WhisperFrames, frames_from
from dlrun.errors import DlrunError
from dlrun.randomness import Draws


def sine(hertz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(("rate", "new"), [(44100, 16000), (8000, 16000), (22050, 8000), (16000, 16000)])
def test_a_sine_resampled_is_the_sine_at_the_new_rate(rate, new):
    found, expected = resampled(sine(1000, rate), rate, new), sine(1000, new)
    assert len(found) == -(-len(sine(1000, rate)) * new // rate)
    inner = slice(200, len(expected) - 200)
    torch.testing.assert_close(found[inner], expected[inner], atol=2e-3, rtol=0)


def test_what_lies_above_half_the_new_rate_does_not_fold_back():
    assert resampled(sine(6000, 16000), 16000, 8000)[200:-200].abs().max() < 2e-3


def test_a_constant_stays_a_constant():
    found = resampled(torch.ones(4000), 48000, 16000)
    torch.testing.assert_close(found[100:-100], torch.ones(len(found) - 200), atol=2e-3, rtol=0)


# ---------------------------------------------------------------- spectra


def by_hand(sound: np.ndarray, made: Spectrogram) -> np.ndarray:
    """Log-mel spectra and cepstra as the text books have them, one frame and one band at a time, in float64."""
    points = 1
    while points < made.window:
        points *= 2
    count = 1 + (len(sound) - made.window) // made.hop
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(made.window) / made.window)
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (20.0, made.rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, made.bands + 2) / 2595) - 1)
    rows = []
    for frame in range(count):
        part = sound[frame * made.hop : frame * made.hop + made.window]
        power = np.abs(np.fft.fft((part - part.mean()) * window, points)[: points // 2 + 1]) ** 2
        energies = []
        for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for index, value in enumerate(power):
                hertz = index * made.rate / points
                if left < hertz <= middle:
                    total += value * (hertz - left) / (middle - left)
                elif middle < hertz < right:
                    total += value * (right - hertz) / (right - middle)
            energies.append(np.log(max(total, 1e-8)))
        if made.coefficients:
            scale = [np.sqrt((1 if order == 0 else 2) / made.bands) for order in range(made.coefficients)]
            places = (np.arange(made.bands) + 0.5) * np.pi / made.bands
            energies = [s * (np.cos(places * order) * energies).sum() for order, s in enumerate(scale)]
        rows.append(energies)
    return np.array(rows)


@pytest.mark.parametrize(("kind", "rate"), [("log_mel", 8000), ("mfcc", 16000)])
def test_features_of_a_batch_are_those_written_out_by_hand(kind, rate):
    made = Spectrogram.of_settings(kind, rate, 32, 10, 24, 13)
    rng = np.random.default_rng(0)
    sounds = rng.normal(0, 0.1, (2, rate // 5)) + 0.3 * np.sin(np.arange(rate // 5) * 0.3) + 0.05
    found = made(torch.from_numpy(sounds).float())
    assert found.shape == (2, 1 + (rate // 5 - made.window) // made.hop, 13 if kind == "mfcc" else 24)
    expected = np.stack([by_hand(sound, made) for sound in sounds])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3, rtol=1e-4)


def test_a_sound_shorter_than_a_window_has_one_frame():
    made = Spectrogram.of_settings("log_mel", 8000, 25, 10, 20, 0)
    assert made.frames(torch.tensor([1, 200, 279, 280])).tolist() == [1, 1, 1, 2]
    assert made(torch.zeros(1, 50)).shape == (1, 1, 20)


@pytest.mark.parametrize(
    ("settings", "says"),
    [(("log_mel", 0, 25, 10, 20, 0), "data.sample_rate: 0 is not above 0"),
     (("mfcc", 8000, 25, 10, 20, 30), "data.coefficients: 30 is not between 1 and the 20 bands"),
     (("log_mel", 8000, 25, 0.01, 20, 0), "data.hop_ms: 0.01 ms at 8000 Hz is under one sample"),
     (("log_mel", 8000, 8, 4, 80, 0), "data.bands: 80 bands at 8000 Hz are narrower")],
)  # fmt: skip
def test_settings_that_make_no_spectrum_are_refused(settings, says):
    with pytest.raises(DlrunError, match=says):
        Spectrogram.of_settings(*settings)


@pytest.mark.parametrize(("bands", "length"), [(80, 16000), (128, 9111), (80, 7), (80, 0)])
def test_frames_of_whisper_are_those_of_the_librarys_extractor(bands, length):
    from transformers import WhisperFeatureExtractor

    rng = np.random.default_rng(0)
    sound = (0.3 * np.sin(np.arange(length) * 0.3) + rng.normal(0, 0.05, length)).astype(np.float32)
    sound = sound if length else np.zeros(300, dtype=np.float32)
    expected = WhisperFeatureExtractor(bands, chunk_length=2)(sound, sampling_rate=16000, return_tensors="pt")
    made = frames_from(WhisperFrames(bands).to_json())
    found = made(torch.from_numpy(sound)[None])
    count = int(made.frames(torch.tensor(len(sound))))
    assert found.shape == (1, count, bands)
    torch.testing.assert_close(found[0], expected["input_features"][0, :, :count].T, atol=1e-4, rtol=1e-4)
    behind = expected["input_features"][0, :, count:]
    torch.testing.assert_close(behind, (found.max() - 2).clamp(min=-1.5).expand_as(behind), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- batches


def made_tones(**settings):
    return tones.build(SimpleNamespace(seed=0, assets=None), **settings)


@pytest.fixture(scope="module")
def dataset():
    return made_tones(size=60)


def test_tones_are_the_same_every_time_and_stratified(dataset):
    again = made_tones(size=60)
    assert dataset.fingerprint == again.fingerprint != made_tones(size=60, tone_seed=1).fingerprint
    assert dataset.spec.labels == ("dip", "fall", "flat", "peak", "rise", "tremble")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 42, "valid": 9, "test": 9}
    assert DataSpec.from_json(dataset.spec.to_json()) == dataset.spec


def test_frames_do_not_change_with_the_company_of_an_example(dataset):
    split = dataset.splits["train"]
    together = dataset.inputs.prepare(split.gather(torch.arange(8)))
    for row in range(8):
        alone = dataset.inputs.prepare(split.gather(torch.tensor([row])))
        count = int(together["frames"][row])
        assert int(alone["frames"][0]) == count == alone["spectrogram"].shape[1]
        torch.testing.assert_close(together["spectrogram"][row, :count], alone["spectrogram"][0], atol=1e-4, rtol=1e-4)
        assert not together["spectrogram"][row, count:].any()


def test_training_frames_are_normalised(dataset):
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(42)))
    is_frame = torch.arange(batch["spectrogram"].shape[1]) < batch["frames"][:, None]
    frames = batch["spectrogram"][is_frame]
    torch.testing.assert_close(frames.mean(0), torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(40), atol=1e-2, rtol=0)


def test_a_recording_can_be_normalised_by_itself(dataset):
    spec = DataSpec.from_json(dataset.spec.to_json())
    spec.assets["normalise"] = "recording"
    batch = SoundInputs(spec).prepare(dataset.splits["train"].gather(torch.arange(4)))
    own = batch["spectrogram"][0, : batch["frames"][0]]
    torch.testing.assert_close(own.mean(0), torch.zeros(40), atol=1e-4, rtol=0)
    torch.testing.assert_close(own.std(0, correction=0), torch.ones(40), atol=1e-3, rtol=0)


def test_new_sounds_are_encoded_as_stored_ones(dataset):
    stored = dataset.splits["train"].gather(torch.tensor([3]))
    samples = stored["audio"][0].numpy()
    batch = dataset.inputs.encode([{"audio": samples}, {"audio": samples.astype(np.float32) / 32768}])
    assert torch.equal(batch["audio"][0], stored["audio"][0]) and torch.equal(batch["audio"][1], stored["audio"][0])
    with pytest.raises(DlrunError, match="row 1: sample 2 is not a finite number"):
        dataset.inputs.encode([{"audio": samples}, {"audio": np.array([0.0, 0.1, np.nan])}])
    with pytest.raises(DlrunError, match="row 0: the recording has no samples"):
        dataset.inputs.encode([{"audio": np.zeros(0, dtype=np.float32)}])
    with pytest.raises(DlrunError, match="row 0 has no 'audio'"):
        dataset.inputs.encode([{"audoi": samples}])


# ---------------------------------------------------------------- augmentations

AUGMENTATIONS = {
    "noise": lambda spec: noise.build(spec, probability=1.0),
    "time_shift": lambda spec: time_shift.build(spec),
    "speed": lambda spec: speed.build(spec),
    "spec_augment": lambda spec: spec_augment.build(spec),
}


def draws(batch, epoch: int = 0) -> Draws:
    return Draws(batch["id"], seed=0, epoch=epoch)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_example_does_not_change_with_its_company(name, dataset):
    augment, split = AUGMENTATIONS[name](dataset.spec), dataset.splits["train"]
    together, alone = split.gather(torch.arange(6)), split.gather(torch.tensor([2]))
    many = dataset.inputs.prepare(augment(together, draws(together)))
    one = dataset.inputs.prepare(augment(alone, draws(alone)))
    count = int(one["frames"][0])
    assert int(many["frames"][2]) == count
    torch.testing.assert_close(many["spectrogram"][2, :count], one["spectrogram"][0, :count], atol=1e-3, rtol=1e-3)
    other = dataset.inputs.prepare(augment(alone, draws(alone, epoch=1)))
    assert other["spectrogram"].shape != one["spectrogram"].shape or not torch.equal(
        other["spectrogram"], one["spectrogram"]
    )


def sounds(spec_rate: int = 8000) -> tuple[DataSpec, dict[str, torch.Tensor]]:
    spec = DataSpec((), "label", {}, {}, assets={"kind": "audio", "spectrogram": {"rate": spec_rate}})
    audio = torch.stack([sine(200, 8000) * 0.5, sine(300, 8000) * 0.5])
    audio[1, 2000:] = 0
    batch = {"id": torch.arange(2), "audio": audio, "audio_lengths": torch.tensor([4000, 2000])}
    return spec, batch


def test_noise_has_the_power_that_was_asked_for():
    spec, batch = sounds()
    after = noise.build(spec, probability=1.0, decibels=(10, 10))(batch, draws(batch))
    added = after["audio"] - batch["audio"]
    for row, length in enumerate((4000, 2000)):
        ratio = batch["audio"][row].square().sum() / added[row].square().sum()
        assert 10 * math.log10(ratio) == pytest.approx(10, abs=0.3)
        assert not added[row, length:].any()


def test_a_shift_moves_samples_and_leaves_silence():
    spec, batch = sounds()
    after = time_shift.build(spec, most_ms=100)(batch, draws(batch))["audio"]
    for row, length in enumerate((4000, 2000)):
        fits = [
            shift for shift in range(-800, 801) if torch.equal(after[row, :length], moved(batch, row, length, shift))
        ]
        assert len(fits) == 1 and fits != [0]
    assert not after[1, 2000:].any()


def moved(batch, row: int, length: int, shift: int) -> torch.Tensor:
    sound = torch.zeros(length)
    source = batch["audio"][row, :length]
    if shift >= 0:
        sound[shift:] = source[: length - shift]
    else:
        sound[:shift] = source[-shift:]
    return sound


def test_twice_the_speed_takes_half_the_samples_at_twice_the_pitch():
    spec, batch = sounds()
    after = speed.build(spec, factor=(2.0, 2.0))(batch, draws(batch))
    assert after["audio_lengths"].tolist() == [2000, 1000]
    torch.testing.assert_close(after["audio"][0, :2000], batch["audio"][0, ::2])
    torch.testing.assert_close(after["audio"][1, :1000], batch["audio"][1, :2000:2])
    assert not after["audio"][1, 1000:].any()
    same = speed.build(spec, factor=(1.0, 1.0))(batch, draws(batch))
    torch.testing.assert_close(same["audio"], batch["audio"])
    slower = speed.build(spec, factor=(0.5, 0.5))(batch, draws(batch))
    assert slower["audio_lengths"].tolist() == [7999, 3999]
    torch.testing.assert_close(slower["audio"][0, :7999:2], batch["audio"][0])


def test_hidden_stretches_are_as_long_as_they_may_be_and_hold_the_mean(dataset):
    batch = dataset.splits["train"].gather(torch.arange(20))
    augment = spec_augment.build(dataset.spec, time_masks=1, time_width=0.5, band_masks=1, band_width=0.5)
    augmented = augment(batch, draws(batch))
    plain, hidden = dataset.inputs.prepare(batch), dataset.inputs.prepare(augmented)
    assert "masked_frames" not in hidden
    for row in range(20):
        count = int(plain["frames"][row])
        is_zero = hidden["spectrogram"][row, :count] == 0
        frames, bands = is_zero.all(1).sum(), is_zero.all(0).sum()
        expected = augmented["masked_frames"][row, 0, 1] * count, augmented["masked_bands"][row, 0, 1] * 40
        assert abs(int(frames) - expected[0]) <= 1 and abs(int(bands) - expected[1]) <= 1
        assert torch.equal(hidden["spectrogram"][row, :count][~is_zero], plain["spectrogram"][row, :count][~is_zero])
    assert spec_augment.build(dataset.spec, time_masks=0, band_masks=0)(batch, draws(batch)).keys() == batch.keys()


def test_sound_is_asked_for_and_settings_are_checked(dataset):
    pictures = DataSpec(("image",), "label", {}, {"image": (1, 8, 8)}, assets={"kind": "image"})
    for name, augment in AUGMENTATIONS.items():
        with pytest.raises(DlrunError, match=f"data.augment.{name} changes sound; this data has image"):
            augment(pictures)
    with pytest.raises(DlrunError, match=r"data.augment.speed.factor: \[0.1, 1\] is not a low and a high"):
        speed.build(dataset.spec, factor=(0.1, 1))
    with pytest.raises(DlrunError, match=r"data.augment.spec_augment.time_masks: -1 is not at least 0"):
        spec_augment.build(dataset.spec, time_masks=-1)
    with pytest.raises(DlrunError, match=r"data.size: 5 is not at least 12"):
        made_tones(size=5)
