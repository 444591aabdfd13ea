"""Made tones whose pitch rises, falls, stays, bends or trembles: six classes, or words to be spelled; no download."""

# S samples

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._bad import BadRows
from dlrun.data._sound_data import Columns, Settings, assemble, join_of
from dlrun.data._sound_inputs import SoundInputs
from dlrun.data._sound_rows import SoundRows
from dlrun.data._spectrogram import Spectrogram
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError
from dlrun.randomness import key
from dlrun.tokens import Characters

_RATE = 8000
_RANGE = 0.75  # octaves that a pitch moves by
# The pitch over a tone, in -0.5..0.5, from the time in 0..1.
_CONTOURS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dip": lambda t: 0.5 - np.sin(math.pi * t),
    "fall": lambda t: 0.5 - t,
    "flat": lambda t: np.zeros_like(t),
    "peak": lambda t: np.sin(math.pi * t) - 0.5,
    "rise": lambda t: t - 0.5,
    "tremble": lambda t: 0.25 * np.sin(2 * math.pi * 4 * t),
}


def build(
    tools: Tools,
    *,
    size: int = 1200,
    noise: float = 0.05,
    tone_seed: int = 0,
    words: list | None = None,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    train_size: int | None = None,
    split_seed: int | None = None,
) -> Dataset:
    """Tones of 0.3 to 0.8 s at 8 kHz with two overtones, at a pitch and loudness of their own, in some noise.

    Settings:
        size: tones, of all splits and in equal parts of all classes.
        noise: standard deviation of the noise, where a tone's loudest sample is 0.2 to 0.8.
        tone_seed: chooses the tones; the same in every run unless set.
        words: [FEWEST, MOST] tones are joined to an utterance, whose transcript is the names of their classes.
        valid_fraction: share of the tones held out to choose by, in [0, 1).
        test_fraction: share of the tones held out to score on, in [0, 1).
        train_size: use this many of the training tones that remain, stratified by class.
        split_seed: chooses the tones held out; the run's seed unless set.
    """
    if size < 2 * len(_CONTOURS):
        raise DlrunError(f"data.size: {size} is not at least {2 * len(_CONTOURS)}, two of each class")
    if not noise >= 0:
        raise DlrunError(f"data.noise: {noise} is not at least 0")
    rng = np.random.default_rng(key("tones", tone_seed) & ((1 << 63) - 1))
    labels_N = np.arange(size, dtype=np.int64) % len(_CONTOURS)
    contours = list(_CONTOURS.values())
    sounds = [_tone(contours[label], noise, rng) for label in labels_N.tolist()]
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(seed, valid_fraction, test_fraction, train_size=train_size)
    spectrogram = Spectrogram.of_settings("log_mel", _RATE, 32, 10, 40, 0)
    settings = Settings(spectrogram, hold_out, BadRows(), join=None if words is None else join_of(words, "words"))
    if words is not None:
        names = [list(_CONTOURS)[label] for label in labels_N.tolist()]
        rows = SoundRows("tones", np.arange(size), sounds, names, speakers=["the tones"] * size)
        spelled = Columns("audio", None, "transcript")
        return assemble({"train": rows}, (), Characters.of(names), spelled, settings, tools, [])
    given = {"train": SoundRows("tones", np.arange(size), sounds, labels_N=labels_N)}
    return assemble(given, tuple(_CONTOURS), None, Columns("audio", "label", None), settings, tools, [])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on tones."""
    return SoundInputs(spec)


def _tone(contour: Callable[[np.ndarray], np.ndarray], noise: float, rng: np.random.Generator) -> np.ndarray:
    """int16 [S]."""
    length = int(rng.uniform(0.3, 0.8) * _RATE)
    octaves_S = _RANGE * contour(np.arange(length) / length)
    hertz_S = rng.uniform(250, 700) * 2**octaves_S
    phase_S = 2 * math.pi * np.cumsum(hertz_S) / _RATE
    tone_S = sum(strength * np.sin(order * phase_S) for order, strength in ((1, 0.6), (2, 0.3), (3, 0.1)))
    fade_S = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * _RATE))
    sound_S = rng.uniform(0.2, 0.8) * tone_S * fade_S + rng.normal(0, noise, length)
    return (sound_S.clip(-1, 0.9999) * 32768).astype(np.int16)
